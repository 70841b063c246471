"""FreeBSD's and OpenBSD's scripts: the text, and what they do here, with substitutes for a few programs."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from obuild.guests import freebsd, openbsd
from obuild.plan import tree
from obuild.plan.archive import send
from obuild.spec import UnixUser, WindowsUser
from tests.support.guests import BASH_OR_SH, can_mount, typed_at
from tests.support.ssh_server import bsd_programs

ROOT = UnixUser(0, 0)
USER = UnixUser(12345, 23456)
MARK = "obuild-mark"
BOTH = pytest.mark.parametrize("guest", [freebsd, openbsd])

needed = [program for program in ("setpriv", "bsdtar", "perl") if not shutil.which(program)]
real = pytest.mark.skipif(
    os.getuid() != 0 or bool(needed), reason=f"needs to be root, and {', '.join(needed) or 'nothing else'}"
)
mounting = pytest.mark.skipif(not can_mount() or bool(needed), reason="needs to be root, and mount namespaces")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that any user can enter, with the BSDs' programs first in PATH; their scratch folders are in it."""
    with tempfile.TemporaryDirectory(prefix="obuild-test-") as name:
        place = Path(name)
        place.chmod(0o755)
        programs = bsd_programs(place / "programs")
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        for guest in (freebsd, openbsd):
            monkeypatch.setattr(guest, "DEFAULT_PATH", f"{programs}:{guest.DEFAULT_PATH}")
            monkeypatch.setattr(guest, "SCRATCH", f"{place}/scratch")
            monkeypatch.setattr(guest, "SECRETS", f"{place}/secrets")
        yield place


def run(
    guest: ModuleType,
    *argv: str,
    cwd: str | Path = "/",
    env: tuple[tuple[str, str], ...] = (),
    user: UnixUser | WindowsUser = ROOT,
) -> tuple[str, int]:
    text = guest.run_script(argv, cwd=str(cwd), env=env, user=user, mark=MARK)
    done = subprocess.run(["sh"], input=text, capture_output=True, check=True)
    assert done.stderr == b""
    output, mark, status = done.stdout.decode("utf-8", "surrogateescape").rpartition(f"{MARK} ")
    assert mark, "the mark must come, whatever happened"
    return output, int(status)


# -- the text


def test_the_ways_to_root() -> None:
    assert freebsd.root_shell("root") == openbsd.root_shell("root") == "exec sh"
    assert openbsd.root_shell("opam") == "exec doas -n sh"
    assert freebsd.root_shell("opam") == (
        'exec sh -c \'exec "$(command -v sudo || command -v doas)" -n "$@"\' sh sh'
    )


def test_freebsd_becomes_a_user_by_chroot() -> None:
    lines = (
        freebsd.run_script(["x", "a b"], cwd="/w", env=[("A", "1")], user=USER, mark=MARK).decode().splitlines()
    )
    assert lines[0] == "exec 2>&1"
    assert lines[2].startswith("uid=12345 gid=23456 groups=23456 || ")
    assert lines[-2] == (
        'chroot -u "$uid" -g "$gid" -G "$groups" / /bin/sh -c '
        '\'cd -P -- "$0" || exit 125; exec env -i "$@"\' /w '
        f"HOME=\"${{home:-/}}\" PATH={freebsd.DEFAULT_PATH} A=1 x 'a b' </dev/null"
    )
    assert lines[-1] == f"status=$?; printf '%s %d\\n' {MARK} \"$status\""


@BOTH
def test_a_shells_script_is_a_steps_without_the_pipes(guest: ModuleType) -> None:
    step = guest.run_script(["x"], cwd="/w", env=[("A", "1 2")], user=USER, mark=MARK).decode().splitlines()
    *before, terminal, last = typed_at(guest.shell_command("root", cwd="/w", env=[("A", "1 2")], user=USER))
    says = f"{{ printf '%s %d\\n' {MARK} \"125\"; exit; }}"
    assert before == [line.replace(says, "exit 125") for line in step[1:-2]]
    assert terminal in (
        'tty -s && chown 12345 "$(tty)" 2>/dev/null',
        'tty -s && chown "$uid" "$(tty)" 2>/dev/null',
    )
    assert last == f'exec {step[-2].removesuffix("x </dev/null")}TERM="${{TERM:-dumb}}" {BASH_OR_SH}'
    become = guest.root_shell("opam").removesuffix("sh")
    assert guest.shell_command("opam", cwd="/w", env=[], user=USER).startswith(f"{become}sh -c 'eval ")


