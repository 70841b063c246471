"""The overhead of obuild: over a guest's own boot and power-off, and, fully cached, over starting Python.

Run it on a quiet machine:  .venv/bin/python bench/overhead.py [--runs N]

It prints two ratios, each of medians taken in turns in this one run, and fails if one is over its target:
  one `true` on `micro`: the whole build / the same guest's power-on to SSH banner + power button to off  <= 1.25
  a fully cached 5-step build / python -c "import typer"                                                  <= 2
"""

from __future__ import annotations

import argparse
import compileall
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from obuild import spec
from obuild.bases import making
from obuild.builder.engine import Engine
from obuild.executors.qemu import kvm, machine, ssh
from obuild.executors.qemu.shape import Accel, Shape, shape_for
from obuild.executors.settings import Settings
from obuild.host import qemu_img
from obuild.host.process import CancelScope
from obuild.store.layers import Store

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".cache" / "bench-store"


def wall(argv: list[str | Path]) -> float:
    """Return the seconds that a program takes."""
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def bare_guest(image: Path, shape: Shape, scratch: Path) -> float:
    """Return the seconds of a bare guest: power-on to SSH banner, power button to off. No login in between."""
    overlay = scratch / "overlay.qcow2"
    overlay.unlink(missing_ok=True)
    qemu_img.create_overlay(overlay, str(image))
    started = time.perf_counter()
    with machine.start(shape, overlay, CancelScope(), network=False) as guest:
        ssh.wait_for_banner(guest, time.monotonic() + shape.boot_time).close()
        booted = time.perf_counter() - started
        started = time.perf_counter()
        guest.power_off()
    return booted + time.perf_counter() - started


def build_argv(store: Store, spec: Path) -> list[str | Path]:
    return [
        Path(sys.executable).with_name("obuild"),
        "build",
        f"--store=qemu:{store.root}",
        "-f",
        spec,
        spec.parent,
    ]


def first_layer(store: Store, name: str) -> Path:
    """Return the image that machines of a base boot. It has the store's keys; the base itself has none."""
    stage = spec.parse(f"((from {name}))".encode())
    return store.layer(Engine(Path(), store, Settings(), lambda event: None).build(stage)).image


def step_ratio(store: Store, shape: Shape, scratch: Path, runs: int) -> float:
    """Compare a build of one `true` with its guest alone. Return ratio / target."""
    image = first_layer(store, "micro")
    path = scratch / "true.spec"
    ours, guests = [], []
    for run in range(runs):
        guests.append(bare_guest(image, shape, scratch))
        path.write_text(f'((from micro) (run (shell "true # {time.time_ns()}-{run}")))')
        ours.append(wall(build_argv(store, path)))
    return report("one `true` on micro", "the guest alone", ours, guests, 1.25)


def cached_ratio(store: Store, scratch: Path, runs: int) -> float:
    """Compare a fully cached 5-step build with importing typer. Return ratio / target."""
    path = scratch / "cached.spec"
    steps = "".join(f'(run (shell "echo {number}"))' for number in range(4))
    path.write_text(f"((from micro) (workdir /src) (env A b) (copy (src cached.spec) (dst ./)) {steps})")
    wall(build_argv(store, path))
    ours, typer = [], []
    for _ in range(runs * 5):
        typer.append(wall([sys.executable, "-c", "import typer"]))
        ours.append(wall(build_argv(store, path)))
    return report("a cached 5-step build", "import typer", ours, typer, 2.0)


def report(what: str, beside: str, ours: list[float], theirs: list[float], target: float) -> float:
    """Print one line, and return ratio / target."""
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(
        f"{what}: {statistics.median(ours):.3f} s; {beside}: {statistics.median(theirs):.3f} s; "
        f"ratio {ratio:.2f} (target {target}, n = {len(ours)}, from {min(ours):.3f} to {max(ours):.3f} s)"
    )
    return ratio / target


def kvm_or_tcg(store: Store, arch: str) -> Accel:
    """Return what guests run on here."""
    return kvm.choose("auto", arch, memo=store.state / "accel.json", note=print)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    compileall.compile_dir(ROOT / "obuild", quiet=1)  # as in an installed package
    store = Store.open(KEPT)
    card = making.find(store, "micro", say=print).card
    shape = shape_for(Settings(), card, kvm_or_tcg(store, card.arch))
    with tempfile.TemporaryDirectory() as folder:
        worst = max(step_ratio(store, shape, Path(folder), runs), cached_ratio(store, Path(folder), runs))
    sys.exit(0 if worst <= 1 else "over the target")


if __name__ == "__main__":
    main()
