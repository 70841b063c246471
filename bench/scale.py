"""Check that a store of 100,000 layers feels like one of 100.

Run it on a quiet machine:  .venv/bin/python -m bench.scale [--layers N] [--runs N] [--folder DIR]

It makes both stores (some 2 GB in a temporary folder, removed at the end; one in /dev/shm is faster), runs
each command in both by turns, and prints medians and their ratio. It fails if one is over the target, 1.5. What
is above and below the table has no target, because it lists all of result/, or reads many keys: the first
look at a store without an index, a look after a change, a plan with a step that 10,000 layers may be similar to.
"""

from __future__ import annotations

import argparse
import compileall
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.overhead import ROOT, wall
from obuild import spec
from obuild.bases import making
from obuild.plan.keys import LayerId
from obuild.plan.planner import ROOT as ROOT_USER
from obuild.plan.planner import plan
from obuild.plan.steps import Command, Step
from obuild.store.layers import Store

TARGET = 1.5

#: How many steps each chain has.
DEPTH = 10

SPEC = "((from tiny) (env A b) (workdir /src) (run (shell {})) (copy (src .) (dst ./)) (run (shell {})))"


@dataclass(frozen=True, slots=True)
class Place:
    """A store with a spec that is built in it, one that lacks its last step, and one with only its base built."""

    store: Store
    built: Path
    changed: Path
    other: Path
    leaf: LayerId

    def argv(self, command: str, *args: str | Path) -> list[str | Path]:
        return [sys.executable, "-m", "obuild", command, f"--store=qemu:{self.store.root}", *args]

    def spec_argv(self, command: str, path: Path) -> list[str | Path]:
        return self.argv(command, "-f", path, path.parent / "src")


COMMANDS: dict[str, Callable[[Place], list[str | Path]]] = {
    "build, fully cached": lambda place: place.spec_argv("build", place.built),
    "ls": lambda place: place.argv("ls"),
    "ls --json --limit 10": lambda place: place.argv("ls", "--json", "--limit=10"),
    "log ID": lambda place: place.argv("logs", place.leaf),
    "log, ID's first digits": lambda place: place.argv("logs", place.leaf[:12]),
    "inspect": lambda place: place.argv("inspect", place.leaf[:12]),
    "plan, all there": lambda place: place.spec_argv("plan", place.built),
    "plan, a step changed": lambda place: place.spec_argv("plan", place.changed),
}


def make_place(root: Path, layers: int) -> Place:
    """Make a store with this many layers: a chain for a spec, and many others on the same base."""
    (root / "src").mkdir(parents=True)
    store = Store.open(root / "store")
    (root / "src/file").write_text("x")
    image = store.base_image / "tiny.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", image, "1M"], check=True)
    for name, commands in (("built", "ab"), ("changed", "ac"), ("other", "cb")):
        (root / name).write_text(SPEC.format(*commands))
    stage = spec.parse((root / "built").read_bytes())
    chain = plan(stage, source=root / "src", bases={"tiny": making.find(store, "tiny", say=print)}).chain()
    for step in chain.steps:
        with store.claim(step.id), store.draft(step) as draft:
            draft.log.write(f"log of {step.headings[-1]}\n".encode())
            if step.parent is None:
                draft.image.write_bytes(image.read_bytes())
            else:
                draft.lay()
    fill(store, chain.steps[0].id, layers - len(chain.steps))
    return Place(store, root / "built", root / "changed", root / "other", chain.steps[-1].id)


def fill(store: Store, parent: LayerId, count: int) -> None:
    """Put `count` layers into result/ without the steps that make a commit safe: chains that begin on `parent`."""
    none = "0" * 64
    template = store.root / "template.qcow2"
    backing = ["-b", f"../../../result/{none}/rootfs/image.qcow2", "-F", "qcow2"]
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-o", "cluster_size=512", *backing, template, "1M"],
        check=True,
    )
    before, after = template.read_bytes().split(none.encode())
    template.unlink()
    log = ""
    for number, step in enumerate(steps(parent, count)):
        folder = os.fspath(store.result / step.id)
        os.makedirs(f"{folder}/rootfs")  # noqa: PTH103  # 100,000 times: text is quicker than Path
        _write(f"{folder}/rootfs/image.qcow2", before + str(step.parent).encode() + after)
        _write(f"{folder}/key", step.key.encode())
        if number % DEPTH == 0:
            log = f"{folder}/log"
            _write(log, b"")
        else:
            os.link(log, f"{folder}/log")


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(data)


def steps(root: LayerId, count: int) -> Iterator[Step]:
    """Make `count` steps in chains of DEPTH."""
    parent = root
    for number in range(count):
        parent = parent if number % DEPTH else root
        step = Step(parent, Command(("bash", "-c", f"echo {number}"), "/", (), ROOT_USER, network=False))
        parent = step.id
        yield step


def compare(small: Place, large: Place, runs: int) -> float:
    """Print a line for each command, and return the worst ratio."""
    worst = 0.0
    print(f"{'':24}  {'small':>8}  {'large':>8}  ratio (target {TARGET}, medians of {runs})  of CPU time alone")
    for name, argv in COMMANDS.items():
        turns = [(spent(argv(small)), spent(argv(large))) for _ in range(runs)]
        walls, cpus = ([statistics.median(turn[at][kind] for turn in turns) for at in (0, 1)] for kind in (0, 1))
        ratio = walls[1] / walls[0]
        worst = max(worst, ratio)
        print(f"{name:24}  {walls[0]:6.3f} s  {walls[1]:6.3f} s  {ratio:5.2f}  {cpus[1] / cpus[0]:38.2f}")
    return worst


def spent(argv: list[str | Path]) -> tuple[float, float]:
    """Return the seconds that a program takes, and how many of them are CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = wall(argv)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def once(places: tuple[Place, Place], what: str, argv: Callable[[Place], list[str | Path]]) -> None:
    """Print how long one call of a command takes."""
    times = [wall(argv(place)) for place in places]
    print(f"{what:24}  {times[0]:6.3f} s  {times[1]:6.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--folder", type=Path, help="where to make the stores")
    options = parser.parse_args()
    compileall.compile_dir(ROOT / "obuild", quiet=1)  # as in an installed package
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="obuild-scale-") as name:
        started = time.perf_counter()
        places = make_place(Path(name) / "small", 100), make_place(Path(name) / "large", options.layers)
        print(f"made two stores of 100 and {options.layers} layers in {time.perf_counter() - started:.0f} s")
        once(places, "the first ls", lambda place: place.argv("ls"))
        worst = compare(*places, options.runs)
        for place in places:
            (place.store.result / "lost+found").mkdir()  # to stat(2) it looks as if a layer may have come
        once(places, "ls after a change", lambda place: place.argv("ls"))
        once(places, "plan, the first changed", lambda place: place.spec_argv("plan", place.other))
        subprocess.run(["rm", "-rf", *(place.store.root for place in places)], check=True)  # faster than Python
    sys.exit(0 if worst <= TARGET else "over the target")


if __name__ == "__main__":
    main()
