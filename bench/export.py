"""Compare exports with the plain tools on the same data, and measure their memory and the time to clean a layer.

Run it on a quiet machine:  .venv/bin/python -m bench.export [--runs N] [--store DIR --layer ID] [CASE] …

Without a store, it exports the first layer of `debian-12`. For each type, obuild and the plain tool take turns. It
prints ratios of medians, of the time that passed and of the time on CPUs (which says more on a busy machine), and
fails if one is over its target. obuild also clears free space, flushes what it writes to the disk, and writes
checksums and documents. qemu-img does none of that: sync(1) follows it, `raw` is measured without checksums, and
`raw+sum` against qemu-img and sha256sum. An ISO image is compared with mksquashfs of the same files, and what
pushing adds to exporting a container disk with `skopeo copy`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.overhead import KEPT, first_layer
from obuild.bases import making
from obuild.builder.provision import Machines
from obuild.builder.sysprep import Cleaner
from obuild.events import SILENT
from obuild.executors.settings import Settings
from obuild.exports.cleaning.operations import pick
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from tests.support.registry import Running, registry

PROGRAM = Path(sys.executable).with_name("obuild")

#: In MiB, whatever the size of the disk.
MEMORY = 200

#: To clean a layer that has a saved machine, in seconds.
CLEANING = 3.0

VMDK = "subformat=streamOptimized,adapter_type=lsilogic,hwversion=13"


class Case(NamedTuple):
    """A type, the plain tool's arguments for an image and a new file, and how much longer obuild may take.

    `options` are those of obuild. With `summed`, the plain tool is followed by sha256sum, which takes most of the
    time for a disk with holes.
    """

    type: str
    tool: Callable[[Path, Path], list[str | Path]]
    target: float
    options: tuple[str, ...] = ()
    summed: bool = False


def convert(*options: str) -> Callable[[Path, Path], list[str | Path]]:
    return lambda image, out: ["qemu-img", "convert", "-f", "qcow2", *options, image, out]


CASES = (
    Case("raw", convert("-O", "raw"), 1.1, options=("--no-checksums", "--no-sbom")),
    Case("raw", convert("-O", "raw"), 1.1, summed=True),
    Case("qcow2", convert("-c", "-O", "qcow2", "-o", "compression_type=zstd"), 1.1),
    Case("vmdk", convert("-O", "vmdk", "-o", VMDK), 1.1),
)


#: Of an ISO image to mksquashfs, and of pushing to skopeo.
ISO, PUSH = 1.2, 1.2


class Spent(NamedTuple):
    """Seconds by the clock and on CPUs, and the largest process in MiB; programs that it has run are included."""

    wall: float
    cpu: float
    memory: float


def spent(argv: list[str | Path]) -> Spent:
    started = time.perf_counter()
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{argv[0]} failed: {' '.join(map(str, argv))}")
    return Spent(time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def compare(case: Case, store: Store, layer: LayerId, runs: int) -> float:
    """Compare one type with the plain tool. Return ratio / target."""
    ours, plain = [], []
    image = store.layer(layer).image
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=store.root.parent) as folder:
            made = Path(folder) / "plain"
            steps: list[list[str | Path]] = [case.tool(image, made), ["sync", made]]
            if case.summed:
                steps.append(["sha256sum", made])
            took = [spent(step) for step in steps]
            plain.append(Spent(sum(each.wall for each in took), sum(each.cpu for each in took), took[0].memory))
        with tempfile.TemporaryDirectory(dir=store.root.parent) as folder:
            ours.append(export(store, layer, case.type, Path(folder), *case.options))
    tool = f"qemu-img, sync{', sha256sum' if case.summed else ''}"
    return told(case.type, ours, tool, plain, case.target)


def told(what: str, ours: Sequence[Spent], tool: str, plain: Sequence[Spent], target: float | None) -> float:
    """Print a comparison, and return how far it is over its target, if any."""
    wall, cpu = (
        statistics.median(each[field] for each in ours) / statistics.median(each[field] for each in plain)
        for field in (0, 1)
    )
    memory = max(each.memory for each in ours)
    print(
        f"{what}: {statistics.median(each.wall for each in ours):.2f} s; "
        f"{tool}: {statistics.median(each.wall for each in plain):.2f} s; "
        f"ratio {wall:.2f}, on CPUs {cpu:.2f} (target {target or 'none'}); {memory:.0f} MiB (target {MEMORY})",
        flush=True,
    )
    return max(wall / (target or wall), memory / MEMORY)


def iso(store: Store, layer: LayerId, runs: int) -> float:
    """Compare a live ISO image with mksquashfs of the files that are in it. Return ratio / target.

    That is mksquashfs as it comes, with gzip. A line without a target compares with it at the level of zstd that
    the ISO has, whose image is 3 % larger: what else an ISO takes, and reading the layer.
    """
    ours, plain, quick = [], [], []
    with tempfile.TemporaryDirectory(dir=store.root.parent) as folder:
        export(store, layer, "dir", Path(folder) / "files")
        (tree,) = (path for path in (Path(folder) / "files").iterdir() if path.is_dir())
        for number in range(runs):
            squashed = Path(folder) / f"{number}.squashfs"
            squash: list[str | Path] = ["mksquashfs", tree, squashed, "-no-progress", "-quiet", "-noappend"]
            plain.append(spent(squash))
            quick.append(spent([*squash, "-comp", "zstd", "-Xcompression-level", "3"]))
            ours.append(export(store, layer, "iso", Path(folder) / f"iso{number}"))
    told("iso", ours, "mksquashfs at the same level", quick, None)
    return told("iso", ours, "mksquashfs", plain, ISO)


def push(store: Store, layer: LayerId, runs: int) -> float:
    """Compare sending a container disk to a registry with skopeo. Return ratio / target."""
    ours, plain = [], []
    with tempfile.TemporaryDirectory(dir=store.root.parent) as folder:
        for number in range(runs):
            place = Path(folder) / str(number)
            exported = export(store, layer, "containerdisk", place / "out")
            (layout,) = (path for path in (place / "out").iterdir() if path.is_dir())
            with new_registry(place / "ours") as running:
                argv = ["publish", layer, f"oci://{running.host}/bench:x", "--insecure", "--no-sysprep"]
                published = spent([PROGRAM, *argv, f"--store=qemu:{store.root}"])
            ours.append(Spent(published.wall - exported.wall, published.cpu - exported.cpu, published.memory))
            with new_registry(place / "plain") as running:
                argv = ["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
                plain.append(spent(["skopeo", *argv, f"oci:{layout}", f"docker://{running.host}/bench:x"]))
    return told("push", ours, "skopeo", plain, PUSH)


@contextmanager
def new_registry(folder: Path) -> Iterator[Running]:
    folder.mkdir()
    with registry(folder) as running:
        yield running


def export(store: Store, layer: LayerId, type: str, out: Path, *options: str) -> Spent:
    return spent([PROGRAM, "export", layer, "--type", type, *options, f"--store=qemu:{store.root}", "-o", out])


def cleaning(store: Store, layer: LayerId, runs: int) -> float:
    """Measure how long cleaning a layer takes that has a saved machine. Return seconds / target."""
    cleaner = Cleaner(store, Machines(store, Settings()), layer, pick(""), SILENT)
    cleaner.listed()  # so that there is one
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        with cleaner.cleaned():
            times.append(time.perf_counter() - started)
    print(f"cleaning: {statistics.median(times):.2f} s (target {CLEANING} s)")
    return statistics.median(times) / CLEANING


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--layer", default="")
    parser.add_argument(
        "cases", nargs="*", metavar="CASE", help="raw, raw+sum, qcow2, vmdk, iso, push, cleaning; or all"
    )
    given = parser.parse_args()
    store = Store.open(given.store or KEPT)
    if not given.store:
        making.find(store, "debian-12", say=print)
    layer = LayerId(given.layer or first_layer(store, "debian-12").parent.parent.name)
    cases: dict[str, Callable[[Store, LayerId, int], float]] = {}
    cases |= {f"{case.type}{'+sum' if case.summed else ''}": partial(compare, case) for case in CASES}
    cases |= {"iso": iso, "push": push, "cleaning": cleaning}
    over = [name for name in given.cases or cases if cases[name](store, layer, given.runs) > 1]
    sys.exit(f"over a target: {', '.join(over)}" if over else 0)


if __name__ == "__main__":
    main()
