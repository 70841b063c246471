"""How fast native steps are, beside what else makes images: a chroot on ext4, buildah, the host, a machine.

Run it as root on a quiet host:  .venv/bin/python -m bench.native [--repeat N] [--machine] [CASE] …

The ways take turns, on the root file system of debian-12, so that ratios hold on a busy host, too. It prints
medians in seconds, and the targets; it fails if one is missed. A chroot is in the mounted raw disk of the same
image, and its time includes the unmount, as that of a step includes its commit. buildah is left out where it is
not installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from bench.overhead import KEPT
from bench.peers import Peers
from bench.programs import copy_images, images_of, make_sources
from bench.watch import Failed, step_costs, watch

BASE = "debian-12"
CACHED, SOURCES = 5000, 200
PACKAGES = (
    "bc bzip2 dc diffstat ed file hello jq less lsof nano patch pigz psmisc rsync strace time tree unzip zip"
)
GET = "DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends"
INSTALL = f"{GET} install {PACKAGES} >/dev/null"
COMPILE = "rm -f *.o && make -s -j2"
CACHES = {"debs": "var/cache/apt/archives", "lists": "var/lib/apt/lists"}
DEBS = "(cache (debs (target /var/cache/apt/archives)) (lists (target /var/lib/apt/lists)))"
SMALL = "(cache (small (target /c)))"
FILL = f"cd /c && for d in $(seq {CACHED // 100}); do mkdir $d; for n in $(seq 100); do echo $n >$d/$n; done; done"

#: Steps that fill the caches, and those that the compiler's own step stands on.
FILLED = (
    f'(run (network host) {DEBS} (shell "apt-get update -qq; {GET} -d install {PACKAGES}"))'
    f'(run {SMALL} (shell "{FILL}"))'
)
COMPILER = (
    f'(run (network host) {DEBS} (shell "{GET} install gcc libc6-dev make >/dev/null"))'
    "(copy (src c) (dst /source/))"
)


class Target(NamedTuple):
    """At most `most` seconds, or times the seconds of the way `over`."""

    case: str
    most: float
    over: str = ""


TARGETS = (
    Target("true-10", 1.5),
    Target("true-10", 1.0, "buildah"),
    Target("step", 0.10),
    Target("apt", 1.15, "chroot"),
    Target("apt", 1 / 8, "machine"),
    Target("compile", 1.05, "host"),
    Target("copy", 0.4),
    Target("cache", 0.2),
)


class Bench:
    """The store and the sources, in a folder. `mark` makes each step unlike any other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, 0

    def prepare(self, images: list[Path]) -> None:
        make_sources(self.folder)
        sources = self.folder / "src/c"
        sources.mkdir()
        for number in range(SOURCES):
            lines = (f'int f{number}_{n}(char *a) {{ return printf("%s {n}", a); }}\n' for n in range(50))
            (sources / f"f{number}.c").write_text("#include <stdio.h>\n#include <stdlib.h>\n" + "".join(lines))
        objects = " ".join(f"f{number}.o" for number in range(SOURCES))
        (sources / "Makefile").write_text(f"CFLAGS = -O2\nall: {objects}\n")
        store = self.folder / "store"
        copy_images(images_of(BASE, images), BASE, store)
        self.build(FILLED)

    def build(self, ops: str, kind: str = "native") -> tuple[float, list[float]]:
        """Build the ops; the seconds from exec to exit, and those of each step after the base."""
        self.mark += 1
        spec = self.folder / "spec"
        spec.write_text(f"((from {BASE}){ops.replace('MARK', f'{os.getpid()}-{self.mark}')})\n")
        store = f"--store={kind}:{self.folder / 'store'}"
        argv: list[str | Path] = [Path(sys.executable).with_name("obuild"), "build", store, "-f", spec]
        build = watch([*argv, "--progress", "json", self.folder / "src"], events=True)
        return build.seconds, step_costs(build)

    def last_step(self, op: str, kind: str = "native", below: str = "") -> float:
        """The seconds of a step, when the disk is mounted and the machine is resumed."""
        return self.build(f'{below}(run (shell "true # MARK")){op}', kind)[1][-1]


