"""Linux scripts: the text, and what they do when a root shell on this host runs them."""

from __future__ import annotations

import io
import os
import re
import select
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from obuild.guests import linux
from obuild.plan import archive, tree
from obuild.spec import UnixUser, WindowsUser
from tests.support.guests import BASH_OR_SH, can_mount, typed_at

ROOT = UnixUser(0, 0)
USER = UnixUser(12345, 23456)
MARK = "obuild-mark"

as_root = pytest.mark.skipif(
    os.getuid() != 0 or not shutil.which("setpriv"), reason="needs to be root, and setpriv"
)


mounting = pytest.mark.skipif(not can_mount(), reason="needs to be root, and mount namespaces")


def script(*argv: str, cwd: str = "/", env: tuple[tuple[str, str], ...] = (), user: UnixUser = ROOT) -> bytes:
    return linux.run_script(argv, cwd=cwd, env=env, user=user, mark=MARK)


def run(
    *argv: str,
    cwd: str | Path = "/",
    env: tuple[tuple[str, str], ...] = (),
    user: UnixUser = ROOT,
    outer: dict[str, str] | None = None,
) -> tuple[str, int]:
    """A step's output and status when its script runs in a shell with the environment `outer`."""
    done = subprocess.run(
        ["sh"],
        input=script(*argv, cwd=str(cwd), env=env, user=user),
        capture_output=True,
        check=True,
        env={"PATH": linux.DEFAULT_PATH, **(outer or {})},
    )
    assert done.stderr == b""
    output, mark, status = done.stdout.decode("utf-8", "surrogateescape").rpartition(f"{MARK} ")
    assert mark, "the mark must come, whatever happened"
    assert status.endswith("\n")
    return output, int(status)


@pytest.fixture
def place(enterable: Path) -> Path:
    """A folder that any user can enter."""
    return enterable


# -- the text


def test_a_login_that_is_not_root_goes_through_sudo() -> None:
    assert linux.root_shell("root") == "exec sh"
    assert linux.root_shell("debian") == "exec sudo -n sh"
    assert linux.as_root("debian", "tar x") == "sudo -n tar x"


def test_a_cache_goes_through_pipes() -> None:
    assert linux.receive_cache("debian", 1) == (
        "sudo -n tar --extract --file=- --directory=/var/lib/obuild-scratch/1 "
        "--same-permissions --same-owner --numeric-owner"
    )
    assert linux.receive_cache("root", 1).startswith("tar --extract ")
    assert linux.send_cache(1).decode() == (
        "tar --create --file=- --directory=/var/lib/obuild-scratch/1 --format=gnu "
        "--sort=name --numeric-owner --sparse . || [ $? -eq 1 ]\n"
    )
    assert b"chmod 700 /var/lib/obuild-scratch\n" in linux.prepare_scratch()


def test_the_script_of_a_step() -> None:
    text = script("/bin/sh", "-c", "echo 'it works'", cwd="/a b", env=(("A", "1 2"),), user=USER).decode()
    lines = text.splitlines()
    assert lines[0] == "exec 2>&1"
    assert f"cd -P '/a b' || {{ printf '%s %d\\n' {MARK} \"125\"; exit; }}" in lines
    assert "--reuid 12345 --regid 23456 --clear-groups" in text
    assert re.search(r"env -i .* 'A=1 2' /bin/sh -c 'echo '\"'\"'it works'\"'\"'' </dev/null", text)
    assert lines[-1] == f"status=$?; printf '%s %d\\n' {MARK} \"$status\""


def test_a_shells_script_is_a_steps_without_the_pipes() -> None:
    command = linux.shell_command("debian", cwd="/a b", env=[("A", "it's")], user=USER)
    assert command.startswith("exec sudo -n sh -c ")
    step = script("x", cwd="/a b", user=USER).decode().splitlines()
    home = step.index("home=")
    before = step[1 : home - 1]
    assert typed_at(command) == [
        *before,
        "cd -P '/a b' || exit 125",
        *step[home : home + 4],
        "become='setpriv --reuid 12345 --regid 23456 --clear-groups --'",
        "command -v setpriv >/dev/null || become='sudo -n -u #12345 -g #23456 --'",
        'tty -s && chown 12345 "$(tty)" 2>/dev/null',
        f'exec $become env -i HOME="${{home:-/}}" PATH={linux.DEFAULT_PATH} '
        "'A=it'\"'\"'s' TERM=\"${TERM:-dumb}\" " + BASH_OR_SH,
    ]
    assert linux.shell_command("root", cwd="/", env=[], user=ROOT).startswith("exec sh -c ")


