"""Independent stages side by side. Threads live here, and nowhere else.

A stage waits for the builds inside it and for those that it can name; at most `jobs` make their chains at a
time. What they tell is not mixed: one stage is heard live, the others' words are kept until it has finished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from obuild.events import Event, Listener, Note, Started
from obuild.host.process import CancelScope
from obuild.plan.steps import Built
from obuild.spec import Stage

Make = Callable[[Stage, Mapping[str, Built], Listener], Built]


class Parallel:
    """Builds one spec. If a stage fails, or we are interrupted, `scope` is cancelled before it is told."""

    def __init__(self, make: Make, tell: Listener, jobs: int, scope: CancelScope) -> None:
        self._scope = scope
        self._make = make
        self._turns = Turns(tell)
        self._room = threading.Semaphore(jobs)

    def build(self, stage: Stage) -> Built:
        """Build a stage with those inside it; raises what the first failing stage has raised."""
        failures: list[BaseException] = []

        def run(name: str, stage: Stage, scope: dict[str, Future[Built]]) -> Built:
            try:
                return self._run(name, stage, scope, start)
            except BaseException as error:
                failures.append(error)
                self._scope.cancel()
                raise

        # every stage has a thread of its own, so one that waits for others never keeps them from running
        with ThreadPoolExecutor(max_workers=_count(stage)) as pool:

            def start(name: str, stage: Stage, scope: dict[str, Future[Built]]) -> Future[Built]:
                return pool.submit(run, name, stage, scope)

            try:
                return start("", stage, {}).result()
            except BaseException as error:
                self._scope.cancel()
                pool.shutdown(wait=True)
                if isinstance(error, Exception) and failures:
                    raise failures[0] from error
                raise

    def _run(
        self,
        name: str,
        stage: Stage,
        scope: dict[str, Future[Built]],
        start: Callable[[str, Stage, dict[str, Future[Built]]], Future[Built]],
    ) -> Built:
        scope = dict(scope)
        inner = []
        for inner_name, inner_stage in stage.stages:
            scope[inner_name] = start(inner_name, inner_stage, dict(scope))
            inner.append(scope[inner_name])
        for future in inner:
            future.result()
        built = {known: future.result() for known, future in scope.items() if known in _origins(stage)}
        with self._room, self._turns.listener() as tell:
            if name:
                tell(Started(f'(build "{name}" …)'))
            made = self._make(stage, built, tell)
            if name:
                tell(Note(f'--> finished "{name}"'))
            return made


class Turns:
    """Lets one of several tell at a time."""

    def __init__(self, tell: Listener) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._waiting: list[Turn] = []

    def listener(self) -> Turn:
        return Turn(self)

    def hear(self, turn: Turn, event: Event) -> None:
        with self._lock:
            if self._waiting[0] is turn:
                self._tell(event)
            else:
                turn.kept.append(event)

    def join(self, turn: Turn) -> None:
        with self._lock:
            self._waiting.append(turn)

    def leave(self, turn: Turn) -> None:
        """The turn is over; the next ones are heard, and those that are over already go, too."""
        with self._lock:
            turn.over = True
            while self._waiting and self._waiting[0].over:
                self._waiting.pop(0)
                if self._waiting:
                    for event in self._waiting[0].kept:
                        self._tell(event)
                    self._waiting[0].kept.clear()


class Turn:
    """What one stage has to say."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.kept: list[Event] = []
        self.over = False

    def __enter__(self) -> Listener:
        self._turns.join(self)
        return lambda event: self._turns.hear(self, event)

    def __exit__(self, *why: object) -> None:
        self._turns.leave(self)


def _count(stage: Stage) -> int:
    return 1 + sum(_count(inner) for _, inner in stage.stages)


def _origins(stage: Stage) -> set[str]:
    """The builds that a stage copies from."""
    return {origin for op in stage.ops if (origin := getattr(op, "origin", None)) is not None}
