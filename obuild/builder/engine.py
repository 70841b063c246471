"""A whole build: check that it can work, then build each stage, after those that it copies from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.bases import making
from obuild.builder.chain import Builder, located
from obuild.builder.listener import Guarded, ListenerFailed
from obuild.builder.provision import Machines, as_os
from obuild.builder.stages import PlannedStage, outline, plan_stages
from obuild.errors import Cancelled, MachineError, ObuildError
from obuild.events import Done, Event, Listener, Output, Teller
from obuild.executors.settings import Settings
from obuild.guests import rules
from obuild.host import process
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.plan.planner import Plan, bases_of, plan
from obuild.plan.steps import ABSENT, Base, Built, Chain, Extract, Graft, Import, Step
from obuild.plan.tree import Manifest
from obuild.spec import Run, Shell, Stage
from obuild.store.layers import Store
from obuild.store.usage import storage_errors

if TYPE_CHECKING:
    from obuild.builder.extract import Extractor
    from obuild.builder.farm.client import Farm, FarmSource, FarmWish
    from obuild.builder.no_cache import Forgetter
    from obuild.builder.sharing import Sharing, Wish
    from obuild.executors.protocol import OnFailure


#: So many stages of a build wait for a farm at a time.
MOST_ORDERS = 1000


@dataclass(eq=False)
class Engine:
    """Builds specs from one source folder into one store, and reports to `listener`. `secrets` are values by id.

    The last layer gets the `tags`. `executor` names the kind of executor that runs the steps, from the table in
    `executors.all`. With `no_cache`, every command runs again. A `farm` needs `remotes`.
    """

    source: Path
    store: Store
    settings: Settings
    listener: Listener
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    jobs: int = 1
    make_room: Callable[[Teller], None] = lambda tell: None
    on_failure: OnFailure | None = None
    tags: Sequence[str] = ()
    executor: str = "qemu"
    no_cache: bool = False
    remotes: Wish | None = None
    farm: FarmWish | None = None
    _sharing: Sharing | None = field(default=None, init=False)
    _farm: Farm | None = field(default=None, init=False)
    _forgetter: Forgetter | None = field(default=None, init=False)
    _machines: Machines = field(init=False)
    _tell: Teller = field(init=False)
    _scope: CancelScope = field(default_factory=CancelScope, init=False)  # of the current build
    _cancelled: bool = field(default=False, init=False)  # permanent, while a scope ends with its build
    _held: ExitStack = field(default_factory=ExitStack, init=False)  # layers that must stay until the build ends

    def cancel(self) -> None:
        """End the build from another thread: `build` raises Cancelled as soon as it can, and on every later call.

        Machines are killed at once. Host programs such as qemu-img are left to finish. Complete layers stay.
        """
        self._cancelled = True
        self._scope.cancel()

    def build(self, stage: Stage) -> LayerId:
        """Build a stage and the builds inside it, and return the id of its last layer.

        UsageError, before anything is built, for every mistake that can be found then; afterwards what
        Builder.build raises. An exception of the listener ends the build, and is raised.
        """
        began = time.monotonic()
        self._tell = Teller(Guarded(self.listener, threads=self.jobs > 1 or self.remotes is not None))
        self._scope = CancelScope()
        self._machines = Machines(self.store, self.settings, self.executor, self._scope)
        try:
            if self._cancelled:  # perhaps before this scope existed
                self._scope.cancel()
            self._scope.check()
            with ExitStack() as stack:
                if self.remotes and self.farm:
                    self._farm = stack.enter_context(self._open_farm(self.remotes, self.farm, stack))
                    self._sharing = self._farm.sharing
                elif self.remotes:
                    from obuild.builder.sharing import Sharing  # late: seldom needed

                    self._sharing = stack.enter_context(Sharing(self.store, self.remotes, self._tell, self._scope))
                last = self._build(stage)
            self._tell(Done(last, time.monotonic() - began))
            return last
        except ListenerFailed as lost:
            raise lost.error from None
        except ObuildError as error:
            if self._cancelled and not isinstance(error, Cancelled):
                raise Cancelled("the build was cancelled") from error
            raise

    def _open_farm(self, remotes: Wish, farm: FarmWish, stack: ExitStack) -> Farm:
        from obuild.builder.farm.client import Farm  # late: seldom needed
        from obuild.builder.farm.shared import FarmSharing

        sharing = stack.enter_context(FarmSharing(self.store, remotes, self._tell, self._scope))
        settings = (self.settings, self.executor, self.secrets)
        return Farm(farm, sharing, self._scope, *settings, self._tell, self.jobs)

    def _build(self, stage: Stage) -> LayerId:
        with storage_errors(self.store.root), self._held:
            planned = self._plan(stage)
            if self.no_cache:
                from obuild.builder.no_cache import Forgetter  # late: seldom needed

                self._forgetter = Forgetter(self.store, self.tags)
                self._forgetter.forget([each.plan.known for each in planned.all()], self._tell)
            for each in planned.all():
                self._hold(each.plan.known)
                self._see_logs(each.plan.known)
            for each in planned.all():
                self._tell.of_stage(each.path)(outline(each, each.plan.known))
            jobs = MOST_ORDERS if self.farm else self.jobs
            if jobs > 1 and planned.inner:
                from obuild.builder.scheduler import Parallel

                built = Parallel(self.make, self._tell, jobs, self._scope).build(planned)
            else:
                built = self._in_order(planned, {})
            for name in self.tags:  # while we hold the layer
                self.store.tag(built.layer, name)
                self._tell.note(f"tagged {name}")
            return built.layer

    def _plan(self, stage: Stage) -> PlannedStage:
        """Find all bases, and make the missing ones; then plan all stages, which boots and makes nothing."""
        bases = {name: self._base(name) for name in bases_of(stage)}

        def one(stage: Stage, builds: Mapping[str, Stage]) -> Plan:
            return plan(
                stage,
                source=self.source,
                bases=bases,
                builds=builds,
                secrets=tuple(self.secrets),
                executor=self.executor,
            )

        return plan_stages(stage, one)

    def _base(self, reference: str) -> Base:
        found = self._sharing.base(reference) if self._sharing else None
        if found is None:
            phase = partial(self._tell.phase, "making base")
            found = making.find(self.store, reference, say=self._tell.note, making=phase, scope=self._scope)
        found = as_os(found, self.settings.os)
        self._machines.check(found)
        return found

    def _in_order(self, stage: PlannedStage, scope: Mapping[str, Built]) -> Built:
        scope = dict(scope)
        tell = self._tell.of_stage(stage.path)
        with tell.stage(stage.name):
            for inner in stage.inner:
                scope[inner.name] = self._in_order(inner, scope)
            return self.make(stage, scope, tell)

    def make(self, stage: PlannedStage, scope: Mapping[str, Built], tell: Teller) -> Built:
        """Build the chain of one stage. `scope` has the builds that it may copy from."""
        with located(tell.place), ExitStack() as stack:
            sources = {name: self._source(built, stack, tell) for name, built in scope.items()}

            def extract(request: Extract) -> tuple[LayerId, Manifest]:
                source = sources[request.origin]
                return source.layer, source.manifest(request, tell)

            def archive(graft: Graft, tell: Teller) -> Path:
                return sources[graft.extract.origin].checked_archive(graft, tell)

            chain = stage.plan.chain(extract)
            if stage.plan.origins:
                if self._forgetter:
                    self._forgetter.forget([chain.steps], tell)
                self._hold(chain.steps)
                tell(outline(stage, chain.steps))
            room = partial(self.make_room, tell)
            executor = self._machines.lazily(chain.base, stack, tell)
            builder = Builder(
                *(self.store, executor, tell, self.secrets, archive, room, self.on_failure),
                sharing=self._sharing,
                scope=self._scope,
            )
            if self._sharing:
                self._sharing.look(chain.steps)
                whole = bool(self.tags or self._sharing.wish.whole) and not stage.path
                if self._farm and self._farm.make(chain, builder, whole=whole):
                    self._hold(chain.steps)
                    return Built(chain.steps[-1].id, chain.base)
                stays = not whole and not stage.path and self._sharing.has_all(chain.steps)
                if stays and (layer := builder.show(chain)):
                    return Built(layer, chain.base)
            with self._farm.here() if self._farm else nullcontext():
                self._prepare(chain, room, tell)
                layer = builder.build(chain)
            self._hold(chain.steps)
            return Built(layer, chain.base)

    def _hold(self, steps: Sequence[Step]) -> None:
        """Hold the existing layers of a chain, so that nothing removes them until the build ends."""
        for step in reversed(steps):
            with ExitStack() as stack:
                if stack.enter_context(self.store.use(step.id)) is not None:
                    self._held.push(stack.pop_all())
                    return

    def _see_logs(self, steps: Sequence[Step]) -> None:
        """StoreError if a layer's log is missing: better now than after other layers have been built."""
        for step in steps:
            layer = self.store.find(step.id)
            if layer and not layer.log.is_file():
                with self.store.use(step.id) as held:  # it may just have been removed
                    if held:
                        held.open_log().close()

    def _source(self, built: Built, stack: ExitStack, tell: Teller) -> Extractor | FarmSource:
        here = partial(self._extractor, built, stack, tell)
        return self._farm.source(built, here) if self._farm else here()

    def _extractor(self, built: Built, stack: ExitStack, tell: Teller) -> Extractor:
        from obuild.builder.extract import Extractor  # late: only for copies from builds

        pax = built.base.card.os in rules.PAX
        return Extractor(self.store, self._machines.lazily(built.base, stack, tell), built.layer, stack, pax)

    def _prepare(self, chain: Chain, make_room: Callable[[], None], tell: Teller) -> None:
        """If a chain needs machines, check that everything they need is there."""
        missing = [step for step in chain.steps if self.store.find(step.id) is None]
        if missing:
            process.require("qemu-img")
            make_room()  # on a full disk, not even the result of the KVM probe could be saved
        there = self._sharing.available(chain.steps) if self._sharing else ()
        made = [step for step in missing if not isinstance(step.action, Import) and step not in there]
        if made and not (chain.base.path == ABSENT and chain.steps[0] in missing):
            self._machines.of(chain.base, tell)


def healthcheck(
    store: Store, *, base_name: str, settings: Settings, tell: Listener, executor: str = "qemu"
) -> None:
    """Run a new command on a base image, and remove its layer again. ObuildError if anything fails."""
    from uuid import uuid4

    from obuild.store import removal

    word = b"healthcheck"
    heard, end = False, b""

    def listen(event: Event) -> None:
        nonlocal heard, end
        if isinstance(event.what, Output):
            heard = heard or word in end + event.what.data
            end = (end + event.what.data)[-len(word) :]
        if not isinstance(event.what, Done):
            tell(event)

    # each check is a step of its own, so it is never found in the store
    os_name = settings.os or making.find(store, base_name, say=Teller(tell).note).card.os
    shell = () if os_name == "windows" else (Shell(("/bin/sh", "-c")),)
    stage = Stage(base_name, (*shell, Run(f"echo healthcheck # {uuid4()}")))
    made = Engine(Path(), store, settings, listen, executor=executor).build(stage)
    removal.delete(store, made, tell=lambda id: None)
    if not heard:
        raise MachineError("the guest ran the command but its output did not arrive")
