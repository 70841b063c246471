"""THE MAIN FLOW: build one chain of steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.builder.inflight import Follower, failure, failure_word
from obuild.builder.reasons import Reasons
from obuild.errors import ObuildError, StepFailed, StoreError
from obuild.events import Hit, Missing, Output, Place, Saved, Started, Teller
from obuild.guests import profile
from obuild.host import failpoints, qemu_img, stamp
from obuild.host.mask import Mask
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.plan.steps import ABSENT, Base, Chain, Command, Graft, Import, Step, Transfer
from obuild.store.layers import Draft, Store

if TYPE_CHECKING:  # late: a cached build needs no executor
    from obuild.builder.sharing import Sharing
    from obuild.executors.protocol import Executor, OnFailure

#: How long a build waits for another process to finish writing to the index, in seconds.
INDEX_WAIT = 5.0


def _no_archive(action: Graft, tell: Teller) -> Path:
    raise TypeError("a copy from another build needs an extractor")


@dataclass(frozen=True, slots=True, eq=False)
class Builder:
    """What the build of one stage works with. `executor` is called when a machine is first needed.

    `make_room` is called before a layer is made; it raises a StoreError if there is no room for one. `on_failure`
    is called in the machine where a command has failed.
    """

    store: Store
    executor: Callable[[], Executor]
    tell: Teller
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    archive: Callable[[Graft, Teller], Path] = _no_archive
    make_room: Callable[[], None] = lambda: None
    on_failure: OnFailure | None = None
    sharing: Sharing | None = None
    scope: CancelScope = field(default_factory=CancelScope)

    def build(self, chain: Chain) -> LayerId:
        """Make the missing layers of a chain in order, and return the id of the last layer.

        Every layer reported as saved stays, whatever happens later. StepFailed if a command fails, Cancelled if
        `scope` is cancelled.
        """
        with (
            Reasons(self.store) as reasons,
            ExitStack() as tip,
        ):  # `tip` holds the current layer, and so all below it
            for step, tell in self.started(chain):
                with located(tell.place):
                    held = self.hold(step, tell, reasons)
                tip.pop_all().close()
                tip.push(held)
        return chain.steps[-1].id

    def show(self, chain: Chain) -> LayerId | None:
        """Report the layers of a chain that stay in a remote; returns the last one's id.

        None if the remote has failed on the way: then the chain has to be built.
        """
        assert self.sharing, "only a build with remotes finds layers there"
        for step, tell in self.started(chain):
            with located(tell.place):
                if held := self._found(step, tell):
                    held.close()
                elif not self.sharing.show(step, tell, log=step is chain.steps[-1]):
                    return None
        return chain.steps[-1].id

    def started(self, chain: Chain) -> Iterator[tuple[Step, Teller]]:
        """The steps of a chain, each with a teller for its place; reports the ops."""
        op = 0
        for step in chain.steps:
            self.scope.check()
            for heading in step.headings[:-1]:
                op += 1
                self.tell.of_op(op)(Started(heading))
            op += 1
            tell = self.tell.of_op(op, step.id)
            tell(Started(step.headings[-1]))
            yield step, tell
        for heading in chain.tail:
            op += 1
            self.tell.of_op(op)(Started(heading))

    def hold(self, step: Step, tell: Teller, reasons: Reasons) -> ExitStack:
        """Find the step's layer or make it: look, lock, look again. The layer is held until the stack closes."""
        if held := self._found(step, tell):
            return held
        with (
            Follower(self.store, step.id, tell, self.scope) as follower,
            self.store.claim(step.id, meanwhile=follower) as claim,
        ):
            follower.drain()
            if not claim.held:
                raise failure(claim.word)
            if held := self._found(step, tell, follower):
                return held
            if follower.heard:
                tell.note("that build was interrupted; this one builds the step")
            self.make_room()
            if self.sharing and self.sharing.fetch(step, tell) and (held := self._found(step, tell)):
                return held
            tell(self._missing(step, reasons))
            began = time.time()
            try:
                self._make(step, tell)
            except ObuildError as error:
                if not self.scope.cancelled:  # a cancelled step did not fail: whoever waits for it should try it
                    claim.leave(failure_word(error))
                raise
            self._remember(step, began, tell)
            tell(Saved(step.id, time.time() - began))
            if self.sharing:
                self.sharing.send(step.id)
            with ExitStack() as stack:  # while we have the claim, nobody can remove the layer
                if stack.enter_context(self.store.use(step.id)) is None:
                    raise StoreError(f"layer {step.id} was just removed from the store", hint="build again")
                return stack.pop_all()

    def _found(self, step: Step, tell: Teller, follower: Follower | None = None) -> ExitStack | None:
        """Report a hit and hold the layer until the stack closes. None if the layer is not there."""
        with ExitStack() as stack:
            layer = stack.enter_context(self.store.use(step.id))
            if layer is None:
                return None
            layer.open_log().close()
            tell(Hit(layer.id, layer.log, told=bool(follower and follower.told(layer.log))))
            return stack.pop_all()

    def _missing(self, step: Step, reasons: Reasons) -> Missing:
        """Say why the step has to be made. If the index or another layer is damaged, nothing can be said."""
        from obuild.store.index import Index  # late: a cached build needs no database

        with suppress(ObuildError, OSError):
            reasons.keep_open(INDEX_WAIT)
            with Index(self.store, wait=INDEX_WAIT) as index:
                return reasons.missing(step, index)
        return Missing()

    def _make(self, step: Step, tell: Teller) -> None:
        """Fill a draft with the step's result, and commit it."""
        with ExitStack() as stack:
            with tell.phase("preparing") as phase:
                draft = stack.enter_context(self.store.draft(step, phase.reach))
            match step.action:
                case Import(base):
                    with tell.phase("importing", str(base.path)):
                        self._import(base, draft, tell)
                case Command() as command:
                    self._run(command, draft, tell)
                case Transfer() as transfer:
                    with self.executor().open(draft, network=False, tell=tell) as session:
                        session.send(transfer)
                case Graft() as graft:
                    archive = self.archive(graft, tell)
                    with self.executor().open(draft, network=False, tell=tell) as session:
                        session.graft(graft, archive)
            with tell.phase("committing"):
                stack.close()

    def _import(self, base: Base, draft: Draft, tell: Teller) -> None:
        """Copy the base into the store, so that replacing its file changes nothing that was built on it.

        Its card is copied, too: it says how to boot the layers built on it, even after the base's own file is
        gone.
        """
        from obuild.bases import own_keys  # late: seldom needed

        if base.path == ABSENT:
            raise ObuildError(
                f"the base image {base.name} is not here, and its layer could not be fetched",
                hint="build again, or make or add the image: obuild base --help",
            )
        tell.note(f"importing {base.path}")
        qemu_img.import_image(qemu_img.inspect(base.path), draft.image)
        for offset, content in own_keys.blocks(self.store, base.card):
            qemu_img.write_at(draft.image, offset, content)
        for file in base.beside:
            qemu_img.copy(file.path, draft.image.with_name(file.name))
        (draft.path / profile.NAME).write_text(profile.dump(base.own_card or base.card), encoding="utf-8")
        for path, seen in ((base.path, base.stamp), *((file.path, file.stamp) for file in base.beside)):
            if stamp.of(path) != seen:
                raise ObuildError(f"{path} changed while it was imported", hint="build again when it is complete")

    def _run(self, command: Command, draft: Draft, tell: Teller) -> None:
        def output(data: bytes) -> None:
            draft.log.write(data)
            draft.log.flush()
            tell(Output(data))

        with ExitStack() as stack:
            copies = [stack.enter_context(self.store.caches.borrow(cache.name)) for cache in command.caches]
            session = stack.enter_context(self.executor().open(draft, network=command.network, tell=tell))
            with Mask((self.secrets[secret.name] for secret in command.secrets), output) as masked:
                outcome = session.run(command, [copy.path for copy in copies], self.secrets, masked)
            for copy, archive in zip(copies, outcome.caches, strict=True):
                copy.save(archive)
            failpoints.reach("step.done")
            if (status := outcome.status) != 0:
                if self.on_failure:
                    self.on_failure(session, command, status, tell)
                self.store.keep_log(draft)
                failed = StepFailed(f"{_quote(command.argv[-1])} failed with exit status {status}")
                failed.parent = draft.parent or ""
                raise failed

    def _remember(self, step: Step, began: float, tell: Teller) -> None:
        """Add the layer to the index. A failure is only noted: the next query of the index adds the layer."""
        from obuild.store.index import Index  # late: a cached build needs no database

        try:
            with Index(self.store, wait=INDEX_WAIT) as index:
                index.add(step.id, step.parent, step.headings[-1], began, time.time() - began)
        except StoreError as error:
            tell.note(f"the layer is saved, but not in the index yet: {error.message}")
        failpoints.reach("row.added")


def _quote(command: str) -> str:
    shown = command if len(command) <= 200 else command[:200] + "…"
    return f'"{shown}"'


@contextmanager
def located(place: Place) -> Iterator[None]:
    """Record in an error where in the build it happened, unless it already has a place."""
    try:
        yield
    except ObuildError as error:
        error.place = error.place or place
        raise
