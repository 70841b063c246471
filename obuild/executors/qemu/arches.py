"""The guest architectures: one table row for each, with what differs between their machines."""

from __future__ import annotations

from typing import NamedTuple


class Arch(NamedTuple):
    """What differs between guest architectures."""

    binary: str
    machine: str
    cpu_kvm: str
    cpu_tcg: str
    console: tuple[str, str]  # an option and its value, to which the chardev's id is appended
    tty: str  # what Linux calls that console
    disk: str
    net: str
    rng: str
    #: Whether a Linux guest notices QEMU's power button; else it must be told to power off over SSH.
    button: bool = True
    #: A device that tells a guest that it was resumed; Linux then reseeds its random numbers.
    genid: str = ""
    #: Options for a firmware that boots from a disk, if the machine has none built in.
    firmware: tuple[str, ...] = ()
    #: Debian's package for the last of these options, a file.
    firmware_package: str = ""
    #: The file of UEFI's code, that of its default variables, and Debian's package for them.
    uefi: tuple[str, str, str] | None = None
    #: The device of a TPM 2.0, if the machine can have one.
    tpm: str = ""
    #: UEFI as one file, from the same package, for machines that keep no variables: those are in memory then.
    uefi_rom: str = ""


ARCHES = {
    "x86_64": Arch(
        binary="qemu-system-x86_64",
        machine="pc",
        cpu_kvm="host",
        cpu_tcg="max",
        console=("-device", "isa-serial,chardev="),
        tty="ttyS0",
        disk="virtio-blk-pci",
        net="virtio-net-pci,romfile=",  # no option ROM, so no time is lost on network boot
        rng="virtio-rng-pci",
        genid="vmgenid,guid=auto",
        uefi=("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "ovmf"),
        tpm="tpm-crb",
        uefi_rom="/usr/share/ovmf/OVMF.fd",
    ),
    # The button is a GPIO key if QEMU loads the kernel itself, and ACPI's under UEFI.
    "aarch64": Arch(
        binary="qemu-system-aarch64",
        machine="virt,gic-version=max",  # the default, version 2, supports only 8 CPUs
        cpu_kvm="host",
        cpu_tcg="max,pauth-impdef=on",  # a fast hash for pointer authentication: QARMA costs more than all else
        console=("-serial", "chardev:"),  # the board's own UART
        tty="ttyAMA0",
        disk="virtio-blk-pci",
        net="virtio-net-pci,romfile=",
        rng="virtio-rng-pci",
        firmware=("-bios", "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"),
        firmware_package="qemu-efi-aarch64",
        uefi=("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd", "qemu-efi-aarch64"),
        tpm="tpm-tis-device",
        uefi_rom="/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
    ),
    "riscv64": Arch(
        binary="qemu-system-riscv64",
        machine="virt",
        cpu_kvm="host",
        cpu_tcg="rv64",
        console=("-serial", "chardev:"),
        tty="ttyS0",
        disk="virtio-blk-pci",
        net="virtio-net-pci,romfile=",
        rng="virtio-rng-pci",
        button=False,  # the board has none
        firmware=("-kernel", "/usr/lib/u-boot/qemu-riscv64_smode/uboot.elf"),
        firmware_package="u-boot-qemu",
    ),
    # The button is the signal `quiesce`, which Linux treats as Ctrl-Alt-Del.
    "s390x": Arch(
        binary="qemu-system-s390x",
        machine="s390-ccw-virtio",
        cpu_kvm="host",
        cpu_tcg="max",
        console=("-device", "sclpconsole,chardev="),
        tty="ttysclp0",
        disk="virtio-blk-ccw",
        net="virtio-net-ccw",
        rng="virtio-rng-ccw",
    ),
    # The button is an EPOW event, on which the kernel itself runs /sbin/poweroff.
    "ppc64le": Arch(
        binary="qemu-system-ppc64",
        machine="pseries",
        cpu_kvm="host",
        cpu_tcg="power9",
        console=("-device", "spapr-vty,chardev="),
        tty="hvc0",
        disk="virtio-blk-pci",
        net="virtio-net-pci,romfile=",
        rng="virtio-rng-pci",
    ),
}
