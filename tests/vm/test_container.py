"""The builder in a container turns an installer ISO and a cloud-config into an image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tiny_installer
from tests.support.program import ROOT, base_images, new_store

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

MAKE = ("make", "-C", str(ROOT), "CONTAINER_TOOL=buildah")


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The builder's image `obuild`, and the environment to use it in.

    OBUILD_TEST_CONTAINER_ARGS is for what pip and apt need on this host, such as -v options. The base image is
    made here: it needs no registry.
    """
    folder = tmp_path_factory.mktemp("container")
    rootfs = folder / "rootfs.tar"
    subprocess.run(
        ["mmdebstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", rootfs], check=True
    )
    (folder / "Containerfile").write_text("FROM scratch\nADD rootfs.tar /\n")
    # Where this test itself runs in a container, there are neither overlay file systems nor namespaces of its own.
    images = folder / "images"
    settings = folder / "storage.conf"
    settings.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{images}"\nrunroot = "{folder}/run"\n')
    env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(settings), "BUILDAH_ISOLATION": "chroot"}
    subprocess.run(["buildah", "build", "-t", "localhost/debian12", folder], check=True, env=env)
    args = f"--build-arg BASE=localhost/debian12 {os.environ.get('OBUILD_TEST_CONTAINER_ARGS', '')}"
    subprocess.run([*MAKE, f"CONTAINER_ARGS={args}", "container"], check=True, env=env)
    yield env
    shutil.rmtree(images)


def test_an_iso_and_a_cloud_config_become_a_disk(builder: dict[str, str], tmp_path: Path) -> None:
    env = {**builder, "DISK_SIZE": "96M", "MEMORY": "256M", "FIRMWARE": "bios", "TOOL": "buildah"}
    config = tmp_path / "config.yaml"
    config.write_text(CLOUD_CONFIG)
    given = [f"CLOUD_CONFIG={config}", f"ISO={tiny_installer.iso()}", "NAME=edge"]
    images = tmp_path / "images"
    for target, name in (("qcow2", "edge.qcow2"), ("img", "edge.img"), ("qcow2-image", "edge.oci.tar")):
        subprocess.run([*MAKE, f"container-{target}", *given], check=True, env={**env, "IMAGES": str(images)})
        assert (images / name).is_file()
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", images / "edge.qcow2"]))
    assert info["virtual-size"] == 96 << 20
    assert b"in-a-container" in (images / "edge.img").read_bytes()


@pytest.fixture
def container(builder: dict[str, str]) -> Iterator[str]:
    """A container of the builder."""
    name = subprocess.check_output(["buildah", "from", "obuild"], env=builder, text=True).strip()
    yield name
    subprocess.run(["buildah", "rm", name], env=builder, check=True, stdout=subprocess.DEVNULL)


def test_a_guest_boots_in_the_container(builder: dict[str, str], container: str, tmp_path: Path) -> None:
    store = new_store(tmp_path / "store", base_images("micro"))
    # buildah's chroot shows the host's /dev, so /dev/kvm is there if the host has it
    run = ["buildah", "run", "-v", f"{store}:/var/lib/obuild", container, "--"]
    said = subprocess.run([*run, "obuild", "healthcheck"], env=builder, check=True, capture_output=True, text=True)
    assert said.stdout.endswith("Healthcheck passed\n")
    capable = subprocess.run([*run, "obuild", "doctor"], env=builder, check=True, capture_output=True, text=True)
    assert "ok  base images from packages: mmdebstrap" in capable.stdout
    manual = subprocess.check_output([*run, "ls", "/opt/obuild/share/man/man1"], env=builder, text=True)
    assert "obuild-build.1\n" in manual