def test_freebsd_accepts_users_by_name() -> None:
    text = freebsd.run_script(["x"], cwd="/", env=[], user=WindowsUser("opam"), mark=MARK).decode()
    assert "uid=$(id -u -- opam) && gid=$(id -g -- opam) && groups=$(id -G -- opam | tr ' ' ,) || {" in text


def test_openbsd_becomes_a_user_by_perl() -> None:
    lines = openbsd.run_script(["x"], cwd="/w", env=[], user=USER, mark=MARK).decode().splitlines()
    assert lines[-2].startswith("perl -MPOSIX=setuid,setgid -e ")
    assert '\' 12345 23456 /bin/sh -c \'cd -P -- "$0" || exit 125; exec env -i "$@"\' /w HOME=' in lines[-2]


def test_openbsd_accepts_no_users_by_name() -> None:
    with pytest.raises(TypeError):
        openbsd.receive_command("root", "/x", WindowsUser("opam"))


def test_the_command_that_receives_a_tree() -> None:
    assert freebsd.receive_command("root", "/d", USER).endswith(
        'exec tar -x -f - -p -P --same-owner --numeric-owner --uid "$uid" --gid "$gid"\''
    )
    assert openbsd.receive_command("opam", "/d", USER).startswith("doas -n sh -c 'set -e; ")
    assert openbsd.receive_command("opam", "/d", USER).endswith(
        "exec gtar --extract --file=- --same-permissions --same-owner --numeric-owner "
        "--no-overwrite-dir --keep-directory-symlink'"
    )


@BOTH
def test_command_lines_that_csh_may_read_are_one_line(guest: ModuleType) -> None:
    for line in (
        guest.receive_command("root", "/d", USER),
        guest.receive_cache("root", 0),
        guest.receive_secret("root", 0),
        guest.shell_command("root", cwd="/d!", env=[("A", "!\n")], user=USER),
        guest.root_shell("x"),
    ):
        assert "\n" not in line
    assert "!" not in guest.shell_command("root", cwd="/d!", env=[("A", "!\n")], user=USER)


def test_freebsd_mounts_caches_and_openbsd_swaps_folders() -> None:
    assert freebsd.open_cache(1, "/c", ROOT).decode().splitlines()[-1] == "mount_nullfs /var/obuild-scratch/1 /c"
    assert freebsd.close_caches(["/c", "/c/d"]).decode().splitlines() == [
        "set -e", "umount -f /c/d", "umount -f /c", "rm -rf /var/obuild-scratch",
    ]  # fmt: skip
    assert openbsd.open_cache(1, "/c", USER).decode().splitlines()[-5:] == [
        "[ ! -e /c.obuild-1 ]",
        "mv -- /c /c.obuild-1",
        "printf %s /c >/var/obuild-scratch/1.target",
        "mkdir -- /c",
        "chown 12345:23456 /c",
    ]


def test_a_cache_goes_through_pipes() -> None:
    head, options = "/var/obuild-scratch/1.head", "-C /var/obuild-scratch/1 -p --same-owner --numeric-owner"
    assert freebsd.receive_cache("root", 1) == (
        f"sh -c 'set -e; dd bs=1 count=512 of={head} 2>/dev/null; "
        f'if [ "$(tar -t -f {head} 2>/dev/null)" = ./ ]; then tar -x -f - {options}; tar -x -f {head} {options}; '
        f"else cat {head} - | tar -x -f - {options}; fi'"
    )
    assert freebsd.receive_cache("opam", 1).endswith(' -n "$@"\' sh ' + freebsd.receive_cache("root", 1))
    assert freebsd.send_cache(1).decode().splitlines() == [
        "set -e",
        "cd /var/obuild-scratch/1",
        "find . -print0 | LC_ALL=C sort -z | "
        "tar -c -f - --format gnutar --numeric-owner --no-recursion --null -T -",
    ]
    assert openbsd.receive_cache("opam", 1) == (
        "doas -n sh -c 'set -e; target=$(cat /var/obuild-scratch/1.target; echo .); target=${target%.}; "
        'exec gtar --extract --file=- --directory="$target" --same-permissions --same-owner --numeric-owner\''
    )
    assert openbsd.send_cache(1).decode().splitlines()[3:] == [
        'gtar --create --file=- --directory="$target" --format=gnu '
        "--sort=name --numeric-owner --sparse . || [ $? -eq 1 ]",
        'rm -rf -- "$target"',
        'mv -- "$target.obuild-1" "$target"',
        "rm /var/obuild-scratch/1.target",
    ]


