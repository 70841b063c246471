"""Choose a machine's accelerator. The existence of /dev/kvm does not mean that KVM can run a guest, so try one.

The result is kept in the store for this boot of the host and this QEMU.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

from obuild.errors import UsageError
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.shape import Accel
from obuild.guests.profile import ARCH_ALIASES
from obuild.host import process, stamp
from obuild.host.fs import in_memory, replace_text
from obuild.host.regular import read_text

KVM = Path("/dev/kvm")

#: In seconds. A working KVM runs the probe in about 0.1 s; one that emulates instructions takes forever.
PROBE_TIMEOUT = 10.0

#: A boot sector: real mode to 64-bit long mode with paging, 20 million turns of a loop, then a write of
#: SLP_EN to the PM1a control port of QEMU's `pc` (0x604), which powers the machine off.
#:
#:     cli; clear segments; page tables at 0x1000, one 2 MiB page, identity
#:     cr4.PAE, EFER.LME, cr0.PE|PG; lgdt; far jump to 64-bit code
#:     mov $20000000, %ecx; 1: dec %ecx; jnz 1b; mov $0x604, %dx; mov $0x2000, %ax; outw; 2: hlt; jmp 2b
#: For other hosts, see `_probe_argv`.
PROBE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007c66bf001000000f22df6631c066b9000c000066f3ab66c70600100320000066c706002003"
    "30000066c7060030830000000f20e06683c8200f22e066b9800000c00f32660d000100000f300f20c0660d010000800f"
    "22c00f0116a07cea6c7c0800b9002d3101ffc975fc66ba040666b8002066eff4ebfd660f1f4400000000000000000000"
    "00000000009a200000000000009200001700887c"
).ljust(510, b"\0") + b"\x55\xaa"  # fmt: skip


#: The same for aarch64, loaded by QEMU as if it were a kernel: the loop, then PSCI's SYSTEM_OFF.
#:
#:     mov x1, #20000000; 1: subs x1, x1, #1; b.ne 1b; mov w0, #0x84000008; hvc #0; 2: wfi; b 2b
PROBE_AARCH64 = b"".join(
    word.to_bytes(4, "little")
    for word in (0xD285A001, 0xF2A02621, 0xF1000421, 0x54FFFFE1, 0x52800100, 0x72B08000, 0xD4000002, 0xD503207F,
                 0x17FFFFFF)
)  # fmt: skip


def choose(wanted: str, arch: str, *, memo: Path, note: Callable[[str], None]) -> Accel:
    """Return the accelerator for `wanted`: `kvm`, `tcg`, or `auto`, which is KVM if it really runs a guest.

    If auto falls back, `note` is called once for each boot of the host. UsageError if KVM is wanted but does not
    work.
    """
    if wanted == "tcg":
        return "tcg"
    if wanted not in ("auto", "kvm"):
        raise UsageError(f"unknown accelerator {wanted!r}", hint="--qemu-accel auto, kvm or tcg")
    problem, fresh = _verdict(arch, memo)
    if not problem:
        return "kvm"
    if wanted == "kvm":
        raise UsageError(f"KVM cannot be used: {problem}", hint="--qemu-accel tcg emulates, slowly")
    if fresh:
        note(f"KVM cannot be used ({problem}); emulating with TCG, which is several times slower")
    return "tcg"


def _verdict(arch: str, memo: Path) -> tuple[str, bool]:
    """Return why KVM does not work ("" if it does), and whether it was probed just now."""
    key = [stamp.boot_id(), arch, _qemu_stamp(arch)]
    try:
        kept = json.loads(read_text(memo))
        if kept["key"] == key:
            return str(kept["problem"]), False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    problem = probe(arch)
    replace_text(memo, json.dumps({"key": key, "problem": problem}))
    return problem, True


def probe(arch: str) -> str:
    """Run a tiny guest under KVM. Return why it failed, or "" if it ran to its end."""
    host = ARCH_ALIASES.get(platform.machine(), platform.machine())
    if arch != host:
        return f"the guest is {arch}, this machine {host}"
    if not KVM.exists():
        return "there is no /dev/kvm"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "no permission to open /dev/kvm; add yourself to the group kvm"
    # There is no probe for other architectures, and no known case of a broken KVM there: trust /dev/kvm.
    return _run_probe(arch) if arch in ("x86_64", "aarch64") else ""


def _run_probe(arch: str) -> str:
    with in_memory("probe", PROBE_AARCH64 if arch == "aarch64" else PROBE) as file, in_memory("stderr") as said:
        file.truncate(1 << 20)  # SeaBIOS boots no disk of less than one cylinder
        fd = file.fileno()
        child = process.spawn(_probe_argv(arch, f"/dev/fd/{fd}"), stderr=said, pass_fds=[fd])
        try:
            status = child.wait(PROBE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return "a guest starts under KVM but makes no progress"
        finally:
            child.kill()
            child.wait()
        said.seek(0)
        text = said.read().decode(errors="replace").strip() or "it printed nothing"
        return "" if status == 0 else f"QEMU {process.ending(status)}: {text.splitlines()[0]}"


def _probe_argv(arch: str, file: str) -> list[str | Path]:
    row = ARCHES[arch]
    boot: tuple[str, ...] = ("-kernel", file)
    if arch == "x86_64":
        boot = (
            "-drive", f"file={file},format=raw,if=none,id=probe,readonly=on",
            "-device", f"{row.disk},drive=probe,bootindex=0",
        )  # fmt: skip
    return [
        row.binary, "-nodefaults", "-no-user-config", "-machine", row.machine, "-accel", "kvm",
        "-cpu", row.cpu_kvm, "-m", "64M", "-display", "none", "-no-reboot",
        *boot,
    ]  # fmt: skip


def _qemu_stamp(arch: str) -> str:
    """Return a stamp that changes when QEMU is replaced."""
    return str(stamp.of(Path(process.require(ARCHES[arch].binary))))