def test_the_environment_is_set_after_the_user() -> None:
    text = script("x", env=(("LD_PRELOAD", "/evil.so"),)).decode()
    assert text.index("$become") < text.index("env -i") < text.index("LD_PRELOAD")


@pytest.mark.parametrize(
    "spelled",
    [
        lambda word: linux.run_script([word], cwd=f"/{word}", env=[("A", word)], user=ROOT, mark=MARK),
        lambda word: linux.receive_script(f"/{word}", ROOT),
        lambda word: "\n".join(
            typed_at(linux.shell_command("root", cwd=f"/{word}", env=[("A", word)], user=ROOT))
        ).encode("latin-1"),
        lambda word: linux.open_cache(0, f"/{word}", ROOT),
        lambda word: linux.close_caches([f"/{word}"]),
        lambda word: linux.open_secret(0, f"/{word}", ROOT),
        lambda word: linux.close_secrets([f"/{word}"]),
        lambda word: linux.receive_command("debian", f"/{word}", ROOT).encode("utf-8", "surrogateescape"),
    ],
)
@pytest.mark.parametrize(
    "word", ["a'b", "a;b", "$(reboot)", "`reboot`", "a\nreboot", "--help", "a b", "\udcff", "é"]
)
def test_no_word_of_a_spec_is_read_by_the_shell(spelled: object, word: str) -> None:
    """Parsed as by a shell, every word comes out unchanged, or as part of a path."""
    assert callable(spelled)
    text = spelled(word).decode("utf-8", "surrogateescape")
    assert subprocess.run(["sh", "-n"], input=text.encode("utf-8", "surrogateescape"), check=False).returncode == 0
    if text.startswith("sudo -n sh -c "):
        text = shlex.split(text)[-1]
    harmless = text.replace(shlex.quote(word), "WORD").replace(shlex.quote(f"/{word}"), "WORD")
    harmless = harmless.replace(shlex.quote(f"A={word}"), "WORD")
    assert "reboot" not in harmless
    assert "WORD" in harmless or shlex.quote(word) == word


def test_caches_are_unmounted_last_first() -> None:
    lines = linux.close_caches(["/c", "/c/inner"]).decode().splitlines()
    assert lines == ["set -e", "umount -l /c/inner", "umount -l /c", f"rm -rf {linux.SCRATCH}"]


def test_a_linux_guest_has_no_windows_users() -> None:
    with pytest.raises(TypeError):
        linux.receive_script("/x", WindowsUser("Administrator"))


def test_powering_off_from_inside_has_a_fallback() -> None:
    assert linux.power_off() == b"poweroff || shutdown -P now\n"


# -- running a step


@as_root
@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_the_exit_status_follows_the_mark(status: int) -> None:
    assert run("sh", "-c", f"echo out; echo err >&2; exit {status}") == ("out\nerr\n", status)


@as_root
def test_a_command_killed_by_a_signal_has_a_status() -> None:
    assert run("sh", "-c", "kill -9 $$")[1] == 137


