"""Independent stages side by side. Threads are made here, and nowhere else.

A stage waits for the builds inside it and for those that it can name; at most `jobs` make their chains at a
time. All of them tell what they do at once: each event says which stage it is of.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from obuild.builder.stages import PlannedStage
from obuild.events import Teller
from obuild.host.process import CancelScope
from obuild.plan.steps import Built

Make = Callable[[PlannedStage, Mapping[str, Built], Teller], Built]
Futures = dict[str, Future[Built]]
Start = Callable[[PlannedStage, Futures], Future[Built]]


class Parallel:
    """Builds one spec. If a stage fails, or we are interrupted, `scope` is cancelled before it is told."""

    def __init__(self, make: Make, tell: Teller, jobs: int, scope: CancelScope) -> None:
        self._scope = scope
        self._make = make
        self._tell = tell
        self._room = threading.Semaphore(jobs)

    def build(self, stage: PlannedStage) -> Built:
        """Build a stage with those inside it; raises what the first failing stage has raised."""
        failures: list[BaseException] = []

        def run(stage: PlannedStage, scope: Futures) -> Built:
            try:
                return self._run(stage, scope, start)
            except BaseException as error:
                failures.append(error)
                self._scope.cancel()
                raise

        # every stage has a thread of its own, so one that waits for others never keeps them from running
        with ThreadPoolExecutor(max_workers=len(list(stage.all()))) as pool:

            def start(stage: PlannedStage, scope: Futures) -> Future[Built]:
                return pool.submit(run, stage, scope)

            try:
                return start(stage, {}).result()
            except BaseException as error:
                self._scope.cancel()
                pool.shutdown(wait=True)
                if isinstance(error, Exception) and failures:
                    raise failures[0] from error
                raise

    def _run(self, stage: PlannedStage, scope: Futures, start: Start) -> Built:
        scope = dict(scope)
        inner = []
        for each in stage.inner:
            scope[each.name] = start(each, dict(scope))
            inner.append(scope[each.name])
        for future in inner:
            future.result()
        built = {known: future.result() for known, future in scope.items() if known in stage.plan.origins}
        tell = self._tell.of_stage(stage.path)
        with self._room, tell.stage(stage.name):
            return self._make(stage, built, tell)
