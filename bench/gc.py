"""Measure how long it takes to plan a collection of 10,000 layers.

    .venv/bin/python bench/gc.py [--layers N] [--runs N] [--remove]

It makes a store of tiny layers (chains of ten on one base), lets the index read them, and prints the median time
of a plan that would remove them all. It fails if that takes over a second. --remove carries the plan out, too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from obuild.store import gc
from obuild.store.index import Index
from obuild.store.layers import Store

TARGET = 1.0
DEPTH = 10


def fill(store: Store, count: int) -> None:
    """Make layers as a build leaves them, except for their images, which are a few bytes."""
    root = layer(store, "root", None)
    below = root
    for number in range(count - 1):
        below = layer(store, str(number), root if number % DEPTH == 0 else below)


def layer(store: Store, name: str, parent: str | None) -> str:
    key = f"((format 2){f'(parent {parent})' if parent else ''}(name {name}))"
    id = hashlib.sha256(key.encode()).hexdigest()
    folder = store.result / id
    (folder / "rootfs").mkdir(parents=True)
    for path, text in ((folder / "rootfs" / "image.qcow2", name), (folder / "key", key), (folder / "log", "")):
        path.write_text(text)
    return id


def timed(what: str, action: Callable[[], object]) -> None:
    """Print the seconds that a call takes."""
    started = time.perf_counter()
    action()
    print(f"{what}: {time.perf_counter() - started:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--remove", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "store")
        fill(store, options.layers)
        timed("the index learns them", lambda: learn(store))
        ours, cpu = [], time.process_time()
        for _ in range(options.runs):
            started = time.perf_counter()
            plan = gc.plan(store, now=time.time(), keep_bytes=0)
            ours.append(time.perf_counter() - started)
            assert len(plan.items) == len(os.listdir(store.result)) == options.layers
        cpu = (time.process_time() - cpu) / len(ours)
        median = statistics.median(ours)
        print(
            f"a plan for {options.layers:,} layers: {median:.2f} s "
            f"(target {TARGET} s, n = {len(ours)}, from {min(ours):.2f} to {max(ours):.2f} s; {cpu:.2f} s of CPU)"
        )
        if options.remove:
            timed("carrying it out", lambda: gc.carry_out(store, plan, lambda item: None))
    sys.exit(0 if median <= TARGET else "over the target")


def learn(store: Store) -> None:
    with Index(store) as index:
        index.rows()


if __name__ == "__main__":
    main()