def test_secrets_are_in_memory() -> None:
    assert b"mount -t tmpfs -o mode=711 tmpfs /var/obuild-secrets\n" in freebsd.prepare_secrets()
    assert b"mount_mfs -o nodev,nosuid -s 32768 swap /var/obuild-secrets\n" in openbsd.prepare_secrets()


def test_powering_off_from_inside() -> None:
    assert freebsd.power_off() == b"shutdown -p now\n"
    assert openbsd.power_off() == b"halt -p\n"


@BOTH
@pytest.mark.parametrize("word", ["a'b", "a;b", "$(reboot)", "`reboot`", "a\nreboot", "a b", "\udcff", "é"])
def test_no_word_of_a_spec_is_read_by_the_shell(guest: ModuleType, word: str) -> None:
    received = shlex.split(guest.receive_command("root", f"/{word}", ROOT))[-1]
    for text in (
        guest.run_script([word], cwd=f"/{word}", env=[("A", word)], user=ROOT, mark=MARK),
        guest.open_cache(0, f"/{word}", ROOT),
        guest.close_caches([f"/{word}"]),
        guest.open_secret(0, f"/{word}", ROOT),
        guest.close_secrets([f"/{word}"]),
        received.encode("utf-8", "surrogateescape"),
    ):
        assert subprocess.run(["sh", "-n"], input=text, check=False).returncode == 0
        harmless = text.decode("utf-8", "surrogateescape")
        for part in (word, f"/{word}", f"A={word}", f"/{word}.obuild-0", f"/{word}.obuild-secret-0"):
            harmless = harmless.replace(shlex.quote(part), "WORD")
        assert "reboot" not in harmless


# -- running


@real
@BOTH
@pytest.mark.parametrize("login", ["root", "opam"])
def test_a_shell_is_where_the_step_was(place: Path, guest: ModuleType, login: str) -> None:
    command = guest.shell_command(login, cwd=f"{place}/it's", env=(("A", "1  2!\n3"),), user=USER)
    done = subprocess.run(
        ["sh", "-c", command], input=b'id -u; id -G; pwd; echo "$A"; exit 42', capture_output=True, check=False
    )
    assert done.stdout.decode() == f"12345\n23456\n{place}/it's\n1  2!\n3\n"
    assert (done.stderr, done.returncode) == (b"", 42)


@real
@BOTH
@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_the_exit_status_follows_the_mark(place: Path, guest: ModuleType, status: int) -> None:
    assert run(guest, "sh", "-c", f"echo out; echo err >&2; exit {status}") == ("out\nerr\n", status)


@real
@BOTH
@pytest.mark.parametrize(
    "word", ["", "two  words", "it's", "$HOME `id` \\", "new\nline", "\udcff", "*", "-n", "A=B"]
)
def test_arguments_arrive_unchanged(place: Path, guest: ModuleType, word: str) -> None:
    assert run(guest, "printf", "<%s>", word, env=(("V", word),)) == (f"<{word}>", 0)


@real
@BOTH
def test_a_command_runs_as_its_user_in_its_workdir_without_other_groups(place: Path, guest: ModuleType) -> None:
    command = "id -u; id -g; id -G; pwd; echo $A $HOME"
    said = run(guest, "sh", "-c", command, cwd=place / "a b" / "c", env=(("A", "1  2"),), user=USER)
    assert said == (f"12345\n23456\n23456\n{place}/a b/c\n1 2 /\n", 0)
    assert ((place / "a b").stat().st_uid, (place / "a b").stat().st_gid) == (12345, 23456)


