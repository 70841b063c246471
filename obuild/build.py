"""THE MAIN FLOW: one chain of steps, start to finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from obuild import disk
from obuild.errors import ObuildError, StepFailed, StoreError
from obuild.events import Event, Hit, Listener, Note, Output, Saved, Started
from obuild.plan import Base, Chain, Command, Import, LayerId, Step, Transfer
from obuild.store import CacheCopy, Draft, Layer, Store


class Session(Protocol):
    """An open machine on a draft."""

    def run(
        self, command: Command, copies: Sequence[CacheCopy], output: Callable[[bytes], object]
    ) -> int: ...
    def send(self, action: Transfer) -> None: ...


class Executor(Protocol):
    """Where steps run. Leaving the session seals the draft's image; leaving it by an exception does not."""

    def open(self, draft: Draft, *, network: bool) -> AbstractContextManager[Session]: ...


def build(chain: Chain, *, store: Store, executor: Executor | None, tell: Listener) -> LayerId:
    """Make the layers of a chain that the store has not got, in order, and return the last one's id.

    Every layer that was said to be saved stays, whatever comes after. `executor` may be None if the caller
    has seen all layers there; StoreError if one is gone by then. StepFailed if a command fails.
    """
    with ExitStack() as tip:  # the layer we stand on: while it is held nobody removes it, nor those below it
        for step in chain.steps:
            for heading in step.headings:
                tell(Started(heading))
            _ensure(step, store, executor, tell)
            held = ExitStack()
            held.enter_context(store.use(step.id))
            tip.pop_all().close()
            tip.push(held)
    for heading in chain.tail:
        tell(Started(heading))
    return chain.steps[-1].id


def _ensure(step: Step, store: Store, executor: Executor | None, tell: Listener) -> None:
    """Make the step's layer, or find that it is there: look, lock, look again."""
    if layer := store.find(step.id):
        tell(_hit(layer))
        return
    with store.claim(step.id):
        if layer := store.find(step.id):
            tell(_hit(layer))
            return
        started = time.time()
        with store.draft(step) as draft:
            _make(step, draft, store, executor, tell)
        _remember(step, store, started)
        tell(Saved(step.id))


def _make(step: Step, draft: Draft, store: Store, executor: Executor | None, tell: Listener) -> None:
    """Fill the draft with the step's result, and leave it sealed."""
    if executor is None:
        raise StoreError(f"layer {step.id} was removed from the store", hint="build again")
    match step.action:
        case Import(base):
            _import(base, draft, tell)
        case Command() as command:
            with ExitStack() as stack:
                copies = [stack.enter_context(store.borrow_cache(cache.name)) for cache in command.caches]
                session = stack.enter_context(executor.open(draft, network=command.network))
                status = session.run(command, copies, _output(draft, tell))
                if status != 0:
                    raise StepFailed(f"{_quote(command.argv[-1])} failed with exit status {status}")
        case Transfer() as transfer:
            with executor.open(draft, network=False) as session:
                session.send(transfer)


def _import(base: Base, draft: Draft, tell: Listener) -> None:
    """Take in a copy of the base, so that replacing its file changes nothing that was built on it."""
    tell(Note(f"importing {base.path}"))
    disk.import_image(disk.inspect(base.path), draft.image)
    if disk.stamp(base.path) != base.stamp:
        raise ObuildError(
            f"{base.path} changed while it was imported", hint="build again when it is complete"
        )


def _output(draft: Draft, tell: Listener) -> Callable[[bytes], None]:
    def output(data: bytes) -> None:
        draft.log.write(data)
        draft.log.flush()
        tell(Output(data))

    return output


def _hit(layer: Layer) -> Event:
    return Hit(layer.id, layer.log.read_bytes())


def _remember(step: Step, store: Store, started: float) -> None:
    from obuild.index import Index  # late: a cached build needs no database

    with Index(store) as index:
        index.add(step.id, step.parent, step.headings[-1], started, time.time() - started)


def _quote(command: str) -> str:
    shown = command if len(command) <= 200 else command[:200] + "…"
    return f'"{shown}"'
