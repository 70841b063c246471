"""An image made from packages is the same, bit for bit, whoever makes it where and when."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from obuild.host import disk_content, qemu_img
from tests.support.program import ROOT, Program, base_images, layers, new_store

pytestmark = pytest.mark.vm

RECIPES = ROOT / "tests/recipes"

#: Another time zone, language, umask, host name, and one CPU. $2 is "day": tomorrow's clock, or "user": for root,
#: another user, if that one can run our Python. Not both: a user's other uids cannot share the fake clock.
ELSEWHERE = """\
set -eu
folder=$1
what=$2
shift 2
umask 077
export TZ=Asia/Tokyo LC_ALL=POSIX LANG=de_DE.UTF-8
if [ "$(id -u)" = 0 ]; then hostname elsewhere; fi
# faketime's files are named by process ids; those that others have left would be in the way.
if [ "$(id -u)" = 0 ]; then mount -t tmpfs -o mode=1777 shm /dev/shm; fi
other="setpriv --reuid=4242 --regid=4242 --clear-groups"
if [ "$what" = day ]; then
    set -- faketime -f +1d "$@"
elif [ "$(id -u)" = 0 ] && $other "$@" --help >/dev/null 2>&1; then
    { cat /etc/passwd; echo "somebody:x:4242:4242::$folder:/bin/sh"; } >"$folder/passwd"
    echo somebody:1000000000:65536 >"$folder/subids"
    chmod 644 "$folder/passwd" "$folder/subids"
    mount --bind "$folder/passwd" /etc/passwd
    mount --bind "$folder/subids" /etc/subuid
    mount --bind "$folder/subids" /etc/subgid
    chown 4242:4242 "$folder"
    set -- env "HOME=$folder" USER=somebody $other "$@"
fi
exec taskset 1 "$@"
"""


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder that another user can be given: pytest's own is closed to others."""
    with tempfile.TemporaryDirectory(prefix="obuild elsewhere-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def content(store: Path, name: str) -> str:
    """The digest of a base image's content."""
    return disk_content.digest(qemu_img.inspect(store / f"base-image/{name}.qcow2"), None)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        pytest.param("micro", "day", marks=pytest.mark.skipif(os.geteuid() != 0, reason="see ELSEWHERE")),
        pytest.param("debian-12", "user", marks=pytest.mark.long),
        pytest.param(str(RECIPES / "sealed.toml"), "user", marks=pytest.mark.long),
    ],
)
def test_an_image_is_the_same_for_everybody(name: str, what: str, elsewhere: Path) -> None:
    make = [sys.executable, "-m", "obuild", "base", "make", name]
    here = base_images(name)
    there = [] if os.geteuid() else ["unshare", "--uts", "--mount"]
    script = [*there, "sh", "-c", ELSEWHERE, "sh", str(elsewhere), what]
    subprocess.run([*script, *make, f"--store=qemu:{elsewhere}/a/store"], check=True)
    image = Path(name).stem if name.endswith(".toml") else name
    assert content(elsewhere / "a/store", image) == content(here, image)
    for disk in (here / "base-image").glob("*.verity.raw"):
        assert (elsewhere / "a/store/base-image" / disk.name).read_bytes() == disk.read_bytes()


@pytest.mark.long
def test_a_machine_that_uefi_starts_builds_and_is_kept_warm(tmp_path: Path) -> None:
    program = Program(new_store(tmp_path / "store", base_images(str(RECIPES / "uki.toml"))))
    spec = tmp_path / "test.spec"
    spec.write_text("""((from uki)
 (run (shell "ls /sys/firmware/efi; cat /proc/cmdline"))
 (run (shell "cat /proc/sys/kernel/random/boot_id")))""")
    first = program.build(spec, tmp_path)
    assert "runtime-map" in first.stdout
    assert " rw console=ttyS0 quiet " in first.stdout
    assert layers(first.stdout)[-1] in {path.name for path in (program.store / "warm").iterdir()}