@real
@BOTH
def test_a_workdir_that_the_user_cannot_enter_is_a_failure_of_the_step(place: Path, guest: ModuleType) -> None:
    (place / "closed").mkdir(mode=0o700)
    output, status = run(guest, "echo", "must not run", cwd=place / "closed", user=USER)
    assert status == 125
    assert "must not run" not in output


@real
def test_a_user_by_name_has_the_groups_of_the_guest(place: Path) -> None:
    name = "daemon"
    said, status = run(freebsd, "sh", "-c", "id -u; id -G", user=WindowsUser(name))
    ids = subprocess.run(["sh", "-c", f"id -u {name}; id -G {name}"], capture_output=True, text=True, check=True)
    assert (said, status) == (ids.stdout, 0)


@real
def test_a_user_by_name_that_the_guest_does_not_know_is_a_failure_of_the_step(place: Path) -> None:
    output, status = run(freebsd, "echo", "must not run", user=WindowsUser("nobody-of-that-name"))
    assert status == 125
    assert "nobody-of-that-name" in output
    assert "must not run" not in output


@real
@BOTH
def test_a_tree_arrives_owned_by_the_user_through_symlinked_folders(place: Path, guest: ModuleType) -> None:
    source, dest = place / "source", place / "it's new"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "é").write_text("text")
    (source / "sub" / "é").chmod(0o4751)
    (source / "link").symlink_to("sub/é")
    (source / "hard").hardlink_to(source / "sub" / "é")
    (dest / "real").mkdir(parents=True)
    (dest / "sub").symlink_to("real")
    stream = io.BytesIO()
    send(tree.walk(source, ["."]), stream, uid=12345, gid=23456)
    command = guest.receive_command("root", str(dest), USER)
    done = subprocess.run(["sh", "-c", command], input=stream.getvalue(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    arrived = dest / "real" / "é"
    assert (arrived.stat().st_uid, arrived.stat().st_gid) == (12345, 23456)
    assert stat.S_IMODE(arrived.stat().st_mode) == 0o4751
    assert arrived.samefile(dest / "hard")
    assert (dest / "link").readlink() == Path("sub/é")


def together(*scripts: bytes) -> str:
    """Run scripts one after the other in one mount namespace, each in its own shell."""
    lines = [b"sh <<'END_OF_SCRIPT' || exit\n" + text + b"\nEND_OF_SCRIPT\n" for text in scripts]
    done = subprocess.run(["unshare", "--mount", "sh"], input=b"".join(lines), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


@mounting
@BOTH
def test_nested_caches_leave_no_trace(place: Path, guest: ModuleType) -> None:
    outer, inner = place / "c d", place / "c d" / "inner"
    outer.mkdir()
    (outer / "hidden").touch()
    opened = (guest.prepare_scratch(), guest.open_cache(0, str(outer), USER))
    closing = (
        f"exec >{place}/1.tar\n".encode() + guest.send_cache(1),
        f"exec >{place}/0.tar\n".encode() + guest.send_cache(0),
        guest.close_caches([str(outer), str(inner)]),
    )
    said = together(
        *opened,
        guest.open_cache(1, str(inner), ROOT),
        f"ls '{outer}'; stat -c '%u %g' '{outer}'; echo x >'{inner}/f'; echo y >'{outer}/o'".encode(),
        *closing,
    )
    assert said.splitlines()[0].startswith("inner")
    assert "12345 23456" in said
    assert os.listdir(outer) == ["hidden"]
    assert not (place / "scratch").exists()
    names = {slot: names_in(place / f"{slot}.tar") for slot in (0, 1)}
    assert names == {0: {".", "./inner", "./o"}, 1: {".", "./f"}}
    together(
        *opened,
        f"cat {place}/0.tar | {guest.receive_cache('root', 0)}".encode(),
        guest.open_cache(1, str(inner), ROOT),
        f"cat {place}/1.tar | {guest.receive_cache('root', 1)}".encode(),
        f"cat '{inner}/f' '{outer}/o' >{place}/read".encode(),
        *closing,
    )
    assert (place / "read").read_text() == "x\ny\n"


@mounting
@BOTH
def test_caches_that_were_not_fetched_leave_no_trace(place: Path, guest: ModuleType) -> None:
    outer, inner = place / "c d", place / "c d" / "inner"
    outer.mkdir()
    (outer / "hidden").touch()
    together(
        guest.prepare_scratch(),
        guest.open_cache(0, str(outer), USER),
        guest.open_cache(1, str(inner), ROOT),
        f"touch '{inner}/f' '{outer}/o'".encode(),
        guest.close_caches([str(outer), str(inner)]),
    )
    assert os.listdir(outer) == ["hidden"]
    assert not (place / "scratch").exists()


@pytest.mark.parametrize(("status", "fails"), [(1, False), (2, True)])
def test_openbsd_keeps_a_cache_that_it_cannot_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, fails: bool
) -> None:
    """A file that changes meanwhile is not a failure."""
    monkeypatch.setattr(openbsd, "SCRATCH", str(tmp_path))
    (tmp_path / "0.target").write_text(f"{tmp_path}/c")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").touch()
    (tmp_path / "c.obuild-0").mkdir()
    (tmp_path / "gtar").write_text(f"#!/bin/sh\necho archive; exit {status}\n")
    (tmp_path / "gtar").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh"], input=openbsd.send_cache(0), env=env, capture_output=True, check=False)
    assert (done.stdout, done.returncode != 0) == (b"archive\n", fails)
    assert (tmp_path / "c" / "file").exists() == fails
    assert (tmp_path / "c.obuild-0").exists() == fails


@mounting
@BOTH
@pytest.mark.parametrize(
    "packed", [["."], ["file", "folder"], ["--format=posix", "."], ["--files-from=/dev/null"]]
)
def test_an_imported_cache_may_be_packed_differently(place: Path, guest: ModuleType, packed: list[str]) -> None:
    source = place / "source"
    (source / "folder").mkdir(parents=True)
    (source / "file").write_text("text")
    subprocess.run(["tar", "-cf", place / "in.tar", "-C", source, *packed], check=True)
    together(
        guest.prepare_scratch(),
        guest.open_cache(0, f"{place}/c", USER),
        f"cat {place}/in.tar | {guest.receive_cache('root', 0)}".encode(),
        f"exec >{place}/out.tar\n".encode() + guest.send_cache(0),
        guest.close_caches([f"{place}/c"]),
    )
    full = {"./file", "./folder"} if packed[0] != "--files-from=/dev/null" else set()
    assert names_in(place / "out.tar") == {".", *full}


def names_in(archive: Path) -> set[str]:
    listed = subprocess.run(["tar", "-tf", archive], capture_output=True, text=True, check=True).stdout
    return {name.rstrip("/") for name in listed.splitlines()}


@mounting
@BOTH
def test_a_secret_is_readable_by_its_user_only_and_removed_afterwards(place: Path, guest: ModuleType) -> None:
    targets = [str(place / "new" / "deep" / "it's"), str(place / "there")]
    (place / "there").write_text("as it was")
    said = together(
        guest.prepare_secrets(),
        b"printf value0 | " + guest.receive_secret("root", 0).encode() + b"\n",
        b"printf value1 | " + guest.receive_secret("root", 1).encode() + b"\n",
        *(guest.open_secret(slot, target, USER) for slot, target in enumerate(targets)),
        *(f"stat -L -c '%u:%g %a' {shlex.quote(t)}; cat {shlex.quote(t)}; echo".encode() for t in targets),
        f"setpriv --reuid 12345 --regid 23456 --clear-groups cat '{place}/there'".encode(),
        guest.close_secrets(targets),
    )
    assert said.splitlines() == ["12345:23456 400", "value0", "12345:23456 400", "value1", "value1"]
    assert (place / "there").read_text() == "as it was"
    assert not (place / "new").exists()
    assert not (place / "secrets").exists()
