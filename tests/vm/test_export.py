"""An exported image boots elsewhere, and a cleaned one does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.executors.qemu.ssh import make_key
from tests.support.program import Program, base_images, new_store

pytestmark = pytest.mark.vm

Spec = Callable[[str], Path]


@pytest.mark.long
def test_a_cleaned_debian_boots_with_new_keys_and_a_new_id(source: Path, spec: Spec, tmp_path: Path) -> None:
    out, own = tmp_path / "out", tmp_path / "own"
    (source / "own.pub").write_text(f"{make_key(own)}\n")
    steps = (
        "useradd --create-home --shell /bin/bash ops; mkdir ~ops/.ssh; cp /own.pub ~ops/.ssh/authorized_keys; "
        "chown -R ops: ~ops; echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops; "
        "cat /etc/machine-id >/old-id; mkdir /var/log/journal; systemctl restart systemd-journald; "
        "logger a word; journalctl --flush"
    )
    program = Program(new_store(tmp_path / "store", base_images("debian-12")))
    made = spec(f'((from debian-12) (copy (src own.pub) (dst /own.pub)) (run (shell "{steps}")))')
    program.build(made, source, "-t", "debian/cleaned")
    (image,) = program("export", "debian/cleaned", "--type=qcow2", "--sysprep", "-o", out).stdout.splitlines()

    other = Program(tmp_path / "other")
    other("base", "add", image, "--name=exported", "--memory=512M", "--login=ops", "--key", own)
    look = (
        "systemctl is-system-running --wait; ls /etc/ssh/*.pub; wc -c </etc/machine-id; "
        "cat /etc/machine-id /old-id; readlink /var/lib/dbus/machine-id; ls /home; "
        "ls /etc/sudoers.d; grep ^root: /etc/shadow; echo end"
    )
    text = other.build(spec(f'((from exported) (run (shell "{look}")))'), source).stdout
    told = text[text.index("\nrunning\n") + 1 : text.index("\nend\n")].splitlines()
    assert told[1:3] == ["/etc/ssh/ssh_host_ed25519_key.pub", "33"]
    assert told[3] != told[4]
    assert told[5:9] == ["/etc/machine-id", "ops", "README", "ops"]
    assert told[9].startswith(("root:*:", "root:!"))


#: Boots, says which disk its root is on, and powers off.
BOOTED = """
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c '{ echo; findmnt --noheadings --output SOURCE /; echo booted; } >/dev/ttyS0; poweroff -f'
"""

CONTROLLERS = {
    "vmware": (("pvscsi,id=scsi", "scsi-hd,bus=scsi.0,drive=disk"), "/dev/sda1"),
    "virtio-scsi": (("virtio-scsi-pci,id=scsi", "scsi-hd,bus=scsi.0,drive=disk"), "/dev/sda1"),
    "nvme": (("nvme,serial=1,drive=disk",), "/dev/nvme0n1p1"),
}


@pytest.mark.long
def test_an_exported_debian_boots_from_other_controllers(source: Path, spec: Spec, tmp_path: Path) -> None:
    (source / "booted.service").write_text(BOOTED)
    program = Program(new_store(tmp_path / "store", base_images("debian-12")))
    units = "/etc/systemd/system"
    wanted_by = f"ln -s ../booted.service {units}/multi-user.target.wants"
    made = f'((from debian-12) (copy (src booted.service) (dst {units}/)) (run (shell "{wanted_by}")))'
    program.build(spec(made), source, "-t", "debian/disk")
    export = ("export", "debian/disk", "--type=vmdk-sparse", "--shrink", "-o", tmp_path)
    (image,) = program(*export).stdout.splitlines()
    for devices, root in CONTROLLERS.values():
        argv = [
            "qemu-system-x86_64",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "512",
            "-display",
            "none",
            "-no-reboot",
        ]
        argv += ["-snapshot", "-drive", f"if=none,id=disk,file={image}", "-serial", "stdio", "-monitor", "none"]
        argv += [word for device in devices for word in ("-device", device)]
        said = subprocess.run(argv, stdout=subprocess.PIPE, timeout=180, text=True, check=True).stdout
        assert f"{root}\nbooted\n" in said.replace("\r", ""), said


def test_a_cleaned_image_boots_in_another_store_and_lets_its_own_user_in(
    shared: Program, spec: Spec, source: Path, tmp_path: Path, arch: str
) -> None:
    """It has been grown, and has new host keys; obuild's key and the traces of the build are not in it."""
    if arch != "x86_64":
        pytest.skip(f"micro for {arch} has no boot loader, and is started by QEMU")
    out, own = tmp_path / "out", tmp_path / "own"
    (source / "own.pub").write_text(f"{make_key(own)}\n")
    build = "mkdir -p /var/log && echo secret >/var/log/build.log && cat /own.pub >>/root/.ssh/authorized_keys"
    made = spec(f'((from micro) (copy (src own.pub) (dst /own.pub)) (run (shell "{build}")))')
    shared.build(made, source, "-t", "team/pg:16")
    listed = shared("export", "team/pg:16", "--sysprep", "--dry-run").stdout.splitlines()
    assert "ssh-hostkeys: remove /etc/ssh/ssh_host_ed25519_key" in listed
    assert "logs: empty /var/log/build.log" in listed

    wanted = ("--type=qcow2", "--type=vmdk", "--version=1.0", "--sysprep", "--size=5G", "-o", out)
    done = shared("export", "team/pg:16", *wanted)
    image = out / "team-pg-16-1.0.qcow2"
    assert done.stdout.splitlines() == [str(image), str(image.with_suffix(".vmdk"))]
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", image]))
    assert "backing-filename" not in info
    assert info["virtual-size"] == 5 << 30
    again = shared("export", "team/pg:16", "--sysprep", "--dry-run").stdout.splitlines()
    assert again == listed  # the layer has not changed

    other = Program(tmp_path / "other")
    other("base", "add", image, "--name=exported", "--memory=128M", "--key", own)
    look = "wc -c </var/log/build.log; cat /root/.ssh/authorized_keys /etc/ssh/*.pub; df -k / | tail -1"
    text = other.build(spec(f'((from exported) (run (shell "{look}")))'), source, "--vm", "boot").stdout
    told = text[text.index("\n0\n") + 1 :].splitlines()
    assert told[1].split()[:2] == make_key(own).split()[:2]
    host_key = told[2].split()[:2]
    assert host_key[0] == "ssh-ed25519"
    assert host_key != make_key(shared.store / "state/ssh/host_ed25519").split()[:2]
    assert int(told[3].split()[1]) > 4_700_000
