"""THE MAIN FLOW: one chain of steps, start to finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from obuild.builder.inflight import Follower, failure, failure_word
from obuild.errors import ObuildError, StepFailed, StoreError
from obuild.events import Hit, Listener, Note, Output, Saved, Started
from obuild.executors.protocol import Executor, OnFailure
from obuild.guests import profile
from obuild.host import failpoints, qemu_img
from obuild.host.mask import Mask
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.plan.steps import Base, Chain, Command, Graft, Import, Step, Transfer
from obuild.store.layers import Draft, Store

#: How long a build waits for another process that writes to the index, in seconds.
INDEX_WAIT = 5.0


def _no_archive(action: Graft) -> Path:
    raise TypeError("a copy from another build needs the means to look into it")


@dataclass(frozen=True, slots=True)
class Builder:
    """What a build works with. `executor` gives machines, and is asked once one is needed.

    `make_room` is called before a layer is made, and raises a StoreError if there is no room for one; `on_failure`
    in the machine in which a command has failed.
    """

    store: Store
    executor: Callable[[], Executor]
    tell: Listener
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    archive: Callable[[Graft], Path] = _no_archive
    make_room: Callable[[], None] = lambda: None
    on_failure: OnFailure | None = None
    scope: CancelScope = field(default_factory=CancelScope)

    def build(self, chain: Chain) -> LayerId:
        """Make the layers of a chain that the store has not got, in order, and return the last one's id.

        Every layer that was said to be saved stays, whatever comes after. StepFailed if a command fails, Cancelled
        if `scope` is.
        """
        with ExitStack() as tip:  # the layer we stand on: while it is held it stays, and so do those below it
            for step in chain.steps:
                self.scope.check()
                for heading in step.headings:
                    self.tell(Started(heading))
                held = self._hold(step)
                tip.pop_all().close()
                tip.push(held)
        for heading in chain.tail:
            self.tell(Started(heading))
        return chain.steps[-1].id

    def _hold(self, step: Step) -> ExitStack:
        """Make sure that the step's layer is there, and keep it from being removed until the stack closes."""
        while True:
            self._ensure(step)
            with ExitStack() as stack:
                if stack.enter_context(self.store.use(step.id)) is not None:
                    return stack.pop_all()
            self.tell(Note(f"layer {step.id} was removed just now; making it again"))

    def _ensure(self, step: Step) -> None:
        """Make the step's layer, or find that it is there: look, lock, look again."""
        if self._hit(step):
            return
        follower = Follower(self.store, step.id, self.tell, self.scope)
        with self.store.claim(step.id, meanwhile=follower) as claim:
            follower.drain()
            if not claim.held:
                raise failure(claim.word)
            if self._hit(step, follower):
                return
            if follower.heard:
                self.tell(Note("that build was interrupted; this one makes the step"))
            self.make_room()
            started = time.time()
            try:
                with self.store.draft(step) as draft:
                    self._make(step, draft)
            except ObuildError as error:
                if not self.scope.cancelled:  # whom we end ourselves did not fail: who waits should try
                    claim.leave(failure_word(error))
                raise
            self._remember(step, started)
            self.tell(Saved(step.id))

    def _hit(self, step: Step, follower: Follower | None = None) -> bool:
        layer = self.store.find(step.id)
        if layer is None:
            return False
        log = None
        with suppress(FileNotFoundError):  # then there is more to say of it
            log = b"" if follower and follower.told(layer.log) else None
        if log is None and (log := layer.read_log()) is None:
            return False
        self.tell(Hit(layer.id, log))
        return True

    def _make(self, step: Step, draft: Draft) -> None:
        """Fill the draft with the step's result, and leave it sealed."""
        match step.action:
            case Import(base):
                self._import(base, draft)
            case Command() as command:
                self._run(command, draft)
            case Transfer() as transfer:
                with self.executor().open(draft, network=False) as session:
                    session.send(transfer)
            case Graft() as graft:
                archive = self.archive(graft)
                with self.executor().open(draft, network=False) as session:
                    session.graft(graft, archive)

    def _import(self, base: Base, draft: Draft) -> None:
        """Take in a copy of the base, so that replacing its file changes nothing that was built on it.

        Its card goes in, too: it says how to boot what stands on it, long after the base's own file is gone.
        """
        self.tell(Note(f"importing {base.path}"))
        qemu_img.import_image(qemu_img.inspect(base.path), draft.image)
        for file in base.beside:
            qemu_img.copy(file.path, draft.image.with_name(file.name))
        (draft.path / profile.NAME).write_text(profile.dump(base.own_card or base.card), encoding="utf-8")
        for path, stamp in ((base.path, base.stamp), *((file.path, file.stamp) for file in base.beside)):
            if qemu_img.stamp(path) != stamp:
                raise ObuildError(f"{path} changed while it was imported", hint="build again when it is complete")

    def _run(self, command: Command, draft: Draft) -> None:
        def output(data: bytes) -> None:
            draft.log.write(data)
            draft.log.flush()
            self.tell(Output(data))

        with ExitStack() as stack:
            copies = [stack.enter_context(self.store.caches.borrow(cache.name)) for cache in command.caches]
            session = stack.enter_context(self.executor().open(draft, network=command.network))
            with Mask((self.secrets[secret.name] for secret in command.secrets), output) as masked:
                status = session.run(command, copies, self.secrets, masked)
            failpoints.reach("step.done")
            if status != 0:
                if self.on_failure:
                    self.on_failure(session, command, status)
                raise StepFailed(f"{_quote(command.argv[-1])} failed with exit status {status}")

    def _remember(self, step: Step, started: float) -> None:
        """Add the layer to the index. That is only for looking, and whoever looks adds what it lacks."""
        from obuild.store.index import Index  # late: a cached build needs no database

        try:
            with Index(self.store, wait=INDEX_WAIT) as index:
                index.add(step.id, step.parent, step.headings[-1], started, time.time() - started)
        except StoreError as error:
            self.tell(Note(f"the layer is there, but not in the index yet: {error.message}"))
        failpoints.reach("row.added")


def _quote(command: str) -> str:
    shown = command if len(command) <= 200 else command[:200] + "…"
    return f'"{shown}"'
