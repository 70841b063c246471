"""How long builds take: with a machine booted for each step, with warm machines, and with another program.

Run it on a quiet machine:  make bench-steps  or  .venv/bin/python -m bench.steps [--repeat N] [--peer CMD] …

It builds with the real program, as a user would, and prints for each base image a table of medians and their
ratios. The ways to build take turns, in changing order:
  cold    --vm boot
  first   --vm warm in a store whose base was never booted: includes saving for the next time
  warm    --vm warm after that
  peer    CMD build --store=qemu:DIR -f SPEC SRC
No build finds one of its own steps in the store; the base's layer and the cache exist beforehand. Below each
table are the targets for warm machines. It fails if one is not met.

Times of a build are from exec to exit. What happens within one is timed from outside, by when the records of
`--progress json` arrive here. So the pause from a step's last output to the next one's first includes the time
that obuild takes to seal a layer, and the start of a shell in the guest.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.depth import turns
from bench.overhead import KEPT, ROOT, first_layer, kvm_or_tcg
from bench.programs import FILES, Program, copy, copy_images, find_programs, images_of, make_sources
from bench.results import DEPTH, FIRST_OUTPUT, WINDOW, Results, table, targets
from bench.watch import Build, Failed, first_output
from obuild.bases import catalog, making
from obuild.errors import ObuildError
from obuild.executors.qemu import machine, ssh
from obuild.executors.qemu.shape import shape_for
from obuild.executors.settings import Settings
from obuild.host import qemu_img
from obuild.host.process import CancelScope
from obuild.store.layers import Store

#: The names of the ways in the plot.
NAMES = {"cold": "a boot for each step", "first": "warm, the first time", "warm": "warm"}

CACHED = 5000
CACHE = "(cache (small (target /var/small)))"
FILL = (
    f"cd /var/small; for d in {{1..{CACHED // 100}}}; do mkdir -p $d; "
    "for n in {1..100}; do printf %0400d $n >$d/$n; done; done"
)
APT = "apt-get update && apt-get install -y --no-install-recommends hello"


def echoes(count: int, mark: str) -> str:
    """Return steps that print something."""
    return " ".join(f'(run (shell "echo {number} # {mark}"))' for number in range(1, count + 1))


#: The ops of each case; `mark` is different each time, so that no two builds have a step in common.
CASES: dict[str, Callable[[str], str]] = {
    "true-1": lambda mark: f'(run (shell "true # {mark}"))',
    "true-10": lambda mark: echoes(10, mark).replace("echo", "true"),
    "apt": lambda mark: f'(run (network host) (shell "{APT} # {mark}"))',
    f"copy-{FILES}": lambda mark: f"(copy (src files) (dst /{mark}/))",
    f"cache-{CACHED}": lambda mark: f'(run {CACHE} (shell "find /var/small -type f | wc -l # {mark}"))',
    FIRST_OUTPUT: lambda mark: echoes(1, mark),
}


class Bench:
    """One base: its stores, and what is measured in them."""

    def __init__(self, name: str, images: Path, programs: dict[str, Program], folder: Path) -> None:
        self.results = Results(name)
        self._images = images
        self._programs = programs
        self._folder = folder
        self._seed = folder / "seed"
        self._count = 0

    def run(self, repeat: int) -> None:
        """Measure everything `repeat` times. Raises Failed or ObuildError if there is nothing to measure."""
        self._prepare()
        cases = self._cases()
        for number in range(repeat):
            self._measure_boot()
            for case in cases:
                for way in turns(self._programs, number):
                    self._measure(case, way)
            if "warm" in self._programs:
                self._measure_chains()

    def _prepare(self) -> None:
        """Make a store for each way, with the base's layer and the cache; for `warm`, also its saved machine."""
        fill = f'(run {CACHE} (shell "{FILL}"))'
        copy_images(self._images, self.results.base, self._seed)
        self._build("cold", fill, self._seed)
        for way in self._programs:
            if way == "peer":
                copy_images(self._images, self.results.base, self._folder / way)
                try:
                    self._build(way, fill)
                except Failed as error:
                    note(f"{way}: no cache could be made: {error}")
            elif way != "first":
                copy(self._seed, self._folder / way)
        if "warm" in self._programs:
            self._build("warm", CASES["true-1"](self._mark()))

    def _cases(self) -> list[str]:
        """Return the cases that work on this base."""
        if self.results.base.startswith("debian-"):
            try:
                self._build("cold", f'(run (network host) (shell "apt-get update # {self._mark()}"))')
                return list(CASES)
            except Failed as error:
                print(f"no apt on {self.results.base}, for it reaches no network: {error}")
        return [case for case in CASES if case != "apt"]

    def _measure(self, case: str, way: str) -> None:
        """Build once. If it fails, report that, and do not try the way in this case again."""
        if (case, way) in self.results.failed or (case == FIRST_OUTPUT and way not in ("cold", "warm")):
            return
        times = self.results.times.setdefault((case, way), [])
        try:
            with self._store(way) as store:
                build = self._build(way, CASES[case](self._mark()), store)
            if case == f"cache-{CACHED}" and build.told and build.printed.strip() != str(CACHED):
                raise Failed(f"the cache had {build.printed.strip()} files")
        except Failed as error:
            self.results.failed.add((case, way))
            note(f"{self.results.base}, {case}, {way}: failed: {error}")
            return
        times.append(first_output(build) if case == FIRST_OUTPUT else build.seconds)
        note(f"{self.results.base}, {case}, {way}: {times[-1]:.3f} s")

    def _measure_chains(self) -> None:
        """Build a long chain, then at once a short one, so that a host that slows down does not count as depth."""
        for count in (DEPTH + WINDOW // 2, WINDOW):
            try:
                build = self._build("warm", echoes(count, self._mark()))
            except Failed as error:
                note(f"{self.results.base}, {count} steps, warm: failed: {error}")
                self.results.failed.add((f"{count} steps", "warm"))
                return
            self.results.chains.append(build)
            note(f"{self.results.base}, {count} steps, warm: {build.seconds:.3f} s")

    def _measure_boot(self) -> None:
        """Return the time from the start of a machine to the login, which is how a cold step begins."""
        store = Store.open(self._seed)
        found = making.find(store, self.results.base, say=note)
        shape = shape_for(Settings(), found.card, kvm_or_tcg(store, found.card.arch))
        self.results.machine = f"{shape.cpus} vCPU, {shape.accel.upper()}"
        overlay = self._folder / "overlay.qcow2"
        qemu_img.create_overlay(overlay, str(first_layer(store, self.results.base)))
        started = time.perf_counter()
        with (
            machine.start(shape, overlay, CancelScope(), network=False) as guest,
            ssh.connect(guest, login=found.card.login, key=catalog.key_path(store, found.card)),
        ):
            self.results.boots.append(time.perf_counter() - started)
        overlay.unlink()
        note(f"{self.results.base}, boot alone: {self.results.boots[-1]:.3f} s")

    def _build(self, way: str, ops: str, store: Path | None = None) -> Build:
        stage = f"((from {self.results.base}) {ops})\n"
        return self._programs[way].build(store or self._folder / way, stage)

    def _mark(self) -> str:
        self._count += 1
        return f"{time.time_ns()}-{self._count}"

    @contextmanager
    def _store(self, way: str) -> Iterator[Path]:
        """Return the store that a way builds in; for `first` a new one each time."""
        if way != "first":
            yield self._folder / way
            return
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            copy(self._seed, Path(folder) / "store")
            yield Path(folder) / "store"


def note(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.steps")
    parser.add_argument("--base", action="append", metavar="NAME", help="default: micro and debian-12")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="how often all is measured (default: 3)"
    )
    parser.add_argument("--peer", default="", metavar="CMD", help="another program, to build with it too")
    parser.add_argument("--peer-name", default="OBuilder", help="how the plot calls it (default: OBuilder)")
    parser.add_argument("--obuild", default=str(Path(sys.executable).with_name("obuild")), metavar="CMD")
    text = "a store that has the base images; may be repeated"
    parser.add_argument("--store-from", action="append", type=Path, default=[], metavar="DIR", help=text)
    text = "where the plot goes, as steps.png (default: docs)"
    parser.add_argument("--out", type=Path, default=ROOT / "docs", metavar="DIR", help=text)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that it cleans up, as after Ctrl-C
    compileall.compile_dir(ROOT / "obuild", quiet=1)  # as in an installed package
    plots = importlib.util.find_spec("matplotlib") is not None
    if not plots:
        print("There will be no plot, for matplotlib is missing:  .venv/bin/pip install -e '.[bench]'")
    everything = []
    KEPT.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=KEPT.parent, prefix="bench-steps-") as name:
        make_sources(Path(name))
        programs = find_programs(options.obuild, options.peer, Path(name))
        if "warm" not in programs:
            print("This obuild has no --vm: every step boots a machine.")
        for base_name in options.base or ["micro", "debian-12"]:
            bench = Bench(base_name, images_of(base_name, options.store_from), programs, Path(name) / base_name)
            try:
                bench.run(options.repeat)
            except (Failed, ObuildError) as error:
                sys.exit(f"{base_name}: {error}")
            everything.append(bench.results)
            print(f"\n{bench.results.machine}; medians of {options.repeat}\n")
            print(*table(bench.results, list(programs)), "", *targets(bench.results), sep="\n", flush=True)
    if plots:
        from bench.plot import plot  # late: it may be missing

        names = {way: options.peer_name if way == "peer" else NAMES[way] for way in programs}
        print(f"\n{plot(everything, names, options.out / 'steps.png')}")
    sys.exit(0 if all(results.good() for results in everything) else "not all is reached")


if __name__ == "__main__":
    main()
