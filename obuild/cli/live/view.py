"""The live view: what is at work at the bottom of the terminal, and what is finished scrolls up above it.

Nothing is drawn, and rich is not imported, before something takes longer than a moment: a fully cached build only
prints its summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, BinaryIO

from obuild.cli.live.look import Look
from obuild.cli.live.rows import Facts, Row, rows, summary
from obuild.cli.live.state import State, Step
from obuild.cli.text import BLUE, RED, YELLOW, painted
from obuild.errors import ObuildError
from obuild.events import Done, Event, Hit, InRemote, Missing, Note, PhaseStarted, Saved, StageEnded
from obuild.host import printable, units

if TYPE_CHECKING:
    from obuild.cli.live.drawer import Drawer

#: How long after the beginning of the first phase drawing begins, in seconds: rich takes a tenth of it to import.
MOMENT = 0.5

#: How many lines of a failed step's output are shown.
FAILED = 20


class View:
    """A listener that shows a build on the terminal `out`; a context manager, which clears up whatever happens.

    `facts` is called now and then, by another thread. `tags` are those that the result gets.
    """

    def __init__(self, out: BinaryIO, look: Look) -> None:
        self._out = out
        self._look = look
        self.facts: Callable[[State], Facts] = lambda state: Facts()
        self.tags: Sequence[str] = ()
        self._state = State()
        self._folded: dict[str, int] = {}  # by stage: cached steps that were not shown yet
        self._lock: AbstractContextManager[object] = nullcontext()
        self._drawer: Drawer | None = None

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ObuildError):
            self._put(self._failure(error))
        drawer, self._drawer = self._drawer, None
        if drawer:
            drawer.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event.what, PhaseStarted) and self._drawer is None:
            self._start()
        with self._lock:
            lines = list(self._lines(event))
            self._state.apply(event)
        if isinstance(event.what, Done):
            lines += [(line, b"") for line in summary(self._state, self.tags)]
            lines.append((f'Got: "{event.what.id}"', b""))
        self._put(lines)

    def paused(self) -> AbstractContextManager[None]:
        """The terminal is the caller's until the block ends."""
        return self._drawer.paused() if self._drawer else nullcontext()

    def _start(self) -> None:
        import threading  # late: a fully cached build draws nothing

        from obuild.cli.live.drawer import Drawer

        self._lock = threading.Lock()
        self._drawer = Drawer(self._out, self._rows, self._look, delay=MOMENT)
        self._drawer.start()

    def _rows(self, columns: int, lines: int) -> Sequence[Row]:
        import time

        facts = self.facts(self._state)
        with self._lock:
            return rows(self._state, facts, time.time(), columns, lines)

    def _put(self, lines: Iterable[tuple[str, bytes]]) -> None:
        """Write lines, each with a colour, above what is drawn."""
        data = b"".join(painted(line, colour if self._look.colour else b"") + b"\n" for line, colour in lines)
        if not data:
            return
        if self._drawer:
            self._drawer.above(data)
        else:
            self._out.write(data)
            self._out.flush()

    # -- what scrolls up

    def _lines(self, event: Event) -> Iterator[tuple[str, bytes]]:
        """What an event adds above; the state is as it was before."""
        path = event.place.stage
        stage = self._state.stages.get(path)
        step = stage.step if stage else None
        match event.what:
            case Hit(told=True) if step:
                yield f"{_op(path, step)}  made by another build", BLUE
                yield from _output(step)
            case Hit() | InRemote():
                self._folded[path] = self._folded.get(path, 0) + 1
            case Missing():
                yield from self._unfold(path)
            case Saved(seconds=seconds) if step:
                yield f"{_op(path, step)}  {units.clock(seconds)}", BLUE
                yield from _output(step)
            case Note(text):
                yield printable.line(text), b""
            case StageEnded(name, seconds, failed) if not failed:
                if path or self._state.made:
                    yield from self._unfold(path)
                if name:
                    yield f'--> finished "{name}" in {units.clock(seconds)}', b""

    def _unfold(self, path: str) -> Iterator[tuple[str, bytes]]:
        if count := self._folded.pop(path, 0):
            yield f"---> {_name(path)}{units.count(count, 'step')} from the cache", YELLOW

    def _failure(self, error: ObuildError) -> Iterator[tuple[str, bytes]]:
        """The failed step, and the end of its output."""
        place = error.place
        stage = self._state.stages.get(place.stage) if place else None
        step = stage.step if stage else None
        if step and place and step.id == place.step:
            yield f"{_op(place.stage, step)}  failed", RED
            for line in step.output.last(FAILED):
                yield line, b""


def _output(step: Step) -> Iterator[tuple[str, bytes]]:
    lines = step.output.lines()
    if step.output.dropped:
        yield f"(the first {units.size(step.output.dropped)}: obuild logs {step.id[:12]})", YELLOW
    for line in lines:
        yield line, b""


def _op(path: str, step: Step) -> str:
    return f"{_name(path)}{printable.line(' '.join(step.text.split()))}"


def _name(path: str) -> str:
    return f"{path}: " if path else ""
