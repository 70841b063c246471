"""The cost of depth: a step, and random reads in a guest, at depth 1 and at the end of a chain of 100 layers.

Run it on a quiet machine:  .venv/bin/python -m bench.depth [--runs N]

It prints two ratios, each of medians taken in turns in this one run, and fails if one is over its target:
  the step `true` on 99 layers / the same on a base                                                   <= 1.15
  20,000 random reads of 4 KiB in a guest on 100 layers / the same bytes in one layer                 <= 1.3
and beside them, the times on 40 layers if no chain is flattened. More than some 44 do not work then: QEMU
concatenates the relative names of a chain's images, and no path may be longer than 4096 bytes.

The layers are made without guests, through the store as in a build, so it is the store that flattens. The disk
of `micro` is enlarged, and each layer writes its part of the new end, in pieces of 64 KiB, scattered over it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.overhead import KEPT, kvm_or_tcg, report
from obuild import spec
from obuild.bases import catalog, making, own_keys
from obuild.builder.engine import Engine
from obuild.events import Event, Saved, Started
from obuild.executors.qemu import machine, ssh
from obuild.executors.qemu.shape import shape_for
from obuild.executors.settings import Settings
from obuild.guests import linux
from obuild.host import qemu_img
from obuild.host.process import CancelScope
from obuild.plan.planner import plan
from obuild.plan.steps import Base, Chain, Import
from obuild.store import flatten
from obuild.store.layers import Store

DEPTH = 100
PLAIN = 40
READS = 20_000
PIECE = 64 << 10
PIECES = 4096
ROOT_SHELL = linux.root_shell("root")


@dataclass(frozen=True, slots=True)
class Deep:
    """A store with chains of fake layers. `longest` is the store's limit for unflattened chains."""

    store: Store
    longest: int
    start: int  # where on the disk the layers write, in bytes

    def chain(self, ops: str) -> Chain:
        """Plan ops on `micro`."""
        stage = spec.parse(f"((from micro) {ops})".encode())
        return plan(stage, source=Path(), bases={"micro": self.base("micro")}).chain()

    def base(self, name: str) -> Base:
        return making.find(self.store, name, say=print)


def layers(count: int, name: str = "layer") -> str:
    """Return this many ops."""
    return " ".join(f'(run (shell "{name} {number}"))' for number in range(count))


def make_layers(deep: Deep, chain: Chain) -> list[float]:
    """Make the missing layers of a chain, each with its part of the data; return the seconds for each draft."""
    pieces = random.Random(1).sample(range(PIECES), PIECES)
    count = len(chain.steps) - 1
    times = []
    for number, step in enumerate(chain.steps):
        if deep.store.find(step.id):
            continue
        started = time.perf_counter()
        with deep.store.claim(step.id), deep.store.draft(step) as draft:
            times.append(time.perf_counter() - started)
            if isinstance(step.action, Import):
                qemu_img.import_image(qemu_img.inspect(step.action.base.path), draft.image)
                for offset, content in own_keys.blocks(deep.store, step.action.base.card):
                    qemu_img.write_at(draft.image, offset, content)
                size = str(deep.start + PIECES * PIECE)
                subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", draft.image, size], check=True)
            else:
                draft.lay()
                mine = pieces[number - 1 :: count]
                lines = (f"write -q -P {number % 255 + 1} {deep.start + at * PIECE} {PIECE}\n" for at in mine)
                argv: list[str | Path] = ["qemu-io", "-f", "qcow2", draft.image]
                subprocess.run(argv, input="".join(lines), text=True, check=True, stdout=subprocess.DEVNULL)
    return times


def step_seconds(deep: Deep, ops: str) -> float:
    """Return the seconds from the start of a new last step to its layer; the layers below it exist."""
    flatten.LONGEST = deep.longest
    times: list[float] = []

    def tell(event: Event) -> None:
        match event.what:
            case Started():
                times.append(time.perf_counter())
            case Saved():
                times.append(time.perf_counter())

    text = f'((from micro) {ops} (run (shell "true # {time.time_ns()}")))'
    Engine(Path(), deep.store, Settings(), tell).build(spec.parse(text.encode()))
    return times[-1] - times[-2]


def random_reader(start: int, seed: int) -> bytes:
    """Return a program for x86_64 Linux that reads 4 KiB at READS random places from `start` on from its stdin."""
    code = b"\xbb" + READS.to_bytes(4, "little")  # mov ebx, READS
    code += b"\x41\xbc" + seed.to_bytes(4, "little")  # mov r12d, seed
    code += b"\x49\xbd" + (6364136223846793005).to_bytes(8, "little")  # mov r13, Knuth's factor
    code += b"\x49\xbf" + start.to_bytes(8, "little")  # mov r15, start
    # again: imul r12, r13; inc r12; mov r10, r12; shr r10, 33; and r10d, MASK; shl r10, 12; add r10, r15
    mask = PIECES * PIECE // 4096 - 1
    code += bytes.fromhex("4d0fafe5 49ffc4 4d89e2 49c1ea21 4181e2") + mask.to_bytes(4, "little")
    code += bytes.fromhex("49c1e20c 4d01fa")
    # pread64(0, rsp - 8192, 4096, r10) must return 4096; dec ebx; jnz again
    code += bytes.fromhex("31ff 488db42400e0ffff ba00100000 b811000000 0f05 3d00100000 7504 ffcb 75c3")
    code += bytes.fromhex("89df b83c000000 0f05")  # exit(ebx), which is 0 if all was read
    at = 0x400000
    whole = 64 + 56 + len(code)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + bytes.fromhex("0200 3e00 01000000")
    header += (at + 120).to_bytes(8, "little") + (64).to_bytes(8, "little") + bytes(8)
    header += bytes.fromhex("00000000 4000 3800 0100 0000 0000 0000")
    segment = bytes.fromhex("01000000 05000000") + bytes(8) + at.to_bytes(8, "little") * 2
    segment += whole.to_bytes(8, "little") * 2 + (4096).to_bytes(8, "little")
    return header + segment + code


