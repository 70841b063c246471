"""Print events: as lines like OBuilder's, in colour on a terminal, or as JSON, one record per line."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from obuild.errors import ObuildError, SpecError, StepFailed
from obuild.events import (
    Done,
    Event,
    Hit,
    InRemote,
    Note,
    Output,
    Saved,
    StageEnded,
    StageStarted,
    Started,
)
from obuild.host.regular import open_file
from obuild.host.units import date as date
from obuild.host.units import size as size

if TYPE_CHECKING:
    from obuild.builder.preview import Outlook
    from obuild.store.inspect import Description, Neighbour

#: The longest error message that is shown, in characters: enough for twenty lines of a console and an explanation.
LONGEST = 6000

#: How many bytes of a log are read at a time.
_CHUNK = 1 << 16

#: Control characters except newline and tab: a guest may have put them into text that an error quotes.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}

BLUE, YELLOW, RED, OFF = b"\x1b[94m", b"\x1b[33m", b"\x1b[31m", b"\x1b[0m"


class Lines:
    """Writes events to `out` as lines. If a step's output does not end with a newline, one is added.

    `mixed` says whether lines of several stages can be told apart.
    """

    mixed = False

    def __init__(self, out: BinaryIO, *, colour: bool) -> None:
        self._out = out
        self._colour = colour
        self._midline = False

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *why: object) -> None:
        """Nothing to end."""

    def __call__(self, event: Event) -> None:
        match event.what:
            case StageStarted(name) if name:
                self._line(f'(build "{name}" …)', BLUE)
            case Started(text):
                self._line(text, BLUE)
            case Hit(id, log, told):
                if not told:
                    with open_file(log) as file:
                        self.copy(file)
                self._line(f'---> using "{id}" from cache', YELLOW)
            case InRemote(id, remote):
                self._line(f'---> "{id}" is in {remote}', YELLOW)
            case Output(data):
                self._raw(data)
            case Saved(id):
                self._line(f'---> saved as "{id}"', YELLOW)
            case Note(text):
                self._line(text, b"")
            case StageEnded(name, failed=False) if name:
                self._line(f'--> finished "{name}"', b"")
            case Done(id):
                self._line(f'Got: "{id}"', b"")

    def to(self, out: BinaryIO) -> Lines:
        """Return a writer with the same settings for another file."""
        return Lines(out, colour=self._colour)

    def copy(self, file: BinaryIO) -> None:
        """Write the rest of a file, from its current position."""
        while data := file.read(_CHUNK):
            self._raw(data)

    def append(self, file: BinaryIO) -> None:
        """Write the rest of a file that such a writer has written."""
        self.copy(file)

    def end_line(self) -> None:
        """End the current line, unless it is empty."""
        if self._midline:
            self._out.write(b"\n")
            self._midline = False

    def _raw(self, data: bytes) -> None:
        if data:
            self._out.write(data)
            self._out.flush()
            self._midline = not data.endswith(b"\n")

    def _line(self, text: str, colour: bytes) -> None:
        self.end_line()
        self._out.write(painted(text, colour if self._colour else b"") + b"\n")
        self._out.flush()


def painted(text: str, colour: bytes) -> bytes:
    """The bytes of a text, in a colour unless that is empty."""
    encoded = text.encode("utf-8", "surrogateescape")
    return colour + encoded + OFF if colour else encoded


class Quiet:
    """Writes only the id of the result. If a step fails, the end of its output goes to `err`."""

    def __init__(self, out: BinaryIO, err: BinaryIO) -> None:
        self._out = out
        self._err = err
        self._ends: dict[str, bytes] = {}  # by stage: the end of the current step's output
        self._failed = b""

    def __call__(self, event: Event) -> None:
        stage = event.place.stage
        match event.what:
            case Started():
                self._ends.pop(stage, None)
            case Output(data):
                self._ends[stage] = (self._ends.get(stage, b"") + data)[-LONGEST:]
            case StageEnded(failed=True):
                self._failed = self._failed or self._ends.get(stage, b"")
            case Done(id):
                self._out.write(id.encode() + b"\n")
                self._out.flush()

    def failed(self, error: BaseException) -> None:
        """Show the output of the failed step, since it is kept nowhere else."""
        if isinstance(error, StepFailed) and self._failed:
            self._err.write(self._failed.removesuffix(b"\n") + b"\n")
            self._err.flush()


class JsonLines:
    """Writes events to `out`, each as one JSON object on a line of its own; docs/json.md describes them.

    The event's place and time come first, then the fields of the record.

    A field that is not UTF-8 is base64, under its name with `_base64` appended, so no byte is lost.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def __call__(self, event: Event) -> None:
        from obuild.builder import records  # late: seldom needed

        self._put(records.record(event))

    def failed(self, error: BaseException) -> None:
        """Write a record of the failure, for programs that do not read stderr."""
        from obuild.builder import records

        self._put(records.failure(error, time.time()))

    def _put(self, record: dict[str, object]) -> None:
        import json

        self._out.write(json.dumps(record).encode("ascii") + b"\n")
        self._out.flush()


