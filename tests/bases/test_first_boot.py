"""The first boot of FreeBSD and OpenBSD: the script, and the report. No guest has run it yet."""

from __future__ import annotations

import hashlib
import lzma
import os
import subprocess
from pathlib import Path

import pytest

from obuild.bases import cloud, first_boot, unattended
from obuild.bases.kind import Making
from obuild.bases.remote import Remote
from obuild.errors import UsageError
from obuild.store.layers import Store
from tests.support.recipes import recipe_of

KEY = "ssh-ed25519 AAAA me"

RECIPE = f"""
kind = "cloud"
size = "1G"
[card]
os = "freebsd"
login = "root"
[cloud]
user-data = '''
#!/bin/sh -e
echo "it's done"
'''
[cloud.image]
url = "https://example.org/image.qcow2.xz"
digest = "sha256:{"0" * 64}"
"""


def test_the_seed_has_one_script_and_no_vendor_data() -> None:
    files = cloud.seed_files(recipe_of(RECIPE), KEY)
    assert sorted(files) == ["meta-data", "user-data"]
    assert files["user-data"].startswith(b"#!/bin/sh\n")


@pytest.mark.parametrize("os_name", sorted(first_boot.LINES))
@pytest.mark.parametrize(
    ("login", "own", "expected"),
    [
        ("root", '#!/bin/sh -e\necho "it\'s done"\n', ""),
        ("root", "#!/bin/sh -e\necho oops\nfalse\necho never\n", "user-data failed with exit status 1"),
        ("nobody-here", "#!/bin/sh\n", "there is no user nobody-here, the login of the recipe's card"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="the script runs as root, in folders of its own")
def test_the_script_sets_the_guest_up_and_reports(
    tmp_path: Path, os_name: str, login: str, own: str, expected: str
) -> None:
    """It runs here, where the files that it changes are others."""
    passwd, line, tools = tmp_path / "passwd", tmp_path / "line", tmp_path / "bin"
    passwd.write_text(f"root:*:0:0::{tmp_path}/home:/bin/sh\n")
    tools.mkdir()
    for tool in ("sysrc", "shutdown"):
        (tools / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >>{tmp_path}/called\n')
        (tools / tool).chmod(0o755)
    script = first_boot.user_data(os_name, login, KEY, own)
    for real, other in (
        ("/etc/passwd", passwd),
        (first_boot.LINES[os_name], line),
        ("/var/tmp/", f"{tmp_path}/"),
        ("/etc/cloud", tmp_path / "cloud"),
        ("/firstboot", tmp_path / "firstboot"),
    ):
        script = script.replace(str(real), str(other))
    path = f"{tools}:{os.environ['PATH']}"
    subprocess.run(["sh", "-c", script], check=True, env={**os.environ, "PATH": path})
    console = line.read_text().replace("\n", "\r\n") + "Uptime: 1m\r\n"
    assert first_boot.problem(console) == expected
    assert ("oops" in console) == ("oops" in own)
    if login == "root":
        assert (tmp_path / "home/.ssh/authorized_keys").read_text() == f"{KEY}\n"
    assert "shutdown -p now" in (tmp_path / "called").read_text()
    assert not list(tmp_path.glob("obuild-first-boot*"))


def test_a_guest_that_does_not_report_has_failed() -> None:
    assert first_boot.problem("FreeBSD/amd64\n") == "the guest powered off before its first boot was done"


def test_user_data_of_such_a_system_is_a_script() -> None:
    with pytest.raises(UsageError, match="user-data must be a script for this system"):
        recipe_of(RECIPE.replace("#!/bin/sh -e", "#cloud-config"))


# -- packed images


def fetched(store: Store, tmp_path: Path, data: bytes) -> Path:
    file = tmp_path / "image.xz"
    file.write_bytes(data)
    making = Making(store, tmp_path / "key", KEY, print, lambda remote: file)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return unattended.fetched(Remote((file.as_uri(),), digest), tmp_path / "image", making)


def test_an_image_is_unpacked(store: Store, tmp_path: Path) -> None:
    assert fetched(store, tmp_path, lzma.compress(b"disk" * 1000)).read_bytes() == b"disk" * 1000


@pytest.mark.parametrize("data", [b"no xz", lzma.compress(b"disk" * 1000)[:-20]], ids=["other", "cut"])
def test_what_cannot_be_unpacked_is_refused(store: Store, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UsageError, match=r"image\.xz is not an xz file"):
        fetched(store, tmp_path, data)
