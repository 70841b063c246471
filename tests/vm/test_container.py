"""The builder in a container turns an installer ISO and a cloud-config into an image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import tiny_installer
from tests.support.program import ROOT

pytestmark = [
    pytest.mark.vm,
    pytest.mark.long,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("buildah"), reason="needs root, and apt install buildah"
    ),
]

CLOUD_CONFIG = """#cloud-config
install:
  poweroff: true
  name: in-a-container
  key: "ssh-ed25519 AAAA me"
"""

#: A container in a container has neither overlay file systems nor namespaces of its own.
PLAIN = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}


def test_an_iso_and_a_cloud_config_become_a_disk(tmp_path: Path) -> None:
    """OBUILD_TEST_CONTAINER_ARGS is for what pip and apt need on this host, such as -v options.

    The base image is made here: it needs no registry.
    """
    rootfs = tmp_path / "rootfs.tar"
    subprocess.run(
        ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", rootfs], check=True
    )
    (tmp_path / "Containerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
    env = {**os.environ, **PLAIN, "DISK_SIZE": "96M", "MEMORY": "256M", "FIRMWARE": "bios", "TOOL": "buildah"}
    subprocess.run(["buildah", "build", "-t", "localhost/debian12", tmp_path], check=True, env=env)
    args = f"--build-arg BASE=localhost/debian12 {os.environ.get('OBUILD_TEST_CONTAINER_ARGS', '')}"
    make: list[str | Path] = ["make", "-C", ROOT, f"CONTAINER_ARGS={args}", "CONTAINER_TOOL=buildah"]
    subprocess.run([*make, "container"], check=True, env=env)
    config = tmp_path / "config.yaml"
    config.write_text(CLOUD_CONFIG)
    given = [f"CLOUD_CONFIG={config}", f"ISO={tiny_installer.iso()}", "NAME=edge"]
    images = tmp_path / "images"
    for target, name in (("qcow2", "edge.qcow2"), ("img", "edge.img"), ("qcow2-image", "edge.oci.tar")):
        subprocess.run([*make, f"container-{target}", *given], check=True, env={**env, "IMAGES": str(images)})
        assert (images / name).is_file()
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", images / "edge.qcow2"]))
    assert info["virtual-size"] == 96 << 20
    assert b"in-a-container" in (images / "edge.img").read_bytes()
