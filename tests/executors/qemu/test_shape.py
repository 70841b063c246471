"""Shapes: from the user's settings and the base's card to QEMU's command line."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.executors.qemu import devices
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.argv import Links, Memory, qemu_argv
from obuild.executors.qemu.shape import Accel, Kernel, Nvram, Shape, require_host, shape_for
from obuild.executors.qemu.tpm import swtpm_argv
from obuild.executors.settings import DEFAULT_MEMORY, VM, Settings
from obuild.guests import profile
from obuild.guests.profile import OSES, Card, arch_named
from obuild.host import process

GOLDEN = Path(__file__).parents[2] / "golden" / "qemu"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Settings(accel="xen"), "xen"),
        (Settings(memory=1 << 20), "at least 32M"),
        (Settings(os="plan9"), "plan9"),
        (Settings(arch="pdp11"), "pdp11"),
        (Settings(vm="hot"), "--vm hot: it can be auto, boot, warm"),
    ],
)
def test_impossible_settings_are_refused_with_a_hint(settings: Settings, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        settings.checked()


def test_the_default_settings_are_fine() -> None:
    assert Settings().checked() == Settings()


@pytest.mark.parametrize(
    ("asked", "needed", "given"),
    [
        (0, 256 << 20, DEFAULT_MEMORY),
        (0, 8 << 30, 8 << 30),
        (64 << 20, 256 << 20, 64 << 20),
        (8 << 30, 256 << 20, 8 << 30),
    ],
)
def test_the_memory_is_as_set_or_enough_for_the_base(asked: int, needed: int, given: int) -> None:
    assert shape_for(Settings(memory=asked), Card(memory=needed), "tcg").memory == given


@pytest.mark.parametrize("os", OSES)
def test_every_os_of_cards_can_be_set(os: str) -> None:
    assert Settings(os=os).checked().os == os
    assert shape_for(Settings(), Card(os=os), "kvm").accel == "kvm"


def test_an_architecture_has_one_name() -> None:
    assert arch_named("amd64") == arch_named("x86_64") == "x86_64"
    assert arch_named("arm64") == "aarch64"
    assert arch_named("ppc64el") == "ppc64le"


def option(argv: list[str], name: str) -> list[str]:
    """Return the values of an option, in order."""
    return [value for before, value in itertools.pairwise(argv) if before == name]


def argv(shape: Shape, image: Path = Path("/x.qcow2"), *, network: bool = False) -> list[str]:
    return [str(word) for word in qemu_argv(shape, image, network=network, qmp="socket,fd=7")]


def test_the_command_line_has_the_shape() -> None:
    line = argv(Shape(cpus=3, memory=512 << 20))
    assert line[0] == "qemu-system-x86_64"
    assert option(line, "-smp") == ["3"]
    assert option(line, "-m") == ["512M"]
    assert "socket,fd=7,id=qmp" in option(line, "-chardev")


@pytest.mark.parametrize(("accel", "cpu", "words"), [("kvm", "host", "kvm"), ("tcg", "max", "tcg,thread=multi")])
def test_the_cpu_depends_on_the_accelerator(accel: str, cpu: str, words: str) -> None:
    line = argv(Shape(accel="kvm" if accel == "kvm" else "tcg"))
    assert option(line, "-cpu") == [cpu]
    assert option(line, "-accel") == [words]


@pytest.mark.parametrize(("network", "restrict"), [(True, "restrict=off"), (False, "restrict=on")])
def test_a_closed_network_is_restricted(network: bool, restrict: str) -> None:
    (netdev,) = option(argv(Shape(), network=network), "-netdev")
    assert restrict in netdev.split(",")


def test_the_ssh_port_is_local_and_not_fixed() -> None:
    (netdev,) = option(argv(Shape()), "-netdev")
    assert "hostfwd=tcp:127.0.0.1:0-:22" in netdev.split(",")


def test_a_comma_in_the_image_path_does_not_end_it() -> None:
    blockdev = option(argv(Shape(), Path("/a,readonly=on/x")), "-blockdev")[0]
    assert "filename=/a,,readonly=on/x," in blockdev


def test_there_are_no_default_devices_and_no_user_configuration() -> None:
    assert argv(Shape())[1:3] == ["-nodefaults", "-no-user-config"]


def test_uefi_keeps_its_variables_only_if_asked_to() -> None:
    assert option(argv(Shape(firmware="uefi")), "-bios") == ["/usr/share/ovmf/OVMF.fd"]
    assert option(argv(Shape(firmware="uefi")), "-drive") == []
    code, copy = option(argv(Shape(firmware="uefi", nvram=Nvram(Path("/a")))), "-drive")
    assert code == "if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"
    assert copy == "if=pflash,unit=1,format=raw,snapshot=on,file=/a"
    own = option(argv(Shape(firmware="uefi", nvram=Nvram(Path("/a,b"), kept=True))), "-drive")[1]
    assert own == "if=pflash,unit=1,format=raw,snapshot=off,file=/a,,b"


def test_a_machine_whose_uefi_keeps_variables_is_not_kept_warm() -> None:
    card, nvram = Card(firmware="uefi"), Nvram(Path("/a"))
    assert shape_for(Settings(), card, "kvm").warm
    assert shape_for(Settings(), card, "kvm", nvram).nvram == nvram
    assert not shape_for(Settings(), card, "kvm", nvram).warm
    with pytest.raises(UsageError, match="its UEFI has a memory of its own"):
        shape_for(Settings(vm="warm"), card, "kvm", nvram)
    with pytest.raises(UsageError, match="cannot boot s390x machines by UEFI"):
        shape_for(Settings(), Card(arch="s390x", firmware="uefi"), "kvm")


def test_missing_firmware_is_an_error_that_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "require", lambda program: program)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    for nvram, file in ((None, "OVMF"), (Nvram(Path("/a")), "OVMF_CODE_4M")):
        with pytest.raises(UsageError, match=rf"/{file}\.fd is missing") as caught:
            require_host(Shape(firmware="uefi", nvram=nvram))
        assert caught.value.hint == "apt install ovmf"
    with pytest.raises(UsageError) as caught:
        require_host(Shape(arch="aarch64"))
    assert caught.value.hint == "apt install qemu-efi-aarch64"
    require_host(Shape(arch="aarch64", kernel=Kernel(Path("/k"), None, "")))


@pytest.mark.parametrize(("arch", "device"), [("x86_64", "tpm-crb"), ("aarch64", "tpm-tis-device")])
def test_a_tpm_is_reached_through_a_socket(arch: str, device: str) -> None:
    line = qemu_argv(Shape(arch=arch), Path("/x"), network=False, qmp="stdio", tpm="socket,fd=9", extra=["-last"])
    assert list(line[-7:]) == [
        *("-chardev", "socket,fd=9,id=tpm"),
        *("-tpmdev", "emulator,id=tpm0,chardev=tpm"),
        *("-device", f"{device},tpmdev=tpm0"),
        "-last",
    ]
    assert swtpm_argv(control=5, state=6) == [
        *("swtpm", "socket", "--tpm2", "--terminate"),
        *("--tpmstate", "dir=/proc/self/fd/6"),
        *("--ctrl", "type=unixio,clientfd=5"),
    ]


def test_a_missing_tpm_is_an_error_that_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program, path: None if program == "swtpm" else program)
    with pytest.raises(UsageError, match="swtpm is not installed") as caught:
        require_host(Shape(tpm=Path("/tpm")))
    assert caught.value.hint == "apt install swtpm"
    with pytest.raises(UsageError, match="a machine for s390x has no TPM"):
        require_host(Shape(arch="s390x", tpm=Path("/tpm")))


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
@pytest.mark.parametrize("arch", ARCHES)
def test_the_command_line_matches_the_golden_file(arch: str, accel: Accel) -> None:
    kernel = None if arch == "x86_64" else Kernel(Path("/k"), Path("/i"), "root=/dev/vda1 rw")
    line = argv(Shape(arch=arch, accel=accel, kernel=kernel))
    assert line == (GOLDEN / f"{arch}-{accel}.txt").read_text().splitlines()


#: The golden files of a machine that can be saved: only its devices, new memory, and memory from a file.
WARM = {
    "warm": None,
    "warm-held": Memory(),
    "warm-resumed": Memory(Path("/warm,tmp/ram")),
}


@pytest.mark.parametrize("name", WARM)
def test_the_command_line_of_a_machine_that_can_be_saved_matches_the_golden_file(name: str) -> None:
    links = Links("socket,fd=8", "socket,fd=9")
    shape = Shape(memory=(512 << 20) + 4096, warm=True)
    line = qemu_argv(shape, Path("/x"), network=False, qmp="socket,fd=7", links=links, memory=WARM[name])
    assert list(map(str, line)) == (GOLDEN / f"x86_64-{name}.txt").read_text().splitlines()


def test_a_guest_sees_the_same_devices_however_its_machine_was_started() -> None:
    """Else a machine that was started differently could not resume it."""
    shape = Shape(warm=True)
    lines = [
        list(map(str, qemu_argv(shape, Path("/x"), network=network, qmp="q", links=None, memory=memory)))
        for memory in WARM.values()
        for network in (False, True)
    ]
    assert len({tuple(option(line, "-device")) for line in lines}) == 1
    assert "vmgenid,guid=auto" in option(lines[0], "-device")
    assert not any("serial-pci" in word for word in option(argv(Shape()), "-device"))


@pytest.mark.parametrize(("memory", "size"), [(512 << 20, 512 << 20), ((512 << 20) + 4096, 512 << 20)])
def test_memory_is_a_file_of_whole_mebibytes(memory: int, size: int) -> None:
    assert Shape(memory=memory).ram == size


def test_a_machine_with_both_networks_has_one_of_each_and_one_card() -> None:
    line = [str(word) for word in qemu_argv(Shape(), Path("/x"), network=True, qmp="q", memory=Memory())]
    networks = [value for value in option(line, "-netdev") if value.startswith("user,")]
    assert sorted(value.split(",")[1:3] for value in networks) == [
        ["id=closed", "restrict=on"],
        ["id=open", "restrict=off"],
    ]
    assert sum("netdev=net0" in value for value in option(line, "-device")) == 1


@pytest.mark.parametrize("vm", VM)
def test_every_vm_mode_is_accepted(vm: str) -> None:
    assert Settings(vm=vm).checked().vm == vm
    assert shape_for(Settings(vm=vm), Card(), "tcg").warm


@pytest.mark.parametrize(
    ("settings", "card", "why"),
    [
        (Settings(), Card(os="freebsd"), "does not run Linux"),
        (Settings(os="windows"), Card(), "does not run Linux"),
        (Settings(), Card(warm="no"), "card says so"),
        (Settings(), Card(arch="aarch64"), "same random numbers"),
        (Settings(arch="s390x"), Card(), "same random numbers"),
    ],
)
def test_a_guest_that_cannot_be_kept_warm_boots_unless_vm_is_warm(
    settings: Settings, card: Card, why: str
) -> None:
    assert not shape_for(settings, card, "tcg").warm
    assert not shape_for(settings._replace(vm="boot"), card, "tcg").warm
    with pytest.raises(UsageError, match=why) as caught:
        shape_for(settings._replace(vm="warm"), card, "tcg")
    assert caught.value.hint == "--vm auto, or --vm boot"


def test_a_kernel_needs_no_initial_ram_disk() -> None:
    line = argv(Shape(kernel=Kernel(Path("/k"), None, "")))
    assert line[-4:] == ["-kernel", "/k", "-append", "console=ttyS0"]


@pytest.mark.parametrize(("arch", "option"), [("aarch64", "-bios"), ("riscv64", "-kernel")])
def test_a_board_without_firmware_gets_one_to_boot_a_disk(arch: str, option: str) -> None:
    assert argv(Shape(arch=arch))[-2:] == [option, ARCHES[arch].firmware[1]]
    assert ARCHES[arch].firmware[1] not in argv(Shape(arch=arch, kernel=Kernel(Path("/k"), None, "")))


@pytest.mark.parametrize(("arch", "bus"), [("x86_64", "pci"), ("aarch64", "pci"), ("s390x", "ccw")])
def test_a_guest_can_report_through_a_bounded_port_and_read_a_second_disk(arch: str, bus: str) -> None:
    extra = [*devices.reporting(arch, "org.example"), *devices.medium(arch, 1, Path("/a,b.iso"), "disk")]
    argv = list(qemu_argv(Shape(arch=arch), Path("/disk"), network=True, qmp="stdio", extra=extra))
    assert argv[-len(extra) :] == [
        *("-device", f"virtio-serial-{bus}"),
        *("-chardev", "ringbuf,id=report,size=65536"),
        *("-device", "virtserialport,chardev=report,name=org.example"),
        *("-blockdev", "driver=file,filename=/a,,b.iso,node-name=file1,read-only=on"),
        *("-blockdev", "driver=raw,file=file1,node-name=disk1,read-only=on"),
        *("-device", f"virtio-blk-{bus},drive=disk1"),
    ]


def test_media_have_places_of_their_own() -> None:
    line = [each for number in (1, 2, 3) for each in devices.medium("x86_64", number, Path("/x"), "cdrom")]
    assert [value for value in map(str, line) if value.startswith("ide-cd")] == [
        "ide-cd,bus=ide.0,unit=0,drive=disk1",
        "ide-cd,bus=ide.0,unit=1,drive=disk2",
        "ide-cd,bus=ide.1,unit=0,drive=disk3",
    ]
    assert devices.medium("x86_64", 1, Path("/x"), "floppy")[-1] == "floppy,drive-type=144,drive=disk1"
    assert devices.medium("aarch64", 1, Path("/x"), "cdrom", boot=True)[4:] == [
        *("-device", "virtio-scsi-pci,id=scsi1"),
        *("-device", "scsi-cd,bus=scsi1.0,drive=disk1,bootindex=1"),
    ]


def test_qemu_runs_every_architecture_that_a_card_may_name() -> None:
    assert set(ARCHES) == set(profile.ARCHES)
