"""The remotes of a build: layers that it lacks are fetched from there, and those that it makes are sent.

Nothing is asked while the store has all layers. Layers are sent by one thread, in the background. A remote that
fails is left alone from then on: the build goes on without it, unless it is required.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Self

from obuild.bases import catalog
from obuild.errors import Cancelled, ObuildError, StoreError, UsageError
from obuild.events import PROGRESS_PERIOD, InRemote, Output, Phase, Teller
from obuild.host.process import CancelScope
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.plan.steps import Base, Import, Step
from obuild.remotes.all import Access, open_remote
from obuild.store.layers import Store

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from obuild.remotes.layer import Manifest
    from obuild.remotes.manifests import Found
    from obuild.remotes.protocol import Remote


@dataclass(frozen=True, slots=True)
class Wish:
    """The remotes that a build is to use, in this order, and how. With `whole`, the result is fetched, too.

    What is sent is signed by the key `sign`. With keys to `trust`, only layers that one has signed are taken.
    """

    names: tuple[str, ...]
    access: Access
    read: bool = True
    write: bool = True
    required: bool = False
    whole: bool = False
    sign: Ed25519PrivateKey | None = None
    trust: tuple[Ed25519PublicKey, ...] = ()


@dataclass
class Sharing:
    """The remotes of one build; a context manager that waits until all is sent. Any thread may use it."""

    store: Store
    wish: Wish
    tell: Teller
    scope: CancelScope
    _stack: ExitStack = field(default_factory=ExitStack, init=False)
    _remotes: dict[str, Remote] = field(default_factory=dict, init=False)
    _failed: set[str] = field(default_factory=set, init=False)
    _found: dict[LayerId, tuple[Remote, Found]] = field(default_factory=dict, init=False)
    _asked: set[LayerId] = field(default_factory=set, init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, init=False)
    _sending: list[Future[None]] = field(default_factory=list, init=False)
    _sender: ThreadPoolExecutor | None = field(default=None, init=False)
    _sent: int = field(default=0, init=False)
    _bases: list[str] = field(default_factory=list, init=False)  # whose images are here, or will be
    _named: set[tuple[str, str]] = field(default_factory=set, init=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._stack:
            if self._sender is None:
                return
            try:
                if isinstance(error, Cancelled | KeyboardInterrupt):
                    self.scope.cancel()  # ends what is being sent
                else:
                    self.wait()
            except ObuildError:
                if error is None:
                    raise
            finally:
                for future in self._sending:
                    future.cancel()
                self._sender.shutdown()

    # -- reading

    def base(self, reference: str) -> Base | None:
        """The base that NAME or NAME@sha256:HEX stands for, if a remote has it and the store lacks its image."""
        name, pin = catalog.split(reference)
        here = catalog.image_path(self.store, name)
        for remote_name in self.wish.names if self.wish.read and not here else ():
            with self._using(remote_name) as remote:
                from obuild.remotes import bases

                found = remote and bases.find(remote, name, pin, trusted=self.wish.trust)
                if remote and found:
                    self._believe(remote)
                    self.tell.note(f"the base {name} is that of {remote_name}")
                    return found
        self._bases.append(name)
        return None

    def look(self, steps: Sequence[Step], *, again: bool = False) -> None:
        """Ask the remotes for the layers of a chain that the store lacks, all at once.

        Each layer is asked for once in a build, unless it is asked for `again`.
        """
        if not self.wish.read:
            return
        with self._lock:
            asked = self._found.keys() if again else self._asked
            unknown = [step.id for step in steps if step.id not in asked and not self.store.find(step.id)]
            self._asked.update(unknown)
            for name in self.wish.names if unknown else ():
                wanted = [id for id in unknown if id not in self._found]
                with self._using(name) as remote:
                    if remote and wanted:
                        from obuild.remotes import manifests

                        there = manifests.of(remote, wanted)
                        for id in self._unsigned(remote, there):
                            del there[id]
                        for id, manifest in there.items():
                            self._found[id] = remote, manifests.Found(id, manifest)

    def _unsigned(self, remote: Remote, there: Mapping[LayerId, Manifest]) -> Collection[LayerId]:
        """Those of these layers that no trusted key has signed. A note says so, or that nobody looks."""
        if there:
            self._believe(remote)
        if not self.wish.trust:
            return ()
        from obuild.remotes.trust import unsigned

        found = unsigned(remote, there, self.wish.trust)
        if found:
            layers = "1 layer" if len(found) == 1 else f"{len(found)} layers"
            self.tell.note(f"{layers} in {remote.name} have no signature by a trusted key, and are not used")
        return found

    def _believe(self, remote: Remote) -> None:
        """A note says, once for a store, that nobody looks for signatures."""
        from obuild.remotes import known

        if not self.wish.trust:
            known.believe(self.store, remote.name, self.tell.note)

    def available(self, steps: Sequence[Step]) -> list[Step]:
        """The steps of a chain that need not be made, from the first: the store or a remote has their layers.

        A base counts if its image is here, because importing it is no work.
        """
        found = []
        for step in steps:
            if not (self.store.find(step.id) or _is_image_here(step) or step.id in self._found):
                break
            found.append(step)
        return found

    def has_all(self, steps: Sequence[Step]) -> bool:
        """Whether nothing has to be fetched or made: one remote has the result, and all that the store lacks."""
        if steps[-1].id not in self._found:
            return False
        remote, _ = self._found[steps[-1].id]
        missing = [step.id for step in steps if not self.store.find(step.id)]
        return all(id in self._found and self._found[id][0] is remote for id in missing)

    def show(self, step: Step, tell: Teller, *, log: bool) -> bool:
        """Report a layer that stays in its remote, with its log if that is wanted. False if it is lost."""
        remote, found = self._found[step.id]
        with self._using(remote.name) as open:
            if open is None:
                return False
            if log:
                from obuild.remotes.pull import config_of, read_file

                for data in read_file(open, found, config_of(open, found), "log"):
                    tell(Output(data))
            tell(InRemote(step.id, remote.name))
            return True
        return False

    def fetch(self, step: Step, tell: Teller) -> bool:
        """Fetch the layer of a step if a remote has it; the caller has the claim on it, and its parent in use.

        False if the step has to be made.
        """
        if step.id not in self._found or _is_image_here(step):
            return False
        remote, found = self._found[step.id]
        with self._using(remote.name) as open:
            if open:
                from obuild.bases import own_keys
                from obuild.remotes.pull import fetch

                with tell.phase("fetching", remote.name) as phase:
                    blocks = partial(own_keys.blocks, self.store)
                    fetch(self.store, open, found, blocks, progress=self._advancing(phase))
                tell.note(f"fetched from {remote.name}")
                return True
        return False

    def _advancing(self, phase: Phase) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            self.scope.check()
            phase.reach(done)

        return progress

    # -- writing

    def send(self, id: LayerId) -> None:
        """Send a new layer, with those below it that a remote lacks, as soon as earlier ones are sent."""
        if not self.wish.write:
            return
        with self._lock:
            self._sender = self._sender or ThreadPoolExecutor(1, thread_name_prefix="sending")
            self._sending.append(self._sender.submit(self.push, id))

    def push(self, id: LayerId) -> None:
        """Send a layer, with those below it that a remote lacks."""
        from obuild.remotes import known, trust
        from obuild.remotes.push import push

        for name in self.wish.names:
            try:
                with self._using(name) as remote:
                    if remote:
                        known.first(self.store, name, "written")
                        there = push(self.store, id, remote, progress=self._count)
                        for each in there:
                            if self.wish.sign:
                                trust.sign(remote, each.manifest.descriptor, self.wish.sign)
                        self._name_base(remote, there[0])
            except StoreError as error:  # somebody has just removed the layer
                self.tell.note(f"{error.message}; it is not sent")

    def _name_base(self, remote: Remote, layer: Found) -> None:
        """Tag the layer of a base in a remote with the names of its image, once in a build."""
        from obuild.remotes import bases

        for name in self._bases:
            if (remote.name, name) in self._named:
                continue
            base = catalog.look(self.store, name)
            if base and keys.base_id(base.digest) == layer.id:
                self._named.add((remote.name, name))
                bases.put(remote, name, layer, self.wish.sign)

    def _count(self, done: int, total: int) -> None:
        self.scope.check()
        self._sent = done

    def wait(self) -> None:
        """Wait until all is sent, and show how far it is."""
        left = {future for future in self._sending if not future.done()}
        if left:
            with self.tell.phase("sending", ", ".join(self.wish.names)) as phase:
                while left:
                    self.scope.check()
                    left = wait(left, timeout=PROGRESS_PERIOD).not_done
                    phase.advance(self._sent)
        for future in self._sending:
            future.result()

    # -- both

    @contextmanager
    def _using(self, name: str) -> Iterator[Remote | None]:
        """A remote, None if it has failed before. If the block fails because of it, a note says so."""
        from obuild.remotes.protocol import Unusable

        try:
            with self._lock:
                remote = None if name in self._failed else self.opened(name)
            yield remote
        except (Cancelled, StoreError, UsageError):
            raise
        except Unusable as error:
            if self.wish.required:
                raise
            self.tell.note(f"{error.message}; this build goes on without that layer")
        except ObuildError as error:
            if self.wish.required:
                raise
            self._failed.add(name)
            self.tell.note(f"{error.message}; this build goes on without {name}")

    def opened(self, name: str) -> Remote:
        """A remote, which is opened when it is first needed, and closed with the build."""
        if name not in self._remotes:
            from obuild.remotes import known

            access = self.wish.access._replace(known=known.names(self.store))
            self._remotes[name] = self._stack.enter_context(open_remote(name, access))
        return self._remotes[name]


def _is_image_here(step: Step) -> bool:
    """Whether a step imports a base image that is here: then its layer is not fetched."""
    return isinstance(step.action, Import) and step.action.base.path.exists()
