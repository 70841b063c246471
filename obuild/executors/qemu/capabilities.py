"""What this host can do with QEMU."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from functools import partial

from obuild.errors import UsageError
from obuild.executors.qemu import kvm, versions
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.shape import require_host, shape_for
from obuild.executors.settings import Settings
from obuild.guests.profile import ARCH_ALIASES, Card
from obuild.host import process, program_version
from obuild.host.capability import Capability, checked, programs


def look() -> Iterator[Capability]:
    """Look at QEMU, KVM, firmware and TPM for guests of this host's architecture, and at QEMU for others."""
    arch = ARCH_ALIASES.get(platform.machine(), platform.machine())
    yield checked("virtual machines", partial(_machines, arch), essential=True)
    if arch in ARCHES and shutil.which(binary := ARCHES[arch].binary):
        yield _kvm(arch)
        yield _warm(binary)
    yield checked("UEFI", partial(_firmware, Card(arch=arch, firmware="uefi")))
    yield checked("TPM", partial(programs, "swtpm"))
    for other, row in ARCHES.items():
        if other != arch:
            yield checked(f"{other} guests", partial(programs, row.binary))


def _machines(arch: str) -> str:
    if arch not in ARCHES:
        raise UsageError(f"obuild knows no machines for {arch}", hint="--qemu-arch emulates another")
    process.require("qemu-img")
    return program_version.told(ARCHES[arch].binary)


def _kvm(arch: str) -> Capability:
    problem = kvm.probe(arch)
    mend = "guests are emulated, which is several times slower" if problem else ""
    return Capability("KVM", not problem, problem or "a guest ran", mend)


def _warm(binary: str) -> Capability:
    why = versions.untried(binary)
    mend = "each step boots; --vm warm insists" if why else ""
    return Capability("warm machines", not why, why or "they were tested with this QEMU", mend)


def _firmware(card: Card) -> str:
    require_host(shape_for(Settings(), card, "tcg"))
    return f"firmware for {card.arch}"
