"""Images from Debian packages: the commands, and where the bytes of a boot loader go. Nothing is downloaded."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from obuild.bases import lockfile, making, recipe, sources, work_folder
from obuild.bases.kind import File, Installed, Making, Recipe
from obuild.bases.scratch import apt, ext4, mbr_grub, mmdebstrap, mmdebstrap_hook, root_partition
from obuild.bases.scratch import image as scratch
from obuild.bases.sources import Choices
from obuild.errors import ProcessError, UsageError
from obuild.guests.profile import Card
from obuild.host import memory, process
from obuild.store.layers import Store
from tests.support.recipes import recipe_of

RECIPE = recipe_of(
    """
kind = "scratch"
size = "64M"
[card]
login = "builder"
[scratch]
suite = "bookworm"
variant = "minbase"
packages = ["bash", "sudo"]
cmdline = "quiet"
script = "true"
[[scratch.file]]
path = "/etc/hostname"
text = "here"
"""
)

DIGEST = f"sha256:{'a' * 64}"

SOURCES = ("deb http://a/debian bookworm main", "deb http://b/debian bookworm-updates main")

SMALLEST = 'kind="scratch"\nsize="64M"\n[scratch]\nsuite="bookworm"\n'

EXTRACTED = recipe_of(f'{SMALLEST}variant="extract"\n')

DIRECT = recipe_of(f'arch="s390x"\n{SMALLEST}cmdline="quiet"\n[card]\nfirmware="kernel"\n')


def with_options(made: Recipe, **changes: object) -> Recipe:
    return replace(made, options=replace(made.options, **changes))


def make(made: Recipe, folder: Path, say: Callable[[str], None] = print) -> None:
    """Make it as far as can be without packages."""
    scratch.make(
        made,
        folder / "out.qcow2",
        Making(Store(folder / "store"), folder / "key", "ssh-ed25519 AAAA", say, lambda remote: folder),
    )


def test_mmdebstrap_is_told_packages_suite_and_sources() -> None:
    argv = mmdebstrap.argv(RECIPE, Path("/w/hook"), SOURCES, root=False)
    assert argv[0] == "mmdebstrap"
    assert {"--mode=unshare", "--variant=minbase", "--include=bash,sudo"} <= set(argv)
    assert "--customize-hook=/w/hook" in argv
    assert argv[-4:] == ["bookworm", "-", *SOURCES]


def test_nothing_that_root_starts_outlives_us() -> None:
    argv = mmdebstrap.argv(RECIPE, Path("/w/hook"), SOURCES, root=True)
    assert argv[:5] == ["setpriv", "--pdeathsig", "KILL", "--", "unshare"]
    assert "--kill-child" in argv[: argv.index("mmdebstrap")]
    assert "--mode=root" in argv


def test_a_root_that_does_not_fit_into_memory_is_made_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def run(words: Sequence[str | Path], **options: object) -> bytes:
        calls.append(" ".join(map(str, words)))
        raise ProcessError(f"dpkg: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(memory, "available", lambda: 6 << 30)
    monkeypatch.setattr(process, "run", run)
    said: list[str] = []
    with pytest.raises(ProcessError, match="dpkg"):  # the disk is full, too
        make(RECIPE, tmp_path, said.append)
    assert [f"size={3 << 30}" in call for call in calls] == [True, False]
    assert said[-1] == f"{RECIPE.name}: more than fits into memory; once more, on the disk"
    monkeypatch.setattr(memory, "available", lambda: 3 << 30)
    with pytest.raises(ProcessError, match="dpkg"):
        make(RECIPE, tmp_path, said.append)
    assert "tmpfs" not in calls.pop()
    assert len(calls) == 2


def test_unpacked_packages_have_only_the_hook_after_unpacking() -> None:
    assert "--extract-hook=/w/hook" in mmdebstrap.argv(EXTRACTED, Path("/w/hook"), SOURCES, root=False)


@pytest.mark.parametrize("work", [Path("/w"), Path("/a place/it's")])
def test_the_hook_is_a_shell_script(work: Path) -> None:
    text = mmdebstrap_hook.text(RECIPE, work)
    subprocess.run(["sh", "-n"], input=text.encode(), check=True)
    assert "grep '^builder:'" in text


OURS = [made for name in sources.names() if (path := sources.find(name)) and (made := recipe.load(path))]


@pytest.mark.parametrize("made", [made for made in OURS if made.kind == "scratch"], ids=lambda made: made.name)
def test_the_scripts_of_our_recipes_are_shell_scripts(made: Recipe) -> None:
    for text in (made.options.script, *(file.text for file in made.options.files if file.mode & 0o111)):
        subprocess.run(["sh", "-n"], input=text.encode(), check=True)


def test_a_kernel_that_qemu_loads_is_taken_out_of_the_root() -> None:
    text = mmdebstrap_hook.text(DIRECT, Path("/a place"))
    subprocess.run(["sh", "-n"], input=text.encode(), check=True)
    assert "cat \"$root/vmlinuz\" >'/a place'/boot.vmlinuz" in text
    assert "vmlinuz" not in mmdebstrap_hook.text(RECIPE, Path("/w"))


@pytest.mark.parametrize(
    ("arch", "debians"),
    [("aarch64", "arm64"), ("riscv64", "riscv64"), ("s390x", "s390x"), ("ppc64le", "ppc64el")],
)
def test_debian_has_its_own_names_for_architectures(arch: str, debians: str) -> None:
    made = replace(DIRECT, card=replace(DIRECT.card, arch=arch))
    assert f"--architectures={debians}" in mmdebstrap.argv(made, Path("/w/hook"), SOURCES, root=False)
    assert "--architectures=amd64" in mmdebstrap.argv(RECIPE, Path("/w/hook"), SOURCES, root=False)


def test_a_disk_whose_kernel_qemu_loads_has_a_partition_and_no_boot_loader(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    mbr_grub.make_bootable(DIRECT, disk, tmp_path)
    written = disk.read_bytes()[: 1 << 20]
    assert written[510:512] == b"\x55\xaa"
    assert not any(written[:440])
    assert not any(written[512:])


def test_a_boot_loader_for_another_architecture_is_refused_before_anything_starts(tmp_path: Path) -> None:
    made = replace(DIRECT, card=replace(DIRECT.card, firmware="bios"))
    with pytest.raises(UsageError, match="x86_64 only"):
        make(made, tmp_path)


def test_a_tool_that_the_script_needs_is_missed_before_anything_starts(tmp_path: Path) -> None:
    made = with_options(DIRECT, tools=("no-such-tool",))
    with pytest.raises(UsageError, match="no-such-tool"):
        make(made, tmp_path)


def test_the_partition_reaches_to_the_end_of_the_disk() -> None:
    assert mbr_grub.partition_script(signature=0xAB, size=64 << 20) == (
        "label: dos\nlabel-id: 0x000000ab\nunit: sectors\nstart=2048, size=129024, type=83, bootable\n"
    )


def test_grub_loads_the_newest_kernel_from_the_root_by_its_id() -> None:
    assert mbr_grub.grub_cfg(RECIPE, "quiet") == (
        f"linux16 /vmlinuz root=UUID={root_partition.disk_id(RECIPE)} rw console=ttyS0 quiet\n"
        "initrd16 /initrd.img\nboot\n"
    )


def test_the_file_system_has_the_id_that_grub_looks_for() -> None:
    identity = root_partition.disk_id(RECIPE)
    argv = list(map(str, ext4.mke2fs_argv(Path("/w"), identity, start=1 << 20, size=63 << 20)))
    assert argv[argv.index("-U") + 1] == str(root_partition.disk_id(RECIPE))
    assert argv[-2:] == ["/w/disk.raw", "64512k"]


def test_the_boot_loader_goes_around_the_partition_table(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"." * (2 << 20))
    mbr_grub.install_grub(disk, boot=b"B" * 512, core=b"C" * 1000)
    written = disk.read_bytes()
    assert written[:440] == b"B" * 440
    assert written[440:512] == b"." * 72
    assert written[512:1512] == b"C" * 1000
    assert written[1512:] == b"." * ((2 << 20) - 1512)


def test_a_boot_loader_that_would_overwrite_the_root_is_refused(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"")
    with pytest.raises(UsageError, match="does not fit"):
        mbr_grub.install_grub(disk, boot=b"B" * 512, core=b"C" * (1 << 20))
    assert disk.read_bytes() == b""


def test_a_disk_gets_one_bootable_partition_and_grub(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    mbr_grub.make_bootable(RECIPE, disk, tmp_path)
    written = disk.read_bytes()[: 1 << 20]
    assert struct.unpack("<I", written[440:444]) == (root_partition.disk_id(RECIPE).fields[0],)
    active, kind = written[446], written[450]
    start, length = struct.unpack("<II", written[454:462])
    assert (active, kind, start, length) == (0x80, 0x83, 2048, 129024)
    assert written[510:512] == b"\x55\xaa"
    assert written[:3] == (mbr_grub.GRUB / "boot.img").read_bytes()[:3]
    assert any(written[512:4096])


def test_nothing_is_left_of_an_image_that_could_not_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(argv: list[str], **_: object) -> bytes:
        raise ProcessError("no network today")

    monkeypatch.setattr(process, "run", fail)
    told: list[str] = []
    with pytest.raises(ProcessError):
        make(RECIPE, tmp_path, told.append)
    assert told == ["mine: installing 2 packages of Debian bookworm"]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_we_are_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(argv: list[str], **_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(RECIPE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_debians_keys_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(UsageError) as caught:
        make(RECIPE, tmp_path)
    assert caught.value.hint == "apt install debian-archive-keyring"


def test_where_a_killed_process_has_worked_the_next_one_cleans_up(tmp_path: Path) -> None:
    """But neither what another one works in, nor what is somebody else's."""
    (tmp_path / "0-obuild-making" / "disk").mkdir(parents=True)
    (tmp_path / "victim" / "precious").mkdir(parents=True)
    (tmp_path / "8-obuild-making").symlink_to("victim")
    (tmp_path / "notes").mkdir()
    with work_folder.folder_in(tmp_path) as one, work_folder.folder_in(tmp_path) as two:
        assert (one.name, two.name) == ("0-obuild-making", "1-obuild-making")
        assert list(one.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["8-obuild-making", "notes", "victim"]
    assert (tmp_path / "victim" / "precious").is_dir()


def test_packages_are_pinned_by_a_lock_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qcow2_disk: Path
) -> None:
    installed = {"bash_5.2_amd64": DIGEST}

    def make(plan: Recipe, out: Path, given: Making) -> Card:
        given.installed(Installed(installed, {}, {"date": "2026-07-11T10:16:37Z", "index": DIGEST}))
        out.write_bytes(qcow2_disk.read_bytes())
        return plan.card

    monkeypatch.setattr(scratch, "make", make)
    path = tmp_path / "mine.toml"
    path.write_text(SMALLEST)
    with pytest.raises(UsageError, match=r"mine cannot be made with --locked: nobody has pinned .* --lock"):
        making.make(store, str(path), say=print, locked=True)
    making.make(store, str(path), say=print, lock=True)
    assert lockfile.read(tmp_path / "mine.lock", "packages") == installed
    assert making.make(store, str(path), say=print, locked=True, again="yes")[1]
    before = (store.base_image / "mine.qcow2").stat().st_ino

    installed["bash_5.2_amd64"] = f"sha256:{'b' * 64}"
    with pytest.raises(UsageError, match=r"the packages are not those of .*mine\.lock: bash_5\.2_amd64 has"):
        making.make(store, str(path), say=print, locked=True, again="yes")
    assert (store.base_image / "mine.qcow2").stat().st_ino == before
    assert making.make(store, str(path), say=print, again="changed") == (store.base_image / "mine.qcow2", False)


