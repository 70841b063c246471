"""The sealed form of an image: what is changed on its disk does not boot, and a TPM measures what was computed."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from obuild.errors import MachineError
from obuild.executors.qemu import machine, ssh
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Shape
from obuild.host import qemu_img
from obuild.host.process import CancelScope
from tests.support import foreign
from tests.support.program import ROOT, Program

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the base `sealed`, whose sealed form the store's key opens."""
    store = tmp_path_factory.mktemp("sealed") / "store"
    key = ssh.make_key(store.with_name("key"))
    done = Program(store)("base", "make", ROOT / "tests/recipes/sealed.toml", "--set", f"key={key}")
    about = json.loads((store / "base-image/sealed.pcrs.json").read_text())
    assert f"root hash: {about['root_hash']}" in done.stdout
    for number, value in about["pcrs"]["sha256"].items():
        assert f"PCR {number}: {value}" in done.stdout
    return store


@contextmanager
def booted(
    store: Path,
    folder: Path,
    *,
    name: str = "sealed",
    arch: str = "x86_64",
    flipped: int = 0,
    tpm: bool = False,
    clock: str = "utc",
) -> Iterator[Machine]:
    """A machine on the sealed disk, with another byte at the offset `flipped`. It begins at the time `clock`."""
    raw = store / f"base-image/{name}.verity.raw"
    overlay = folder / "overlay.qcow2"
    qemu_img.create_grown(overlay, qemu_img.inspect(raw), size=raw.stat().st_size)
    if flipped:
        sector = flipped // 512 * 512
        with raw.open("rb") as file:
            file.seek(sector)
            content = bytearray(file.read(512))
        content[flipped - sector] ^= 1
        qemu_img.write_at(overlay, sector, bytes(content))
    state = folder / "tpm" if tpm else None
    shape = Shape(arch=arch, firmware="uefi", memory=512 << 20, boot_time=300, tpm=state)
    time = ("-rtc", f"base={clock}")
    with machine.start(shape, overlay, CancelScope(), network=False, extra=time) as running:
        yield running


def told(running: Machine, key: Path, script: str) -> str:
    output = io.BytesIO()
    with ssh.connect(running, login="root", key=key) as connection:
        connection.fetch("sh", script.encode(), output, what="the script")
    return output.getvalue().decode()


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("swtpm"), reason="needs swtpm")
def test_a_tpm_measures_what_was_computed_and_the_root_cannot_be_written(sealed: Path, tmp_path: Path) -> None:
    numbers = json.loads((sealed / "base-image/sealed.pcrs.json").read_text())["pcrs"]["sha256"]
    read = " ".join(f"/sys/class/tpm/tpm0/pcr-sha256/{number}" for number in numbers)
    with booted(sealed, tmp_path, tpm=True) as running:
        found = told(
            running,
            sealed.with_name("key"),
            f"cat {read}; for folder in etc var root usr; do touch /$folder/new 2>&1 && echo $folder; done; true",
        ).splitlines()
        running.quit()
    assert [value.lower() for value in found[: len(numbers)]] == list(numbers.values())
    assert found[len(numbers) :] == ["etc", "var", "root", "touch: cannot touch '/usr/new': Read-only file system"]


@pytest.mark.long
def test_a_flipped_bit_of_the_root_does_not_boot(sealed: Path, tmp_path: Path) -> None:
    """The first block of squashfs, which every boot reads."""
    with (
        booted(sealed, tmp_path, flipped=(1 << 20) + 100) as running,
        pytest.raises(MachineError, match="dm-verity device corrupted"),
        ssh.connect(running, login="root", key=sealed.with_name("key")),
    ):
        pass


@pytest.mark.long
@pytest.mark.parametrize("year", ["1970", "2040"])
def test_a_machine_whose_clock_is_wrong_boots(sealed: Path, tmp_path: Path, year: str) -> None:
    with booted(sealed, tmp_path, clock=f"{year}-01-01T00:00:00") as running:
        assert told(running, sealed.with_name("key"), "date +%Y; touch /etc/new; date -r /etc/new +%Y") == (
            f"{year}\n{year}\n"
        )
        running.quit()


@pytest.mark.long
def test_podvm_can_be_debugged_by_ssh(tmp_path: Path) -> None:
    store, keys = tmp_path / "store", tmp_path / "keys"
    keys.write_text(f"{ssh.make_key(tmp_path / 'key')}\n")
    keys.chmod(0o400)
    Program(store)("base", "make", "podvm", "--profile", "debug", "--set", f"authorized_keys={keys}")
    with booted(store, tmp_path, name="podvm") as running:
        found = told(running, tmp_path / "key", "systemctl is-system-running --wait; ls /root/.ssh; ls /boot")
        running.quit()
    assert found.split() == ["running", "authorized_keys2"]


@pytest.mark.arch
@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can map all users")
@pytest.mark.skipif(not foreign.program("aarch64").exists(), reason="needs qemu-user-static")
def test_podvm_for_aarch64_is_made_by_qemu_user(tmp_path: Path) -> None:
    store, keys = tmp_path / "store", tmp_path / "keys"
    keys.write_text(f"{ssh.make_key(tmp_path / 'key')}\n")
    keys.chmod(0o400)
    obuild = [sys.executable, "-m", "tests.support.foreign", "aarch64", sys.executable, "-m", "obuild"]
    chosen = ["podvm-aarch64", "--profile", "debug", "--set", f"authorized_keys={keys}"]
    subprocess.run([*obuild, "base", "make", *chosen, f"--store=qemu:{store}"], check=True, cwd=ROOT)
    with booted(store, tmp_path, name="podvm-aarch64", arch="aarch64") as running:
        found = told(running, tmp_path / "key", "uname -m; systemctl is-system-running --wait")
        running.quit()
    assert found.split() == ["aarch64", "running"]


@pytest.mark.arch
def test_a_sealed_disk_for_aarch64_is_made_without_running_its_programs(tmp_path: Path) -> None:
    store = tmp_path / "store"
    key = ssh.make_key(tmp_path / "key")
    Program(store)("base", "make", ROOT / "tests/recipes/uki-aarch64.toml", "--set", f"key={key}")
    with booted(store, tmp_path, name="uki-aarch64", arch="aarch64") as running:
        found = told(running, tmp_path / "key", "uname -m; grep ' / ' /proc/mounts")
        running.quit()
    assert found.splitlines()[0] == "aarch64"
    assert "/dev/dm-0 / squashfs ro," in found