def in_a_shell(typed: str, env: tuple[tuple[str, str], ...], cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """The output when this is piped into a user's shell."""
    command = linux.shell_command("root", cwd=str(cwd), env=env, user=USER)
    outer = {"PATH": linux.DEFAULT_PATH, "TERM": "vt52", "LEAK": "x"}
    return subprocess.run(
        ["sh", "-c", command], input=typed.encode(), capture_output=True, check=False, env=outer, cwd="/"
    )


@as_root
@pytest.mark.parametrize(
    "word", ["two  words", "it's", "!!", "$HOME `id` \\", "new\nline\n", "\udcff", "é", "\\0141"]
)
def test_a_shell_is_where_the_step_was(place: Path, word: str) -> None:
    done = in_a_shell('id -u; id -g; pwd; printf %s "$A$TERM$LEAK"; exit 42', (("A", word),), place / "new dir")
    said = f"12345\n23456\n{place}/new dir\n{word}vt52".encode("utf-8", "surrogateescape")
    assert (done.stdout, done.stderr, done.returncode) == (said, b"", 42)
    assert (place / "new dir").stat().st_uid == 12345


@as_root
def test_a_shell_is_bash_or_else_sh(place: Path) -> None:
    asked = 'echo "${BASH_VERSION:+bash}"'
    assert in_a_shell(asked, (), place).stdout == b"bash\n"
    assert in_a_shell(asked, (("PATH", str(place)),), place).stdout == b"\n"


@as_root
def test_a_shells_user_may_open_the_terminal(place: Path) -> None:
    ours, theirs = os.openpty()
    command = linux.shell_command("root", cwd=str(place), env=(), user=USER)
    os.write(ours, b"echo opened >$(tty); exit 42\n")
    try:
        done = subprocess.run(
            ["sh", "-c", command], stdin=theirs, stdout=theirs, stderr=theirs, check=False, start_new_session=True
        )
        assert done.returncode == 42
        assert os.fstat(theirs).st_uid == 12345
        said = b""
        while select.select([ours], [], [], 0)[0]:  # a terminal gives a part of its output at a time
            said += os.read(ours, 65536)
        assert b"opened\r\n" in said
    finally:
        os.close(ours)
        os.close(theirs)


@as_root
def test_a_missing_command_is_reported() -> None:
    output, status = run("/no/such/program")
    assert "/no/such/program" in output
    assert status == 127


@as_root
def test_output_without_a_final_newline_is_not_changed() -> None:
    assert run("printf", "text") == ("text", 0)


@as_root
@pytest.mark.parametrize(
    "word", ["", "two  words", "it's", "$HOME `id` \\", "new\nline", "\udcff", "*", "-n", "A=B"]
)
def test_arguments_arrive_unchanged(word: str) -> None:
    assert run("printf", "<%s>", word) == (f"<{word}>", 0)


@as_root
def test_a_command_cannot_read_its_own_script() -> None:
    assert run("cat") == ("", 0)


@as_root
def test_a_background_process_does_not_delay_the_mark(place: Path) -> None:
    """The mark comes although a child still has the output open; the child ends when we say so."""
    os.mkfifo(place / "fifo")
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write(script("sh", "-c", f"cat {place}/fifo & echo started"))
        shell.stdin.close()
        assert [shell.stdout.readline(), shell.stdout.readline()] == [b"started\n", f"{MARK} 0\n".encode()]
        (place / "fifo").write_text("late\n")
        assert shell.stdout.read() == b"late\n"


@as_root
def test_a_command_runs_as_its_user_without_other_groups() -> None:
    assert run("sh", "-c", "id -u; id -g; id -G", user=USER) == ("12345\n23456\n23456\n", 0)


@as_root
def test_a_missing_workdir_is_made_with_its_parents_for_the_user(place: Path) -> None:
    output, status = run("pwd", cwd=place / "a" / "b c" / "d", user=USER)
    assert (output, status) == (f"{place}/a/b c/d\n", 0)
    for made in (place / "a", place / "a" / "b c", place / "a" / "b c" / "d"):
        assert (made.stat().st_uid, made.stat().st_gid) == (12345, 23456)
    assert place.stat().st_uid == 0


@as_root
def test_an_existing_workdir_is_not_changed(place: Path) -> None:
    (place / "a").mkdir(mode=0o711)
    assert run("pwd", cwd=place / "a", user=USER)[1] == 0
    assert ((place / "a").stat().st_uid, stat.S_IMODE((place / "a").stat().st_mode)) == (0, 0o711)


@as_root
def test_dots_in_a_workdir_are_resolved_by_the_guest(place: Path) -> None:
    (place / "real" / "deep").mkdir(parents=True)
    (place / "link").symlink_to("real/deep")
    assert run("pwd", "-P", cwd=f"{place}/link/../new") == (f"{place}/real/new\n", 0)


@as_root
@pytest.mark.parametrize("kind", ["file", "dangling symlink"])
def test_a_workdir_that_cannot_be_made_is_a_failure_of_the_step(place: Path, kind: str) -> None:
    if kind == "file":
        (place / "a").touch()
    else:
        (place / "a").symlink_to("nowhere")
    output, status = run("echo", "must not run", cwd=place / "a" / "b")
    assert status == 125
    assert output != ""
    assert "must not run" not in output


@as_root
def test_the_environment_is_the_specs_and_nothing_else() -> None:
    output, _ = run("env", env=(("A", "1 2"), ("B", "")), outer={"OUTER": "x", "SSH_CONNECTION": "y"})
    home = next(line for line in Path("/etc/passwd").read_text().splitlines() if ":0:0:" in line).split(":")[5]
    assert sorted(output.splitlines()) == sorted([f"HOME={home}", f"PATH={linux.DEFAULT_PATH}", "A=1 2", "B="])


@as_root
def test_a_user_that_the_guest_does_not_know_has_the_root_folder_as_home() -> None:
    assert run("sh", "-c", "echo $HOME", user=USER) == ("/\n", 0)


@as_root
def test_a_user_that_only_another_directory_knows_has_the_home_folder_from_there(place: Path) -> None:
    (place / "getent").write_text('#!/bin/sh\necho "x:x:$2:1:A name:/from $1:/bin/sh"\n')
    (place / "getent").chmod(0o755)
    outer = {"PATH": f"{place}:{linux.DEFAULT_PATH}"}
    assert run("sh", "-c", "echo $HOME", user=USER, outer=outer) == ("/from passwd\n", 0)
    daemon = next(line for line in Path("/etc/passwd").read_text().splitlines() if line.startswith("daemon:"))
    _, _, uid, _, _, home, _ = daemon.split(":")
    assert run("sh", "-c", "echo $HOME", user=UnixUser(int(uid), 1), outer=outer) == (f"{home}\n", 0)


@as_root
def test_the_spec_may_set_home_and_path(place: Path) -> None:
    (place / "hello").write_text("#!/bin/sh\necho $HOME\n")
    (place / "hello").chmod(0o755)
    env = (("HOME", "/h"), ("PATH", f"{place}:/bin"))
    assert run("hello", env=env) == ("/h\n", 0)


@as_root
def test_the_specs_variables_do_not_affect_programs_run_as_root(place: Path) -> None:
    (place / "setpriv").write_text(f'#!/bin/sh\nenv >{place}/seen\nexec {shutil.which("setpriv")} "$@"\n')
    (place / "setpriv").chmod(0o755)
    output, status = run(
        "sh", "-c", "echo $LD_PRELOAD", env=(("LD_PRELOAD", ""), ("PATH", "/bin")),
        user=USER, outer={"PATH": f"{place}:{linux.DEFAULT_PATH}"},
    )  # fmt: skip
    assert (output, status) == ("\n", 0)
    assert "LD_PRELOAD" not in (place / "seen").read_text()


# -- copying


def send(found: tree.Tree, dest: Path, user: UnixUser) -> subprocess.CompletedProcess[bytes]:
    stream = io.BytesIO()
    archive.send(found, stream, uid=user.uid, gid=user.gid)
    command = linux.receive_command("root", str(dest), user)
    return subprocess.run(command, shell=True, input=stream.getvalue(), capture_output=True, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_text("text")
    (source / "sub" / "file").chmod(0o6755)
    (source / "link").symlink_to("sub/file")
    (source / "hard").hardlink_to(source / "sub" / "file")
    (source / os.fsdecode(b"\xff 'odd'\n")).touch()
    return source


@as_root
def test_a_tree_arrives_unchanged_and_owned_by_the_user(source: Path, place: Path) -> None:
    found = tree.walk(source, ["."])
    done = send(found, place / "new" / "it's", USER)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert tree.walk(place / "new" / "it's", ["."]).manifest == found.manifest
    for path in [place / "new", *(place / "new").rglob("*")]:
        assert (path.lstat().st_uid, path.lstat().st_gid) == (12345, 23456), path


@as_root
def test_an_existing_folder_keeps_its_owner_and_mode(source: Path, place: Path) -> None:
    dest = place / "dest"
    (dest / "sub").mkdir(parents=True)
    (dest / "sub").chmod(0o1777)
    assert send(tree.walk(source, ["."]), dest, USER).returncode == 0
    assert ((dest / "sub").stat().st_uid, stat.S_IMODE((dest / "sub").stat().st_mode)) == (0, 0o1777)


@as_root
def test_a_symlink_to_a_folder_is_followed_and_one_to_a_file_replaced(source: Path, place: Path) -> None:
    dest = place / "dest"
    (dest / "real").mkdir(parents=True)
    (dest / "sub").symlink_to("real")
    (dest / "hard").symlink_to("elsewhere")
    assert send(tree.walk(source, ["."]), dest, ROOT).returncode == 0
    assert (dest / "real" / "file").read_text() == "text"
    assert not (dest / "hard").is_symlink()
    assert not (dest / "elsewhere").exists()


@as_root
def test_a_stream_that_breaks_off_is_a_failure(source: Path, place: Path) -> None:
    stream = io.BytesIO()
    (source / "big").write_bytes(os.urandom(100_000))
    archive.send(tree.walk(source, ["."]), stream, uid=0, gid=0)
    command = linux.receive_command("root", str(place / "dest"), ROOT)
    cut = stream.getvalue()[:60_000]
    assert subprocess.run(command, shell=True, input=cut, capture_output=True, check=False).returncode != 0


@as_root
def test_a_destination_that_is_a_file_is_a_failure(source: Path, place: Path) -> None:
    (place / "file").touch()
    done = send(tree.walk(source, ["."]), place / "file", ROOT)
    assert done.returncode != 0
    assert b"file" in done.stderr


# -- caches and secrets, in a mount namespace of their own


@pytest.fixture
def rooms(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders for caches and secrets, moved into the test's folder."""
    monkeypatch.setattr(linux, "SCRATCH", str(place / "scratch"))
    monkeypatch.setattr(linux, "SECRETS", str(place / "secrets"))
    return place


def together(*scripts: bytes) -> str:
    """Run scripts one after the other in one mount namespace, each in its own shell."""
    lines = [b"sh <<'END_OF_SCRIPT' || exit\n" + text + b"\nEND_OF_SCRIPT\n" for text in scripts]
    done = subprocess.run(["unshare", "--mount", "sh"], input=b"".join(lines), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def sent(slot: int, archive: Path) -> bytes:
    """A script that writes a cache to a file."""
    return f"exec >{archive}\n".encode() + linux.send_cache(slot)


@mounting
def test_a_cache_hides_what_is_at_its_target_and_leaves_no_trace(rooms: Path) -> None:
    target = rooms / "target dir"
    target.mkdir()
    (target / "hidden").touch()
    said = together(
        linux.prepare_scratch(),
        linux.open_cache(0, str(target), USER),
        f"ls '{target}'; stat -c '%u %a' '{target}'; touch '{target}/new'".encode(),
        sent(0, rooms / "kept.tar"),
        linux.close_caches([str(target)]),
    )
    assert said == "12345 755\n"
    assert os.listdir(target) == ["hidden"]
    assert not (rooms / "scratch").exists()


@mounting
def test_a_cache_keeps_owners_modes_and_holes(rooms: Path) -> None:
    target = rooms / "cache"
    make = f"""cd {target}; echo x >a; chown 7:8 a; chmod 4711 a; ln -s a link; ln a hard
               truncate -s 10M sparse; mkdir -m 1777 dir"""
    together(
        linux.prepare_scratch(),
        linux.open_cache(0, str(target), USER),
        make.encode(),
        sent(0, rooms / "kept.tar"),
        linux.close_caches([str(target)]),
    )
    assert (rooms / "kept.tar").stat().st_size < 1 << 20
    said = together(
        linux.prepare_scratch(),
        linux.open_cache(3, str(target), ROOT),
        f"cat {rooms}/kept.tar | {linux.receive_cache('root', 3)}".encode(),
        f"cd {target}; stat -c '%n %u:%g %a' . *".encode(),
        f"cd {target}; [ a -ef hard ] && stat -c %s sparse; ls {rooms}/scratch".encode(),
        sent(3, rooms / "again.tar"),
        f"cmp {rooms}/again.tar {rooms}/kept.tar && echo equal".encode(),
        linux.close_caches([str(target)]),
    )
    assert said.splitlines() == [
        ". 12345:23456 755",
        "a 7:8 4711",
        "dir 0:0 1777",
        "hard 7:8 4711",
        "link 0:0 777",
        "sparse 0:0 644",
        "10485760",
        "3",
        "equal",
    ]


@pytest.mark.parametrize(("status", "fails"), [(0, False), (1, False), (2, True)])
def test_a_file_that_changes_while_a_cache_is_packed_is_no_failure(place: Path, status: int, fails: bool) -> None:
    (place / "tar").write_text(f"#!/bin/sh\necho archive; echo warning >&2; exit {status}\n")
    (place / "tar").chmod(0o755)
    env = {"PATH": f"{place}:{linux.DEFAULT_PATH}"}
    done = subprocess.run(["sh"], input=linux.send_cache(0), env=env, capture_output=True, check=False)
    assert (done.stdout, done.returncode != 0) == (b"archive\n", fails)


@mounting
def test_mounts_below_a_folder_are_not_packed(place: Path) -> None:
    folder = place / "whole"
    (folder / "proc").mkdir(parents=True)
    (folder / "file").touch()
    pack = linux.pack_files([str(folder)], exclude=(), rename="root", owner=(7, 8)).script.decode()
    said = together(
        f"mount -t tmpfs tmpfs {folder}/proc && touch {folder}/proc/of-the-machine".encode(),
        f"sh -c {shlex.quote(pack)} | tar --list".encode(),
    )
    assert said.splitlines() == ["root/", "root/file", "root/proc/"]


@mounting
@pytest.mark.parametrize("mounts", ["private", "shared"])
def test_a_cache_inside_another_is_not_part_of_it(rooms: Path, mounts: str) -> None:
    outer, inner = str(rooms / "c"), str(rooms / "c" / "inner")
    said = together(
        f"mount --make-r{mounts} /".encode(),
        linux.prepare_scratch(),
        linux.open_cache(0, outer, ROOT),
        linux.open_cache(1, inner, ROOT),
        f"touch {inner}/file; find {rooms}/scratch -name file".encode(),
        linux.close_caches([outer, inner]),
    )
    assert said == f"{rooms}/scratch/1/file\n"
    assert os.listdir(outer) == []


@mounting
def test_a_secret_is_readable_by_its_user_only_and_removed_afterwards(rooms: Path) -> None:
    targets = [str(rooms / "new" / "deep" / "it's"), str(rooms / "there")]
    (rooms / "there").write_text("as it was")
    said = together(
        linux.prepare_secrets(),
        b"printf value0 | " + linux.receive_secret("root", 0).encode() + b"\n",
        b"printf value1 | " + linux.receive_secret("root", 1).encode() + b"\n",
        *(linux.open_secret(slot, target, USER) for slot, target in enumerate(targets)),
        *(
            f"stat -c '%u:%g %a' {shlex.quote(target)}; cat {shlex.quote(target)}; echo".encode()
            for target in targets
        ),
        f"! touch {rooms}/there 2>/dev/null && echo read-only".encode(),
        linux.close_secrets(targets),
        b"grep -c obuild-secrets /proc/mounts || true\n",
    )
    assert said.splitlines() == ["12345:23456 400", "value0", "12345:23456 400", "value1", "read-only", "0"]
    assert (rooms / "there").read_text() == "as it was"
    assert not (rooms / "new").exists()
    assert not (rooms / "secrets").exists()