def test_roots_keys_come_from_a_file_that_nobody_can_write(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'{SMALLEST}authorized_keys = "resources/keys"\n')
    with pytest.raises(UsageError, match=r"mine\.toml:5:1: authorized_keys: there is no file .*resources/keys"):
        recipe.load(tmp_path / "mine.toml")
    keys = tmp_path / "resources/keys"
    keys.parent.mkdir()
    keys.write_text("ssh-ed25519 AAAA\n")
    for mode in (0o600, 0o440, 0o404, 0o1400, 0o644):
        keys.chmod(mode)
        with pytest.raises(UsageError, match=rf"mine\.toml:5:1: .*keys has mode {mode:04o}, and must") as caught:
            recipe.load(tmp_path / "mine.toml")
        assert f"chmod 400 {keys}" in caught.value.hint
    keys.chmod(0o400)
    made = recipe.load(tmp_path / "mine.toml")
    assert made.options.files == (File("/root/.ssh/authorized_keys2", 0o600, "ssh-ed25519 AAAA\n"),)


def test_podvm_lets_nobody_in_without_its_debug_profile(tmp_path: Path) -> None:
    path = sources.find("podvm")
    assert path is not None
    keys = tmp_path / "keys"
    keys.write_text("ssh-ed25519 AAAA\n")
    keys.chmod(0o400)
    plain, debug = recipe.load(path), recipe.load(path, Choices("debug", {"authorized_keys": str(keys)}))
    assert [each for each in plain.options.files if "authorized_keys" in each.path or "getty" in each.path] == []
    assert plain.options.cmdline.endswith("systemd.getty_auto=0")
    assert {each.path for each in debug.options.files} - {each.path for each in plain.options.files} == {
        "/etc/systemd/system/serial-getty@.service.d/podvm.conf",
        "/etc/systemd/system/host-key.service",
        "/root/.ssh/authorized_keys2",
    }
    assert debug.options.layout == plain.options.layout == "gpt-uki-verity"
