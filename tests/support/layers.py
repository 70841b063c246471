"""Layers made without a guest."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain, Step
from obuild.store.layers import Store
from tests.support.fakes import other_process


def make(store: Store, step: Step) -> None:
    """Make a layer as a build does, with only what a new draft has in it."""
    with store.claim(step.id), store.draft(step) as draft:
        if step.parent is None:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", draft.image, "1M"], check=True)
        else:
            draft.lay()
        draft.log.write(f"log of {step.headings[-1]}".encode())


def make_all(store: Store, chain: Chain) -> list[LayerId]:
    for step in chain.steps:
        make(store, step)
    return [step.id for step in chain.steps]


def save(store: Store, name: str, content: bytes) -> None:
    with store.caches.borrow(name) as copy:
        new = copy.path.with_suffix(".new")
        new.write_bytes(content)
        assert copy.save(new)


NOW = 1_700_000_000.0


DAY = 86400.0


FAT = 200_000


HOLD = """
import sys
from contextlib import ExitStack
from pathlib import Path
from obuild.store.layers import Store
store = Store(Path(sys.stdin.readline().strip()))
how, name = sys.stdin.readline().split()
with ExitStack() as stack:
    if how == "use":
        stack.enter_context(store.use(name))
    elif how == "cache":
        stack.enter_context(store.caches.borrow(name))
    else:
        stack.enter_context(store.claim(name))
        (store.result_tmp / name / "rootfs").mkdir(parents=True)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(store: Store, how: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """Have another process use something until the block ends."""
    with other_process(HOLD) as child:
        assert child.stdin
        assert child.stdout
        child.stdin.write(f"{store.root}\n{how} {name}\n")
        child.stdin.flush()
        assert child.stdout.readline() == "held\n"
        yield child


def used(path: Path, days: float) -> None:
    """Set the last use of a layer or a cache's folder to so many days ago."""
    os.utime(path, (NOW - days * DAY, NOW - days * DAY))


def fat_cache(store: Store, name: str, days: float) -> None:
    save(store, name, os.urandom(FAT))
    used(store.caches.file(name), days + 5)
    used(store.caches.file(name).parent, days)


#: In some tests, so many images make a long chain, so that a few layers are enough.
FEW = 4