@contextmanager
def guest_on(deep: Deep, chain: Chain) -> Iterator[ssh.Connection]:
    """A guest on a throw-away overlay of the last layer."""
    flatten.LONGEST = deep.longest
    found = deep.base("micro")
    shape = shape_for(Settings(), found.card, kvm_or_tcg(deep.store, found.card.arch))
    key = catalog.key_path(deep.store, found.card)
    last = chain.steps[-1].id
    with deep.store.scratch(last) as draft:
        draft.lay()
        print(f"  {len(chain.steps) - 1} layers: {len(deep.store.flats.chain(last))} images, limit {deep.longest}")
        with (
            machine.start(shape, draft.image, CancelScope(), network=False) as running,
            ssh.connect(running, login="root", key=key) as connection,
        ):
            yield connection


def read_seconds(connection: ssh.Connection, program: Path) -> float:
    """Return the seconds by the guest's clock that the reads take, with none of the disk cached in the guest."""
    connection.put(program, "/tmp/reads")
    script = b"""chmod +x /tmp/reads; echo 0 >/sys/block/vda/queue/read_ahead_kb; sync
        bash -c '
            echo 3 >/proc/sys/vm/drop_caches
            /tmp/reads </dev/null # brings the program itself back
            s=$EPOCHREALTIME; /tmp/reads </dev/vda && echo $(( ${EPOCHREALTIME/./} - ${s/./} ))'
    """
    said = bytearray()

    def whole(mark: str) -> bytes:
        return script + f"\nprintf '%s %d\\n' {mark} 0\n".encode()

    connection.run(ROOT_SHELL, whole, said.extend)
    return int(said) / 1e6


def size(folder: Path) -> int:
    """Return how many MiB the images below a folder take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("image.qcow2")) >> 20


def turns(kinds: Iterable[str], run: int) -> list[str]:
    """Yield the kinds in a changing order, so that none always comes after the same other one."""
    order = list(kinds)
    return order if run % 2 else order[::-1]


def prepare(root: Path, longest: int, depth: int) -> Deep:
    """A store with a chain of one layer and one of `depth`, made with this limit."""
    Store.open(root)
    for name in ("base-image", "state"):
        subprocess.run(["cp", "-a", "--reflink=auto", KEPT / name, root], check=True)
    store = Store.open(root)
    image = qemu_img.inspect(making.find(store, "micro", say=print).path)
    deep = Deep(store, longest, image.virtual_size)
    flatten.LONGEST = longest
    times = make_layers(deep, deep.chain(layers(depth)))
    make_layers(deep, deep.chain(layers(1, "all")))
    print(
        f"limit {longest}: layers {size(store.result)} MiB, flats {len(list(store.root.glob('flat/*')))} "
        f"with {size(store.flats.folder)} MiB; "
        f"a draft took {statistics.median(times):.3f} s, at most {max(times):.3f} s"
    )
    return deep


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    making.find(Store.open(KEPT), "micro", say=print)
    with tempfile.TemporaryDirectory(dir=KEPT.parent) as folder, ExitStack() as stack:
        ours = prepare(Path(folder) / "ours", flatten.LONGEST, DEPTH)
        plain = prepare(Path(folder) / "plain", 1 << 30, PLAIN)
        kinds = {"shallow": (ours, 0, layers(1, "all")), "deep": (ours, DEPTH - 1, layers(DEPTH))}
        kinds["plain"] = (plain, PLAIN - 1, layers(PLAIN))
        steps: dict[str, list[float]] = {kind: [] for kind in kinds}
        reads: dict[str, list[float]] = {kind: [] for kind in kinds}
        for run in range(runs):
            for kind in turns(kinds, run):
                deep, count, _ = kinds[kind]
                steps[kind].append(step_seconds(deep, layers(count)))
        guests = {
            kind: stack.enter_context(guest_on(deep, deep.chain(ops))) for kind, (deep, _, ops) in kinds.items()
        }
        program = Path(folder) / "reads"
        for run in range(runs):
            program.write_bytes(random_reader(ours.start, run + 1))
            for kind in turns(kinds, run):
                reads[kind].append(read_seconds(guests[kind], program))
    worst = 0.0
    for what, times, target in (("a step", steps, 1.15), (f"{READS} random reads", reads, 1.3)):
        worst = max(worst, report(f"{what} on {DEPTH} layers", "on one", times["deep"], times["shallow"], target))
        report(f"  not flattened, on {PLAIN}", "on one", times["plain"], times["shallow"], target)
    sys.exit(0 if worst <= 1 else "over the target")


if __name__ == "__main__":
    main()
