"""Cloud images with real guests: with a miniature cloud-init, and (`make test-long`) with Debian's own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.store import fsck
from obuild.store.layers import Store
from tests.support.program import ROOT, Program, base_images

pytestmark = pytest.mark.vm

RECIPES = ROOT / "tests" / "recipes"

HEAD = """
kind = "cloud"
size = "{size}"
[card]
login = "{login}"
memory = "256M"
[cloud.image]
url = "{url}"
digest = "sha256:{digest}"
[cloud]
timeout = "{timeout}"
user-data = '''
#cloud-config
{config}
'''
"""


@pytest.fixture(scope="session")
def tiny_cloud() -> Path:
    """An image with a miniature cloud-init."""
    return base_images(str(RECIPES / "tiny-cloud.toml")) / "base-image" / "tiny-cloud.qcow2"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "store")


def recipe_of(
    folder: Path, image: Path, config: str, *, size: str = "1G", login: str = "root", timeout: str = "10m"
) -> Path:
    """Write a recipe for this image with the given cloud-config."""
    path = folder / "mine.toml"
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    path.write_text(
        HEAD.format(url=image.as_uri(), digest=digest, config=config, size=size, login=login, timeout=timeout)
    )
    return path


def assert_only_the_download_is_left(program: Program, image: Path) -> None:
    store = Store.open(program.store)
    assert list(fsck.check(store, read_data=True)) == []
    assert list(store.base_image.iterdir()) == []
    assert list(store.downloads.names()) == [f"sha256-{hashlib.sha256(image.read_bytes()).hexdigest()}"]


def test_a_cloud_image_becomes_a_base(
    program: Program, tiny_cloud: Path, tmp_path: Path, source: Path, spec: Callable[[str], Path]
) -> None:
    mine = recipe_of(tmp_path, tiny_cloud, 'runcmd:\n- [sh, -e, -c, "hostname >/root/made"]\n- echo second')
    said = program("base", "make", mine).stdout
    assert "mine: cloud-init says: a warning of the tiny one" in said
    assert [path.name for path in sorted((program.store / "base-image").iterdir())] == [
        "mine.made",
        "mine.qcow2",
        "mine.toml",
    ]
    # The store's key logs us in, the seed is gone, cloud-init is off, and the disk has grown.
    look = "cat /root/made /sys/block/vda/size; test ! -e /dev/vdb; test -e /etc/cloud/cloud-init.disabled"
    step, remote = f'(run (shell "{look}"))', f"dir:{tmp_path / 'remote'}"
    built = program.build(spec(f"((from mine) {step})"), source, "--vm", "boot", "--remote", remote).stdout
    assert "mine\n2097152\n" in built
    # Another store needs neither the image nor the key of this one.
    other = Program(tmp_path / "other")
    text = f'((from mine) {step} (run (shell "cat /root/.ssh/authorized_keys | grep -c .")))'
    assert "\n1\n" in other.build(spec(text), source, "--vm", "boot", "--remote", remote).stdout
    assert "exists already, and its recipe has not changed" in program("base", "make", mine, "--if-changed").stdout
    mine.write_text(mine.read_text().replace("echo second", "echo third"))
    assert "stale" in program("base", "ls").stdout


@pytest.mark.long
def test_a_failing_command_fails_the_image_with_cloud_inits_output(
    program: Program, tiny_cloud: Path, tmp_path: Path
) -> None:
    mine = recipe_of(tmp_path, tiny_cloud, 'runcmd:\n- [sh, -e, -c, "echo going wrong; false"]')
    said = program("base", "make", mine, code=1).stderr
    assert "mine: ('scripts-user', RuntimeError('Runparts: 1 failures'))" in said.replace('"', "'")
    assert "cloud-init's output ends with:\ngoing wrong\nits console ends with:\n" in said
    assert "Cloud-init v. tiny finished" in said  # on its console
    assert_only_the_download_is_left(program, tiny_cloud)


@pytest.mark.long
def test_a_missing_login_user_fails_the_image(program: Program, tiny_cloud: Path, tmp_path: Path) -> None:
    mine = recipe_of(tmp_path, tiny_cloud, "{}", login="nobody-there")
    assert "there is no user 'nobody-there'" in program("base", "make", mine, code=1).stderr


@pytest.mark.long
def test_a_reboot_fails_the_image(program: Program, tiny_cloud: Path, tmp_path: Path) -> None:
    mine = recipe_of(tmp_path, tiny_cloud, "power_state: {mode: reboot}")
    assert "mine: the guest rebooted instead of powering off" in program("base", "make", mine, code=1).stderr
    assert_only_the_download_is_left(program, tiny_cloud)


@pytest.mark.long
def test_a_guest_that_does_not_power_off_is_killed(program: Program, tiny_cloud: Path, tmp_path: Path) -> None:
    mine = recipe_of(tmp_path, tiny_cloud, "{}", timeout="1s")
    assert "mine: the guest has not powered off after 1 s" in program("base", "make", mine, code=1).stderr
    assert_only_the_download_is_left(program, tiny_cloud)


@pytest.mark.long
@pytest.mark.parametrize("point", ["machine.started", "base.placing"])
def test_a_killed_process_leaves_the_download(
    program: Program, tiny_cloud: Path, tmp_path: Path, point: str
) -> None:
    mine = recipe_of(tmp_path, tiny_cloud, "{}")
    program("base", "make", mine, code=-9, env={"OBUILD_KILL_AT": point})
    assert_only_the_download_is_left(program, tiny_cloud)


DEBIAN_CONFIG = """\
users:
- name: me
  sudo: ALL=(ALL) NOPASSWD:ALL
  shell: /bin/bash
write_files:
- path: /opt/step
  permissions: "0755"
  content: |
    id -un >/opt/done
runcmd:
- [sh, -e, /opt/step]
"""


@pytest.mark.long
def test_a_base_is_made_with_debians_own_cloud_init(
    program: Program, tmp_path: Path, source: Path, spec: Callable[[str], Path]
) -> None:
    image = base_images(str(RECIPES / "debian-cloud.toml")) / "base-image" / "debian-cloud.qcow2"
    mine = recipe_of(tmp_path, image, DEBIAN_CONFIG, size="6G", login="me", timeout="1h")
    program("base", "make", mine)
    # The work of the first boot is there, cloud-init leaves no trace in a later one, and the root has grown.
    look = "id -un; cat /opt/done; ls /run/cloud-init; df --output=size -BG / | tail -n 1; ls /dev/vdb"
    text = f'((from mine) (user (uid 1000) (gid 1000)) (run (shell "{look} || true")))'
    built = program.build(spec(text), source).stdout
    assert "\nme\nroot\n" in built
    assert "result.json" not in built
    assert re.search(r"^ *6G$", built, re.MULTILINE), built
    assert "cannot access '/dev/vdb'" in built


@pytest.mark.long
def test_with_debians_own_cloud_init_a_failed_package_fails_the_image(program: Program, tmp_path: Path) -> None:
    image = base_images(str(RECIPES / "debian-cloud.toml")) / "base-image" / "debian-cloud.qcow2"
    config = "packages: [no-such-package]\nusers: [{name: me}]\n"
    mine = recipe_of(tmp_path, image, config, size="6G", login="me", timeout="1h")
    said = program("base", "make", mine, code=1).stderr
    assert "package" in said
    assert "Unable to locate package no-such-package" in said
    assert_only_the_download_is_left(program, image)
