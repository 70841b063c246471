"""What a spec means on each OS: paths, users, defaults, and what is refused with the op's position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from obuild import spec
from obuild.errors import SpecError, UsageError
from obuild.guests import rules
from obuild.guests.all import GUESTS
from obuild.guests.profile import OSES, Card
from obuild.plan.planner import plan
from obuild.plan.steps import Base, Command, Transfer
from obuild.spec import UnixUser, WindowsUser

CMD = (r"C:\Windows\System32\cmd.exe", "/S", "/C")


def last(ops: str, os: str, source: Path = Path()) -> Any:
    base = Base("b", Path("/nowhere"), "d" * 64, (1, 2, 3), Card(os=os, login="Administrator"))
    stage = spec.parse(f"((from b)\n{ops})".encode())
    return plan(stage, source=source, bases={"b": base}, secrets=("s",)).actions[-1].action


def test_there_is_a_guest_for_every_system_that_a_card_may_name() -> None:
    assert set(GUESTS) == set(OSES)


@pytest.mark.parametrize("os", ["linux", "freebsd", "openbsd"])
def test_a_stage_begins_as_root_in_the_root_folder_with_bash(os: str) -> None:
    assert last("(run (shell x))", os) == Command(("bash", "-c", "x"), "/", (), UnixUser(0, 0), network=False)


def test_on_windows_a_stage_begins_with_cmd_as_its_administrator() -> None:
    user = WindowsUser("ContainerAdministrator")
    assert last("(run (shell x))", "windows") == Command((*CMD, "x"), "C:/", (), user, network=False)


@pytest.mark.parametrize(
    ("workdirs", "cwd"),
    [
        (r"(workdir C:\src)", "C:/src"),
        ("(workdir C:/src)", "C:/src"),
        ("(workdir c:/src/)", "C:/src"),
        ("(workdir /src)", "C:/src"),
        (r"(workdir \src)", "C:/src"),
        ("(workdir src)", "C:/src"),
        (r"(workdir /src) (workdir a\b) (workdir ./c)", "C:/src/a/b/c"),
        ("(workdir D:/x) (workdir y)", "D:/x/y"),
        ("(workdir D:/x) (workdir /y)", "D:/y"),
        ("(workdir /src) (workdir ..)", "C:/src/.."),
        ("(workdir C:/)", "C:/"),
    ],
)
def test_a_windows_path_may_have_either_slash_and_has_one_spelling(workdirs: str, cwd: str) -> None:
    assert last(f"{workdirs} (run (shell x))", "windows").cwd == cwd


def test_a_unix_path_has_no_drive_and_no_backslashes() -> None:
    assert last(r"(workdir C:\src) (run (shell x))", "freebsd").cwd == r"/C:\src"


def test_targets_are_windows_paths_too() -> None:
    command = last(
        r"(run (cache (c (target C:\Users\opam\cache)) (d (target sub))) (secrets (s (target /run/s))) (shell x))",
        "windows",
    )
    assert [cache.target for cache in command.caches] == ["C:/Users/opam/cache", "C:/sub"]
    assert command.secrets[0].target == "C:/run/s"


@pytest.mark.parametrize(
    ("dst", "dest", "paths"),
    [
        ("C:/", "C:/", ["file"]),
        ("C:\\\\new\\\\", "C:/new", ["file"]),
        ("/new/file.txt", "C:/new", ["file.txt"]),
        ("C:\\\\file.txt", "C:/", ["file.txt"]),
        ("file.txt", "C:/", ["file.txt"]),
    ],
)
def test_a_copy_into_windows(tmp_path: Path, dst: str, dest: str, paths: list[str]) -> None:
    (tmp_path / "file").touch()
    transfer = last(f'(copy (src file) (dst "{dst}"))', "windows", tmp_path)
    assert isinstance(transfer, Transfer)
    assert (transfer.dest, [entry.path for entry in transfer.tree.entries]) == (dest, paths)


@pytest.mark.parametrize(
    ("user", "os"),
    [
        ("(uid 1000) (gid 1000)", "linux"),
        ("(uid 1000) (gid 1000)", "freebsd"),
        ("(uid 1000) (gid 1000)", "openbsd"),
        ("(name opam)", "freebsd"),
        ("(name ContainerAdministrator)", "windows"),
        ("(name administrator)", "windows"),
    ],
)
def test_users_that_a_guest_can_have(user: str, os: str) -> None:
    assert last(f"(user {user}) (run (shell x))", os).user


REFUSED = [
    ("linux", "(user (name opam))", "a Linux guest knows users by number"),
    ("openbsd", "(user (name opam))", "an OpenBSD guest knows users by number"),
    ("windows", "(user (uid 0) (gid 0))", "by name"),
    ("windows", "(user (name opam))", "would need a password"),
    ("freebsd", "(user (name -x))", "valid user name"),
    ("freebsd", "(user (name 0))", "valid user name"),
    ("freebsd", "(user (uid -1) (gid 0))", "between"),
    ("windows", "(workdir D:src)", "a step cannot use the path"),
    ("windows", r"(workdir \\server\share)", "a step cannot use the path"),
    ("windows", r"(workdir 1:\src)", "a step cannot use the path"),
    ("windows", '(run (shell "a\\nb"))', "first line"),
    ("windows", f"(run (shell {'x' * 8192}))", "cmd.exe takes at most 8191"),
    ("windows", '(shell powershell -Command) (run (shell "' + "x" * 32768 + '"))', "Windows takes at most 32767"),
    ("windows", "(shell setup.bat) (run (shell x))", "batch file"),
    ("windows", '(run (shell "\\255"))', "UTF-8"),
]


@pytest.mark.parametrize(("os", "ops", "why"), REFUSED)
def test_ops_that_a_guest_cannot_run_are_refused_with_their_line(os: str, ops: str, why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        last(f"{ops} (run (shell x))", os)
    assert (caught.value.line, caught.value.exit_code) == (2, 2)


def test_a_command_for_another_shell_may_have_several_lines() -> None:
    assert last('(shell powershell -Command) (run (shell "a\\nb"))', "windows").argv[-1] == "a\nb"


def test_a_windows_path_that_is_a_drive_is_split_at_its_root() -> None:
    assert rules.split("C:/x") == ("C:/", "x")
    assert rules.split("C:/") == ("C:/", "")
    assert rules.split("/x") == ("/", "x")


def test_the_administrator_is_known_by_its_login_too() -> None:
    rules.check_user(WindowsUser("opam"), Card(os="windows", login="opam"))
    with pytest.raises(UsageError):
        rules.check_user(WindowsUser("opam"), Card(os="windows", login="Administrator"))


def grafted(op: str, *, origin: str, os: str = "linux") -> Any:
    """The action of a copy from a build that runs `origin`."""
    stage = spec.parse(f"((build dev ((from {origin}))) (from {os})\n{op})".encode())
    card = {name: Card(os=name, login="Administrator") for name in (origin, os)}
    bases = {name: Base(name, Path("/nowhere"), "d" * 64, (1, 2, 3), card[name]) for name in card}
    return plan(stage, source=Path(), bases=bases).actions[-1].action


@pytest.mark.parametrize("origin", OSES)
@pytest.mark.parametrize("os", OSES)
def test_files_may_come_from_a_build_of_any_system(origin: str, os: str) -> None:
    action = grafted("(copy (from (build dev)) (src /a b) (dst /x/))", origin=origin, os=os)
    assert (action.dest, action.extract.rename) == ("C:/x" if os == "windows" else "/x", None)


@pytest.mark.parametrize(
    ("dst", "dest", "rename"),
    [(r"C:\x\y", "C:/x", "y"), ("C:/y", "C:/", "y"), ("C:\\y\\", "C:/y", None), ("C:/", "C:/", None)],
)
def test_files_of_a_build_are_copied_to_a_windows_path(dst: str, dest: str, rename: str | None) -> None:
    action = grafted(f"(copy (from (build dev)) (src /a) (dst {dst}))", origin="linux", os="windows")
    assert (action.dest, action.extract.rename) == (dest, rename)


@pytest.mark.parametrize(
    ("op", "why"),
    [
        (r"(src a\..\b) (dst /x)", "'..' is not allowed"),
        (r"(src C:\a\b) (dst /x) (exclude b)", "is also excluded"),
        ("(src C:/) (dst /x)", "is a drive"),
        (r"(src \\server\share\x) (dst /x)", "a step cannot use the path"),
        (r'(src "\255") (dst /x)', "only UTF-8"),
        (r'(src a) (dst "/x/\255")', "only UTF-8"),
    ],
)
def test_sources_that_a_windows_build_cannot_have_are_refused(op: str, why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        grafted(f"(copy (from (build dev)) {op})", origin="windows")
    assert caught.value.line == 2


def test_a_path_that_is_not_utf_8_is_refused_on_windows() -> None:
    for op in (r'(workdir "\255")', r'(copy (from (build dev)) (src a) (dst "C:/\255/"))'):
        with pytest.raises(SpecError, match="only UTF-8"):
            grafted(op, origin="linux", os="windows")


def test_a_backslash_is_a_letter_on_unix() -> None:
    action = grafted(r"(copy (from (build dev)) (src a\..\b) (dst /x) (exclude b))", origin="linux")
    assert action.extract.src == (r"a\..\b",)
