"""Output of stages built in parallel: one stage is shown live, the others after it.

The output of the others waits in files in the store, not in memory. These files hold the lines as they will
be shown, not references to logs: by then a log may be gone, as when a failure removes its draft.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import BinaryIO

from obuild.cli.text import Lines
from obuild.events import Event, StageEnded, StageStarted
from obuild.store.layers import Store
from obuild.store.usage import storage_errors


@dataclass(frozen=True, slots=True)
class _Spool:
    """The output of a stage that is not shown yet."""

    file: BinaryIO
    lines: Lines


class Turns:
    """A listener that shows one stage at a time on `lines`, in the order in which they began.

    StoreError if the store has no room for waiting output. Waiting output is discarded when the block ends.
    """

    def __init__(self, lines: Lines, store: Store) -> None:
        self._lines = lines
        self._store = store
        self._files = ExitStack()
        self._queue: list[str] = []  # paths of stages; the first is shown live
        self._over: set[str] = set()
        self._spools: dict[str, _Spool] = {}

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *why: object) -> None:
        self._files.close()

    def __call__(self, event: Event) -> None:
        path = event.place.stage
        if isinstance(event.what, StageStarted):
            self._queue.append(path)
        if path in self._queue[1:]:
            with storage_errors(self._store.root):
                self._spool(path).lines(event)
        else:
            self._lines(event)
        if isinstance(event.what, StageEnded):
            self._over.add(path)
            while self._queue and self._queue[0] in self._over:
                self._over.remove(self._queue.pop(0))
                if self._queue:
                    self._show(self._queue[0])

    def _spool(self, path: str) -> _Spool:
        if path not in self._spools:
            file = self._files.enter_context(self._store.spool())
            self._spools[path] = _Spool(file, self._lines.to(file))
        return self._spools[path]

    def _show(self, path: str) -> None:
        """Show the output of a stage so far."""
        self._lines.end_line()
        if spool := self._spools.pop(path, None):
            spool.file.seek(0)
            self._lines.append(spool.file)
            spool.file.close()