def cases(
    bench: Bench, peers: Peers, buildah: Callable[[str], float] | None, *, machine: bool
) -> dict[str, dict[str, Callable[[], float]]]:
    """How to measure each case in each way, in seconds."""
    trues = "".join(f'(run (shell "true # {n} MARK"))' for n in range(10))
    runs = "".join(f"RUN true # {n} MARK\n" for n in range(10))
    source = bench.folder / "src/c"

    def on_the_host() -> float:
        started = time.perf_counter()
        subprocess.run(COMPILE, shell=True, cwd=source, check=True)
        seconds = time.perf_counter() - started
        subprocess.run("rm -f *.o", shell=True, cwd=source, check=True)
        return seconds

    def by_buildah() -> float:
        assert buildah is not None
        bench.mark += 1
        return buildah(runs.replace("MARK", str(bench.mark)))

    apt = f'(run {DEBS} (shell "{INSTALL} # MARK"))'
    return {
        "true-10": {"native": lambda: bench.build(trues)[0], **({"buildah": by_buildah} if buildah else {})},
        "step": {"native": lambda: statistics.median(bench.build(trues)[1][1:])},
        "apt": {
            "native": lambda: bench.last_step(apt),
            "chroot": lambda: peers.in_chroot(INSTALL, CACHES),
            **({"machine": lambda: bench.last_step(apt, "qemu")} if machine else {}),
        },
        "compile": {  # the first time, this also makes what it stands on
            "native": lambda: bench.last_step(f'(run (shell "cd /source/c && {COMPILE} # MARK"))', below=COMPILER),
            "host": on_the_host,
        },
        "copy": {"native": lambda: bench.last_step("(copy (src files) (dst /MARK/))")},
        "cache": {"native": lambda: bench.last_step(f'(run {SMALL} (shell "ls /c/50 | wc -l # MARK"))')},
        "cached": {"native": lambda: bench.build(FILLED)[0]},
    }


def report(times: dict[tuple[str, str], list[float]]) -> bool:
    """Print the medians and the targets; return whether all that were measured are met."""
    medians = {key: statistics.median(found) for key, found in times.items()}
    for (case, way), seconds in medians.items():
        print(f"{case:10} {way:8} {seconds:8.3f} s   of {len(times[case, way])}")
    good = True
    for target in TARGETS:
        ours, other = medians.get((target.case, "native")), medians.get((target.case, target.over))
        if ours is None or (target.over and other is None):
            continue
        value = ours / other if other else ours
        good &= value <= target.most
        what = target.case + (f" / {target.over}" if target.over else "")
        print(f"{'met' if value <= target.most else 'MISSED':6} {what:18} {value:6.3f}, at most {target.most:.3f}")
    print("load of the host: " + " ".join(f"{load:.1f}" for load in os.getloadavg()))
    return good


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.native")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="how often all is measured (default: 3)"
    )
    parser.add_argument("--machine", action="store_true", help="install the packages in a warm machine, too")
    parser.add_argument(
        "--store-from", action="append", type=Path, default=[KEPT], help="a store that has the base"
    )
    parser.add_argument("case", nargs="*", help="only these cases")
    options = parser.parse_args()
    KEPT.parent.mkdir(exist_ok=True)
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(dir=KEPT.parent, prefix="bench-native-") as name:
        bench = Bench(Path(name))
        bench.prepare(options.store_from)
        peers = Peers(Path(name), Path(name) / f"store/base-image/{BASE}.qcow2")
        wanted = shutil.which("buildah") and "true-10" in (options.case or ["true-10"])
        with peers.buildah() if wanted else nullcontext() as buildah:
            ways = cases(bench, peers, buildah, machine=options.machine)
            for _ in range(options.repeat):
                for case in options.case or ways:
                    for way, measure in ways[case].items():
                        try:
                            times.setdefault((case, way), []).append(measure())
                        except (Failed, subprocess.CalledProcessError) as error:
                            sys.exit(f"{case}, {way}: {error}")
                        print(f"{case}, {way}: {times[case, way][-1]:.3f} s", file=sys.stderr, flush=True)
    sys.exit(0 if report(times) else 1)


if __name__ == "__main__":
    main()
