r"""The `obuild` program with guests that do what each command says: `print a; wait go; print b`.

`print TEXT` prints a line, which may have escapes such as `\\x1b[2J`; `write TEXT` no newline. `wait NAME` waits
until the file NAME is in the folder OBUILD_SIGNS. `send SIZE` reports that half of so many bytes are sent, and
waits for the file `sent`. `flood SIZE` prints so many bytes, and `pause SECONDS` prints nothing, for benchmarks.
`fail` ends with the status 3.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from obuild import events
from obuild.__main__ import main
from obuild.events import SILENT, Teller
from obuild.executors.all import EXECUTORS
from obuild.executors.protocol import Outcome
from obuild.plan.steps import Command
from obuild.store.layers import Draft
from tests.support.fakes import FakeExecutor, FakeSession, ScriptedGuests

#: How often to look for a file that is waited for, in seconds.
_LOOK = 0.02

_LINE = b"x" * 99 + b"\n"


@dataclass
class _Session(FakeSession):
    tell: Teller = SILENT

    def run(
        self,
        command: Command,
        caches: Sequence[Path],
        secrets: Mapping[str, bytes],
        output: Callable[[bytes], object],
    ) -> Outcome:
        with self.tell.phase("running", "host" if command.network else ""):
            for order in command.argv[-1].split("; "):
                if status := _obey(order, output, self.tell):
                    return Outcome(status, ())
        return Outcome(0, ())

    def interact(self, command: Command) -> int:
        os.write(1, b"a shell\r\n")
        _await("shell")
        return 0


def _obey(order: str, output: Callable[[bytes], object], tell: Teller) -> int:
    word, _, rest = order.partition(" ")
    text = rest.encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1")
    match word:
        case "print":
            output(text + b"\n")
        case "write":
            output(text)
        case "wait":
            _await(rest)
        case "send":
            with tell.phase("sending", "stuff", int(rest)) as phase:
                phase.advance(int(rest) // 2)
                phase.report()
                _await("sent")
        case "flood":
            piece = _LINE * 655
            for _ in range(int(rest) // len(piece)):
                output(piece)
        case "pause":
            time.sleep(float(rest))
        case "fail":
            return 3
    return 0


def _await(name: str) -> None:
    while not (Path(os.environ["OBUILD_SIGNS"]) / name).exists():
        time.sleep(_LOOK)


class _Executor(FakeExecutor):
    @contextmanager
    def open(self, draft: Draft, *, network: bool, tell: Teller = SILENT) -> Iterator[FakeSession]:
        with tell.phase("booting"):
            draft.lay()
        yield _Session(self, draft, {}, tell)


def use() -> None:
    """Put scripted guests in place of real ones."""
    events.PROGRESS_PERIOD = 0.0
    EXECUTORS["qemu"] = ScriptedGuests(_Executor(files={"out": b"x"}))


if __name__ == "__main__":
    use()
    main()
