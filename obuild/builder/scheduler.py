"""Builds independent stages in parallel. Only this module starts threads.

A stage waits for the builds inside it and for those that it can name. At most `jobs` stages build their chains at
a time. All report events as they happen: each event names its stage.
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
    """Builds one spec. If a stage fails, or the build is interrupted, `scope` is cancelled before it raises."""

    def __init__(self, make: Make, tell: Teller, jobs: int, scope: CancelScope) -> None:
        self._scope = scope
        self._make = make
        self._tell = tell
        self._room = threading.Semaphore(jobs)

    def build(self, stage: PlannedStage) -> Built:
        """Build a stage and those inside it. Raises the error of the first stage that failed."""
        failures: list[BaseException] = []

        def run(stage: PlannedStage, scope: Futures) -> Built:
            try:
                return self._run(stage, scope, start)
            except BaseException as error:
                failures.append(error)
                self._scope.cancel()
                raise

        # every stage has its own thread, so one that waits for others never keeps them from running
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