@contextmanager
def ending(tell: object) -> Iterator[None]:
    """Tell `tell` if the block fails, unless it is for people: `report` prints errors for them on stderr."""
    try:
        yield
    except BrokenPipeError:  # nobody reads any more
        raise
    except (ObuildError, OSError, KeyboardInterrupt) as error:
        if isinstance(tell, JsonLines | Quiet):
            tell.failed(error)
        raise


def report(error: ObuildError, *, what: str = "", file: str = "") -> None:
    """Print an error to stderr: where it is, what is wrong, and what to do."""
    where = f"{file}:" if file and isinstance(error, SpecError) else ""
    if where and isinstance(error, SpecError) and error.line:
        where += f"{error.line}:{error.column}:"
    message = " ".join(part for part in (where, what, error.message) if part)
    message, hint = _some_of(message).translate(_CONTROLS), _some_of(error.hint).translate(_CONTROLS)
    colour, off = (RED.decode(), OFF.decode()) if sys.stderr.isatty() else ("", "")
    lines = [f"{colour}obuild: {message}{off}"]
    if hint:
        lines.append(f"hint: {hint}")
    text = "\n".join(lines) + "\n"
    sys.stderr.flush()
    sys.stderr.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stderr.buffer.flush()


def _some_of(text: str) -> str:
    """Cut the middle out of a very long text: a message may quote something of any length."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


def ago(then: float) -> str:
    """Return how long ago `then` was, such as `3 d`."""
    seconds = max(0.0, time.time() - then)
    for span, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= span:
            return f"{seconds / span:.0f} {unit}"
    return f"{seconds:.0f} s"


def word(text: str) -> str:
    """Escape a word from an untrusted source, so that it is safe to print on a terminal."""
    return text if text and text.isprintable() else ascii(text)


def one_line(op: str, width: int) -> str:
    """Return the op on one line, cut off at `width` characters."""
    text = " ".join(op.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def outlook(steps: Sequence[Outlook]) -> Iterator[str]:
    """Yield the lines that show what a build would do. A reason that follows from an earlier step is left out."""
    for step in steps:
        yield f"{'cached' if step.cached else 'build':6}  {(step.id or '?')[:12]:12}  {one_line(step.op, 90)}"
        why = [reason for reason in step.why if reason != "parent changed"]
        for reason in why:
            yield f"        {reason}"
        if why and step.nearest:
            yield f"        (compared with {step.nearest[:12]})"
    count = sum(step.cached for step in steps)
    yield f"{count} of {len(steps)} {'step is' if len(steps) == 1 else 'steps are'} in the store"


def description(layer: Description) -> Iterator[str]:
    """Yield the lines that describe a layer."""
    from obuild.plan import diff

    made = date(layer.created)
    took = f", took {layer.seconds:.1f} s" if layer.seconds is not None else ""
    yield f"layer   {layer.id}"
    if layer.tags:
        yield f"tags    {', '.join(layer.tags)}"
    yield f"op      {one_line(layer.op, 400)}"
    yield f"made    {made}, {ago(layer.created)} ago{took}; last used {ago(layer.used)} ago"
    yield f"size    {size(layer.size)}; with all its ancestors {size(layer.total)}"
    yield f"log     {size(layer.log_size)}: obuild logs {layer.id[:12]}"
    yield "key"
    for name, lines in diff.describe(layer.key):
        for index, line in enumerate(_some(lines)):
            yield f"  {name if index == 0 else '':10}{line}"
    yield from _neighbours("ancestors", layer.parents)
    yield from _neighbours("children", layer.children)


def _some(lines: Sequence[str], most: int = 40) -> Iterator[str]:
    yield from lines[:most]
    if len(lines) > most:
        yield f"… and {len(lines) - most} more; --json shows all"


def _neighbours(title: str, layers: Sequence[Neighbour]) -> Iterator[str]:
    yield title if layers else f"{title}: none"
    for line in _some([f"{layer.id[:12]}  {one_line(layer.op, 90)}" for layer in layers]):
        yield f"  {line}"
