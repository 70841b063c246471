"""Feed every reader random errors for a while: python -m bench.fuzz SECONDS [READER…].

Inputs are those of tests/fuzz/targets.py, changed in a few places. With atheris installed (pip install atheris),
`python -m bench.fuzz --atheris SECONDS READER` lets it look for inputs that reach new code; one reader at a time.
It prints how many inputs were tried and how many were accepted. The first input that makes a reader raise anything
but an ObuildError, or take longer than SLOW, is kept in a file and ends the run.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.fuzz.targets import TARGETS, TOKENS, resealed, tried

#: How long one input may take, in seconds of this process.
SLOW = 10.0


def main(args: list[str]) -> int:
    if args[:1] == ["--atheris"]:
        return guided(int(args[1]), args[2])
    seconds = float(args[0]) if args else 60.0
    names = args[1:] or list(TARGETS)
    signal.signal(signal.SIGVTALRM, _slow)
    for name in names:
        if not spend(name, seconds / len(names)):
            return 1
    return 0


def spend(name: str, seconds: float) -> bool:
    """Try one reader; return False if it failed."""
    chance = random.Random(time.time_ns())
    count = taken = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(name, chance)
        signal.setitimer(signal.ITIMER_VIRTUAL, SLOW)
        try:
            taken += tried(name, data)
        except BaseException as error:
            print(f"{name}: {kept(data)}: {error!r}")
            return False
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        count += 1
    print(f"{name:10} {count:9} inputs, {taken:8} taken", flush=True)
    return True


def mutated(name: str, chance: random.Random) -> bytes:
    """Return one of a reader's inputs with some parts replaced, repeated, or moved."""
    corpus = TARGETS[name][1]
    data = chance.choice(corpus)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        at = chance.randrange(len(data) + 1)
        length = chance.choice((0, 0, 1, 2, chance.randrange(200)))
        piece = chance.choice(
            (
                chance.choice(TOKENS),
                chance.randbytes(chance.randrange(6)),
                data[at : at + length] * chance.choice((2, 3, 50)),
                chance.choice(corpus)[: chance.randrange(300)],
            )
        )
        data = data[:at] + piece + data[at + length :]
    return resealed(data) if name == "archives" and chance.random() < 0.8 else data


def guided(seconds: int, name: str) -> int:
    """Let atheris find inputs; does not return."""
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]  # installed by who wants it

    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(TARGETS[name][1]):
            (Path(corpus) / str(number)).write_bytes(data)
        atheris.Setup(
            [sys.argv[0], f"-max_total_time={seconds}", f"-timeout={SLOW:.0f}", "-max_len=8192", corpus],
            lambda data: tried(name, data) and None,
        )
        atheris.Fuzz()
    return 0


def kept(data: bytes) -> str:
    """Write an input to a file; return its path."""
    with tempfile.NamedTemporaryFile(prefix="fuzz-", delete=False) as file:
        file.write(data)
    return file.name


def _slow(number: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"more than {SLOW:g} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
