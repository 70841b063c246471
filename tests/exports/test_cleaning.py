"""What `--sysprep` does to a system: the script runs on a made tree of files, in several shells."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.exports.cleaning import linux
from obuild.exports.cleaning.operations import OPERATIONS, pick

SHELLS = (["dash"], ["bash", "--posix"], ["busybox", "sh"])
NAMES = [each.name for each in OPERATIONS]
OURS, THEIRS = "AAAAC3NzaC1lZDI1NTE5AAAAI/our+key", "AAAAC3NzaC1lZDI1NTE5AAAAItheirs"

#: What each operation removes, by path; and files beside that stay.
GOES = {
    "ssh-hostkeys": ["etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub"],
    "random-seed": ["var/lib/systemd/random-seed", "var/lib/systemd/credential.secret"],
    "account-backups": ["etc/passwd-", "etc/shadow-"],
    "cloud-init": ["var/lib/cloud/instances/i-1/user-data.txt", "etc/cloud/cloud-init.disabled"],
    "package-cache": ["var/lib/apt/lists/deb_Packages", "var/cache/apt/archives/a.deb", "var/cache/dnf/x/y"],
    "histories": ["root/.bash_history", "home/pg/.psql_history", "home/pg/.viminfo"],
    "dhcp-leases": ["var/lib/dhcp/dhclient.eth0.leases", "var/lib/NetworkManager/a.lease"],
    "udev-rules": ["etc/udev/rules.d/70-persistent-net.rules"],
    "crash-data": ["var/crash/one.crash", "var/lib/systemd/coredump/core.1"],
    "mail": ["var/mail/pg", "var/spool/mail/root"],
    "cron-spool": ["var/spool/cron/crontabs/pg", "var/spool/cron/root"],
    "tmp": ["tmp/a file", "tmp/.hidden/x", "var/tmp/..twice"],
    "logs": ["var/log/journal/1/system.journal", "var/log/syslog.1", "var/log/nginx/access.log.2.gz"],
    "builder-user": ["home/builder/.profile", "etc/sudoers.d/builder"],
}
STAYS = [
    "etc/ssh/sshd_config",
    "etc/udev/rules.d/60-mine.rules",
    "home/pg/data",
    "var/lib/systemd/x",
    "etc/sudoers",
]

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
builder:x:1000:1000::/home/builder:/bin/bash
pg:x:1001:1001::/home/pg:/bin/sh
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The tree of a system with systemd."""
    top = tmp_path / "a root"
    for name in [*STAYS, *(each for names in GOES.values() for each in names)]:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("# text\ncontent\n")
    texts = {
        "etc/passwd": PASSWD,
        "etc/shadow": "root:$6$salt$hash:19700:0:99999:7:::\nbuilder:*:19700:0:99999:7:::\npg:!:19700::::::\n",
        "etc/group": "root:x:0:\nsudo:x:27:builder\ndisk:x:6:builder,pg\nusers:x:9:pg,builder\nbuilder:x:1000:\n",
        "etc/sudoers.d/both": "builder ALL=(ALL) NOPASSWD: ALL\npg ALL=(ALL) ALL\n",
        "etc/sudoers.d/builder": "# by obuild\nbuilder ALL=(ALL) NOPASSWD: ALL\n",
        "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n",
        "root/.ssh/authorized_keys": f"ssh-ed25519 {OURS} obuild\n" + "\n" * 3000,
        "home/pg/.ssh/authorized_keys": f"ssh-ed25519 {THEIRS} pg\nssh-ed25519 {OURS} obuild\n",
        "var/log/dpkg.log": "installed\n",
        "proc/mounts": "/dev/vda1 / ext4 rw 0 0\n/dev/vda2 /data xfs rw,noatime 0 0\ntmpfs /run tmpfs rw 0 0\n",
        "lib/systemd/systemd": "",
    }
    for name, text in texts.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    (top / "sbin").mkdir()
    (top / "sbin/init").symlink_to("../lib/systemd/systemd")
    (top / "root/.ssh/authorized_keys").chmod(0o600)
    return top


