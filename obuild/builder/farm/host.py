"""What a worker does with an order: build in its own store, with the remote. How orders arrive is unknown here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from obuild.builder.chain import Builder
from obuild.builder.extract import Extractor
from obuild.builder.farm import order, sources
from obuild.builder.farm.shared import FarmSharing, Turns, drop_others
from obuild.builder.listener import Guarded, ListenerFailed
from obuild.builder.provision import Machines
from obuild.builder.sharing import Wish
from obuild.errors import ObuildError
from obuild.events import Listener, Teller
from obuild.executors.protocol import Executor
from obuild.guests import rules
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain, Command, Graft, Import, Step, Transfer
from obuild.remotes.layer import LARGEST_CONFIG, Blob
from obuild.remotes.protocol import Unusable
from obuild.store.layers import Store
from obuild.store.usage import storage_errors


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One order in hand: who hears of it, what cancels it, its turns to make steps, and how to get its secrets."""

    listener: Listener
    scope: CancelScope
    turns: Turns
    secrets: Callable[[], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """The store of a worker and its one remote."""

    store: Store
    wish: Wish
    make_room: Callable[[Teller], None] = lambda tell: None

    def read(self, blob: Blob) -> order.Order:
        """An order in the remote. ObuildError if it is not there, UsageError if we do not understand it."""
        with FarmSharing(self.store, self.wish, Teller(lambda event: None), CancelScope()) as sharing:
            try:
                return order.load(sources.get(sharing.remote, blob, LARGEST_CONFIG))
            except Unusable as error:
                hint = "clients and workers of a farm need the same remote"
                raise ObuildError(error.message, hint=hint) from error

    def carry_out(self, wanted: order.Order, job: Job) -> Blob | None:
        """Do what an order wants. The result of Files is a blob: JSON of a manifest.

        ObuildError as for Builder.build; StoreError and UsageError if this host cannot do it.
        """
        tell = Teller(Guarded(job.listener, threads=True))
        try:
            with (
                storage_errors(self.store.root),
                FarmSharing(self.store, self.wish, tell, job.scope, job.turns) as sharing,
                ExitStack() as stack,
            ):
                machines = Machines(self.store, wanted.settings, wanted.executor, job.scope)
                work = _Work(self, sharing, machines, job, tell, stack)
                if isinstance(wanted, order.Files):
                    return work.files(wanted)
                work.chain(wanted)
                return None
        except ListenerFailed as lost:
            with storage_errors(self.store.root):
                raise lost.error from None


def _no_machine() -> Executor:
    raise AssertionError("importing needs no machine")


@dataclass
class _Work:
    host: Host
    sharing: FarmSharing
    machines: Machines
    job: Job
    tell: Teller
    stack: ExitStack
    _extractors: dict[LayerId, Extractor] = field(default_factory=dict)

    def chain(self, wanted: order.Chain) -> None:
        """Make the layers of a chain and send them."""
        store, steps = self.host.store, wanted.steps
        drop_others(store, self.sharing.remote, [step.id for step in steps])
        self.sharing.need(steps[0])
        self._build(steps[:1], _no_machine)  # then the store knows how to boot it
        self.sharing.look(steps)
        made = {step.id for step in self.sharing.available(steps)}
        steps = tuple(step if step.id in made else self._with_files(step, wanted) for step in steps)
        base = self.machines.base_of(steps[0].id)
        left = [step.action for step in steps if step.id not in made]
        secret = any(isinstance(action, Command) and action.secrets for action in left)
        values = self.job.secrets() if secret else {}
        self._build(steps, self.machines.lazily(base, self.stack, self.tell), values)
        self.sharing.send(steps[-1].id)  # if a build that was interrupted has made it, and not sent it

    def _build(
        self, steps: tuple[Step, ...], executor: Callable[[], Executor], secrets: Mapping[str, bytes] | None = None
    ) -> None:
        base = steps[0].action
        assert isinstance(base, Import), "a chain begins with its base"
        builder = Builder(
            *(self.host.store, executor, self.tell, secrets or {}, self._archive),
            make_room=lambda: self.host.make_room(self.tell),
            sharing=self.sharing,
            scope=self.job.scope,
        )
        builder.build(Chain(steps, base.base))

    def _with_files(self, step: Step, wanted: order.Chain) -> Step:
        """The step with its files here, if it copies some."""
        if not isinstance(step.action, Transfer):
            return step
        if step.id not in wanted.packed:
            raise ObuildError(f"{self.sharing.remote.name} has lost the layer {step.id[:12]}", hint="build again")
        folder = self.stack.enter_context(self.host.store.sources_folder())
        try:
            tree = sources.unpack(self.sharing.remote, wanted.packed[step.id], step.action.tree, folder)
        except (ValueError, KeyError) as error:
            raise ObuildError(f"the files of a copy cannot be unpacked: {error}") from error
        return replace(step, action=step.action._replace(tree=tree))

    def _archive(self, graft: Graft, tell: Teller) -> Path:
        return self._extractor(graft.source, tell).checked_archive(graft, tell)

    def _extractor(self, layer: LayerId, tell: Teller) -> Extractor:
        if layer not in self._extractors:
            self.sharing.bring(layer, tell)
            self.stack.enter_context(self.host.store.use(layer))
            base = self.machines.base_of(layer)
            executor = self.machines.lazily(base, self.stack, tell)
            pax = base.card.os in rules.PAX
            self._extractors[layer] = Extractor(self.host.store, executor, layer, self.stack, pax)
        return self._extractors[layer]

    def files(self, wanted: order.Files) -> Blob:
        """Read the manifest of files of a layer, and send it."""
        manifest = self._extractor(wanted.layer, self.tell).manifest(wanted.extract, self.tell)
        return sources.put(self.sharing.remote, json.dumps(manifest).encode())
