"""A build that has a farm: what is missing is ordered there, and what workers say is reported here.

Nothing is asked of the farm while the store or the remote has all layers of a stage.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.builder.chain import Builder, located
from obuild.builder.extract import Extractor, checked_manifest
from obuild.builder.farm import needs, order, sources, wire
from obuild.builder.farm.following import Following, Heard, Phases, Restarted
from obuild.builder.farm.shared import FarmSharing
from obuild.builder.farm.tls import Address
from obuild.builder.reasons import Reasons
from obuild.errors import ObuildError, UsageError
from obuild.events import Event, InRemote, Note, Output, PhaseEnded, PhaseStarted, Place, Progress, Saved, Teller
from obuild.executors.settings import Settings
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.plan.steps import Base, Built, Chain, Command, Extract, Graft, Import, Step, Transfer
from obuild.plan.tree import Manifest
from obuild.remotes import manifests
from obuild.remotes.layer import LARGEST_CONFIG, Blob
from obuild.remotes.protocol import Remote

if TYPE_CHECKING:
    from obuild.builder.farm.link import Link

_PHASES = (PhaseStarted, Progress, PhaseEnded)


@dataclass(frozen=True, slots=True)
class FarmWish:
    """The farm that a build is to use. Only with `secrets`, values of secrets leave this host.

    With `fallback`, the build goes on here if the scheduler is gone.
    """

    address: Address
    secrets: bool = False
    fallback: bool = False


@dataclass
class Farm:
    """The farm of one build; a context manager. Any thread may use it."""

    wish: FarmWish
    sharing: FarmSharing
    scope: CancelScope
    settings: Settings
    executor: str
    secrets: Mapping[str, bytes] = field(repr=False)
    tell: Teller
    jobs: int = 1
    _link: Link | None = field(default=None, init=False)
    _gone: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _room: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._room = threading.Semaphore(self.jobs)

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *why: object) -> None:
        if self._link:
            self._link.close()

    def here(self) -> threading.Semaphore:
        """For stages that are built here after all: not more at a time than the user wants."""
        return self._room

    def make(self, chain: Chain, builder: Builder, *, whole: bool) -> bool:
        """Have the missing layers of a chain made; with `whole`, fetch all. False if it is to be built here.

        The remotes were asked for the chain. Reports as Builder.build does, and raises the same; UsageError for
        secrets that must not leave this host.
        """
        if self._gone or all(self.sharing.store.find(step.id) for step in chain.steps):
            return False
        if self.sharing.has_all(chain.steps):
            return not whole and builder.show(chain) is not None
        with self._falling_back():
            self._make(chain, builder)
        self.sharing.look(chain.steps, again=True)
        if self._gone:
            return False
        if whole:
            replace(builder, tell=_phases_only(builder.tell)).build(chain)
        return True

    def source(self, built: Built, here: Callable[[], Extractor]) -> FarmSource:
        """Where the files of a finished stage come from; `here` takes them out of its layer on this host."""
        return FarmSource(self, built, here)

    def files(self, built: Built, extract: Extract, tell: Teller) -> Manifest | None:
        """The manifest of files of a layer; None if the farm is gone."""
        with self._falling_back():
            self._see_sent([built.layer])
            wanted = order.Files(self.executor, self.settings, built.layer, extract)
            key = f"obuild-files-{hashlib.sha256(order.dump(wanted)).hexdigest()}"
            phases = Phases()
            with self._ordered(wanted, key, built.base, [built.layer], tell) as following:
                for what, _ in following.said():
                    _report(what, tell, phases)
            following.see_done()
            blob = Blob(*following.answer["result"])
            return checked_manifest(json.loads(sources.get(self._remote, blob, LARGEST_CONFIG)))
        return None

    @property
    def gone(self) -> bool:
        """Whether the scheduler is gone, and the build goes on here."""
        return self._gone

    @property
    def _remote(self) -> Remote:
        return self.sharing.remote

    @contextmanager
    def _falling_back(self) -> Iterator[None]:
        """If the scheduler is gone, and the user wants that, go on here."""
        try:
            yield
        except wire.Lost as lost:
            if not self.wish.fallback:
                raise
            with self._lock:
                if not self._gone:
                    self.tell.note(f"{lost.message}; this build goes on here")
                self._gone = True

    def _connected(self) -> Link:
        with self._lock:
            if self._link is None:
                try:
                    from obuild.builder.farm.link import Link
                except ImportError as error:
                    raise missing_package(error) from error
                self._link = Link(self.wish.address)
            return self._link

    def _make(self, chain: Chain, builder: Builder) -> None:
        """Report what is known of a chain, order the rest, and report that."""
        known = {step.id for step in self.sharing.available(chain.steps)}
        missing = [step for step in chain.steps if step.id not in known]
        self._see_secrets(missing)
        self._connected()
        phases = Phases()
        steps = builder.started(chain)
        with Reasons(self.sharing.store) as reasons:
            for step, tell in islice(steps, len(known)):
                with located(tell.place):
                    if isinstance(step.action, Import) or self.sharing.store.find(step.id):
                        builder.hold(step, tell, reasons).close()
                    else:
                        self.sharing.show(step, tell, log=False)
        wanted = self._order(chain, missing, builder.tell)
        ids = [step.id for step in chain.steps]
        with self._ordered(wanted, f"obuild-{ids[-1]}", chain.base, ids, builder.tell) as following:
            heard = following.said()
            for step, tell in steps:
                with located(tell.place):
                    if not self._hear(heard, step, tell, phases):  # it was said to nobody who lives
                        following.see_done()
                        tell(InRemote(step.id, self._remote.name))
            for what, _ in heard:  # the worker sends the last layer
                _report(what, builder.tell, phases)
            phases.end()
            following.see_done()
        if ids[-1] not in manifests.of(self._remote, ids[-1:]):
            raise ObuildError(
                f"a worker has made the layer {ids[-1][:12]}, but it is not in {self._remote.name}",
                hint="clients and workers of a farm need the same remote",
            )

    def _hear(self, heard: Iterator[Heard], step: Step, tell: Teller, phases: Phases) -> bool:
        """Report what is said of a step, until its layer is made. False if nothing says that it is."""
        for what, id in heard:
            if isinstance(what, Saved | wire.Here):
                if id == step.id:
                    tell(what if isinstance(what, Saved) else InRemote(step.id, self._remote.name))
                    return True
            elif id == step.id or not isinstance(what, Output):  # the output of a step that is made again was told
                _report(what, tell if id == step.id else Teller(tell.listener, Place(tell.place.stage)), phases)
        phases.end()
        return False

    def _order(self, chain: Chain, missing: Sequence[Step], tell: Teller) -> order.Chain:
        """Send what workers need of this host: layers that only we have, and the files of copies."""
        below = chain.steps[len(chain.steps) - len(missing) - 1].id
        self._see_sent([below, *(step.action.source for step in missing if isinstance(step.action, Graft))])
        packed = {}
        for step in missing:
            if isinstance(step.action, Transfer):
                with tell.phase("sending", step.action.dest):
                    packed[step.id] = sources.pack(self._remote, step.action.tree)
        return order.Chain(self.executor, self.settings, chain.steps, packed)

    def _see_sent(self, ids: Sequence[LayerId]) -> None:
        """Send those of these layers that the remote lacks, and wait until it has them."""
        there = manifests.of(self._remote, ids)
        for id in ids:
            if id not in there:
                self.sharing.send(id)
        self.sharing.wait()

    def _see_secrets(self, missing: Sequence[Step]) -> None:
        names = {
            secret.name for step in missing if isinstance(step.action, Command) for secret in step.action.secrets
        }
        if names and not (self.wish.secrets and self.wish.address.is_sealed):
            raise UsageError(
                f"the secret {min(names)!r} would leave this host for a worker of the farm",
                hint="--farm-secrets allows that, for a scheduler at a tls:// address",
            )

    def _sealed(self, key: str) -> bytes:
        """The values of the secrets, for the holder of the private key."""
        from nacl.public import PublicKey, SealedBox

        if not (self.wish.secrets and self.wish.address.is_sealed):
            raise ObuildError("a worker asks for secrets, which must not leave this host")
        values = {name: value.decode("latin-1") for name, value in self.secrets.items()}
        return bytes(SealedBox(PublicKey(bytes.fromhex(key))).encrypt(json.dumps(values).encode()))

    @contextmanager
    def _ordered(
        self, wanted: order.Order, key: str, base: Base, ids: Sequence[LayerId], tell: Teller
    ) -> Iterator[Following]:
        """Post an order for a worker that can carry it out."""
        link = self._connected()
        need = needs.of(base.card, self.settings, self.executor)
        offers = link.offers()
        if offers and (why := needs.lacking(need, offers.values())):
            raise ObuildError(f"{self.wish.address.url}: {why}", hint="docs/farm.md says what workers offer")
        preferred = link.preferred(need, offers, ids)
        with link.post(key, sources.put(self._remote, order.dump(wanted)), need, preferred) as post:
            yield Following(link, post, need, self.scope, tell, self._sealed)


@dataclass
class FarmSource:
    """As Extractor, for a stage that a farm may have built."""

    farm: Farm
    built: Built
    here: Callable[[], Extractor]

    @property
    def layer(self) -> LayerId:
        return self.built.layer

    def manifest(self, extract: Extract, tell: Teller) -> Manifest:
        known = self.here().remembered(extract)
        if known is None and not self.farm.gone:
            known = self.farm.files(self.built, extract, tell)
        return self._fetched(tell).manifest(extract, tell) if known is None else known

    def checked_archive(self, graft: Graft, tell: Teller) -> Path:
        return self._fetched(tell).checked_archive(graft, tell)

    def _fetched(self, tell: Teller) -> Extractor:
        """For a build that goes on here: the layer must be here, too."""
        self.farm.sharing.bring(self.layer, tell)
        return self.here()


def missing_package(error: ImportError) -> UsageError:
    """The error if Dask is not installed."""
    return UsageError(f"the Python package {error.name} is missing", hint="pip install 'obuild[farm]'")


def _report(what: object, tell: Teller, phases: Phases) -> None:
    match what:
        case Restarted(worker):
            phases.end()
            tell.note(f"another worker, {worker}, goes on with this")
        case wire.Unfit(why):
            tell.note(f"a worker cannot go on: {why}")
        case Output() | Note() | PhaseStarted() | Progress() | PhaseEnded():
            phases.told(what, tell)
            tell(what)


def _phases_only(tell: Teller) -> Teller:
    """A teller of phases and notes, for what was reported before."""

    def listen(event: Event) -> None:
        if isinstance(event.what, (*_PHASES, Note)):
            tell.listener(event)

    return Teller(listen, tell.place)