def clean(root: Path, *operations: str, shell: list[str] = SHELLS[0], dry_run: bool = False) -> list[str]:
    """Run the script on a tree; return what it prints."""
    text = linux.script(
        operations, login="builder", public_key=f"ssh-ed25519 {OURS} x", dry_run=dry_run, root=str(root)
    )
    done = subprocess.run([*shell, "-c", text], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def files(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path.relative_to(root)): b"" if path.is_symlink() else path.read_bytes() for path in found}


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_the_usual_operations_clean_a_system(root: Path, shell: list[str]) -> None:
    before = files(root)
    assert clean(root, *pick(""), shell=shell) == []
    after = files(root)
    assert not root.with_name(f"{root.name}.list").exists()
    assert {name for names in GOES.values() for name in names} == before.keys() - after.keys()
    assert all(before[name] == after[name] for name in STAYS)

    text = {name: content.decode() for name, content in after.items()}
    assert text["etc/machine-id"] == ""
    assert (root / "var/lib/dbus/machine-id").readlink() == Path("/etc/machine-id")
    assert text["etc/shadow"] == "root:*:19700:0:99999:7:::\npg:!:19700::::::\n"
    assert text["etc/passwd"] == PASSWD.replace("builder:x:1000:1000::/home/builder:/bin/bash\n", "")
    assert text["etc/group"] == "root:x:0:\nsudo:x:27:\ndisk:x:6:pg\nusers:x:9:pg\n"
    assert text["etc/sudoers.d/both"] == "pg ALL=(ALL) ALL\n"
    assert text["root/.ssh/authorized_keys"] == ""
    assert (root / "root/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o600
    assert text["home/pg/.ssh/authorized_keys"] == f"ssh-ed25519 {THEIRS} pg\n"
    assert text["var/log/dpkg.log"] == ""


@pytest.mark.parametrize("operation", GOES)
def test_a_dry_run_names_what_an_operation_removes(root: Path, operation: str) -> None:
    before = files(root)
    listed = clean(root, operation, dry_run=True)
    assert files(root) == before
    assert all(line.startswith(f"{operation}\t") for line in listed)
    clean(root, operation)
    gone = before.keys() - files(root).keys()
    assert gone == set(GOES[operation])
    for name in gone:  # it is named, or a folder that it was in
        path = root / name
        assert any(line.endswith(f" {each}") for line in listed for each in (path, *path.parents))
    assert clean(root, operation, dry_run=True) == []


def test_a_dry_run_changes_nothing(root: Path) -> None:
    before = files(root)
    listed = clean(root, *NAMES, dry_run=True)
    assert files(root) == before
    quiet = {name for name in NAMES if not any(line.startswith(f"{name}\t") for line in listed)}
    assert quiet == set()
    assert "trim\tdiscard the free space of /data" in listed
    assert f"machine-id\tempty {root}/etc/machine-id" in listed


def test_a_file_with_another_name_elsewhere_keeps_its_content(root: Path) -> None:
    os.link(root / "home/pg/data", root / "tmp/link")
    clean(root, "tmp")
    assert (root / "home/pg/data").read_text() == "# text\ncontent\n"
    assert not (root / "tmp/link").exists()


@pytest.mark.parametrize(
    ("init", "made", "started"),
    [
        ("lib/systemd/systemd", "", "etc/systemd/system/multi-user.target.wants/make-ssh-hostkeys.service"),
        ("bin/busybox", "sbin/openrc-run", "etc/runlevels/default/make-ssh-hostkeys"),
        ("bin/busybox", "etc/rcS.d/S01x", "etc/inittab"),
        ("sbin/sysvinit", "etc/rcS.d/S01x", "etc/rcS.d/S90make-ssh-hostkeys"),
    ],
)
def test_host_keys_are_made_again_at_boot(root: Path, init: str, made: str, started: str) -> None:
    for name in filter(None, (init, made, "etc/runlevels/default/sshd")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
        (root / name).chmod(0o755)
    (root / "sbin/init").unlink()
    (root / "sbin/init").symlink_to(f"../{init}")
    clean(root, "ssh-hostkeys")
    maker = root / "usr/local/sbin/make-ssh-hostkeys"
    assert maker.stat().st_mode & 0o777 == 0o755
    assert "for type in ed25519 rsa; do" in maker.read_text()
    assert (root / started).is_symlink() or (root / started).read_text() == f"::wait:/{maker.relative_to(root)}\n"
    scripts = [maker, *(root / "etc").glob("init.d/*")]
    for script in scripts:
        subprocess.run(["sh", "-n", script], check=True)


def test_host_keys_stay_where_nothing_could_make_them(root: Path) -> None:
    (root / "sbin/init").unlink()
    text = linux.script(["ssh-hostkeys"], login="root", public_key="", root=str(root))
    done = subprocess.run(["dash", "-c", text], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("ssh-hostkeys: it is not known how this system starts programs")
    assert (root / "etc/ssh/ssh_host_rsa_key").exists()


def test_a_system_with_nothing_to_clean_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mounts").touch()
    before = files(tmp_path)
    assert clean(tmp_path, *NAMES) == []
    assert files(tmp_path) == before


def test_root_needs_no_user_to_be_removed(root: Path) -> None:
    text = linux.script(["builder-user"], login="root", public_key="", root=str(root))
    subprocess.run(["dash", "-c", text], check=True)
    assert (root / "etc/passwd").read_text() == PASSWD


def test_a_comment_beside_the_users_rules_stays(root: Path) -> None:
    (root / "etc/sudoers.d/README").write_text("# nothing but comments\n")
    clean(root, "builder-user")
    assert (root / "etc/sudoers.d/README").exists()


@pytest.mark.parametrize(
    ("text", "more", "less"),
    [
        ("", "", "zero"),
        ("-ssh-hostkeys,+zero", "zero", "ssh-hostkeys"),
        ("-all,+tmp", "tmp", "logs"),
        ("-logs, zero", "zero", "logs"),
    ],
)
def test_operations_are_picked(text: str, more: str, less: str) -> None:
    chosen = pick(text)
    assert more in ("", *chosen)
    assert less not in chosen
    assert sorted(chosen, key=NAMES.index) == list(chosen)


def test_the_user_can_be_kept() -> None:
    assert set(pick("")) - set(pick("", keep_user=True)) == {"builder-user"}


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        pick("-ssh-hostkey")
    assert caught.value.message == "--sysprep: there is no operation 'ssh-hostkey'"
    assert caught.value.hint == "did you mean 'ssh-hostkeys'?"


def test_the_script_has_a_function_for_each_operation() -> None:
    source = linux.script([], login="", public_key="")
    functions = set(re.findall(r"^([a-z_]+)\(\) \{", source, re.MULTILINE))
    assert {name.replace("-", "_") for name in NAMES} <= functions


def test_the_manual_has_every_operation() -> None:
    manual = (Path(__file__).parents[2] / "docs/exports.md").read_text()
    for each in OPERATIONS:
        assert f"| `{each.name}` | {each.what}" in manual
