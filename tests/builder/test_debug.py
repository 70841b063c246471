"""Looking into layers with throw-away machines: what the machines are asked, and what users see."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from obuild import spec
from obuild.builder.debug import Debugger
from obuild.builder.engine import Engine
from obuild.builder.provision import Machines
from obuild.errors import MachineError, ObuildError, StoreError, UsageError
from obuild.events import SILENT
from obuild.executors.settings import Settings
from obuild.plan.keys import LayerId
from obuild.plan.steps import Extract
from obuild.spec import UnixUser, WindowsUser
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, FakeSession, Heard, Run, ScriptedGuests

OPS = "(user (uid 7) (gid 8)) (workdir /w) (env A 1) (run (shell made))"


Debug = Callable[..., Debugger]


@pytest.fixture
def debug(store: Store, tiny: Path, tmp_path: Path, executor: FakeExecutor) -> Debug:
    """Debug the last layer of a build of `ops`, in a store where nothing else of the build is left."""

    def make(ops: str = OPS, os: str = "") -> Debugger:
        settings = Settings(accel="tcg", os=os)
        stage = spec.parse(f"((from tiny) {ops})".encode())
        layer = Engine(tmp_path, store, settings, Heard()).build(stage)
        executor.seen.clear()
        executor.commands.clear()
        tiny.unlink(missing_ok=True)
        return Debugger(store, Machines(store, settings), layer, SILENT)

    return make


# -- what the machine is asked


def test_a_command_runs_like_the_layers_own_and_nothing_is_kept(
    store: Store, debug: Debug, executor: FakeExecutor
) -> None:
    def act(run: Run) -> int:
        assert run.draft.scratch
        assert (run.caches, run.secrets) == ((), {})
        run.output(b"said")
        return 42

    executor.script = {"-l": act}
    said = bytearray()
    debugger = debug()
    before = set(store.ids())
    assert debugger.run(("ls", "-l"), said.extend) == 42
    assert said == b"said"
    (command,) = executor.commands
    assert (command.argv, command.cwd, command.env) == (("ls", "-l"), "/w", (("A", "1"),))
    assert (command.user, command.network) == (UnixUser(7, 8), False)
    assert executor.seen == ["open", "-l", "sealed"]
    assert set(store.ids()) == before
    assert not any(store.cache_tmp.iterdir())
    assert not any(store.result_tmp.iterdir())


def test_a_command_may_have_the_network_and_another_user(debug: Debug, executor: FakeExecutor) -> None:
    debugger = debug()
    debugger.run(("id",), print, network=True, user="0")
    debugger.run(("id",), print, user="5:6")
    assert [command.user for command in executor.commands] == [UnixUser(0, 0), UnixUser(5, 6)]
    assert executor.seen[0] == "open with network"
    assert executor.commands[0].network


def test_a_user_that_the_guest_cannot_have_is_refused(debug: Debug, executor: FakeExecutor) -> None:
    linux = debug()
    for user in ("opam", "99999999999", "4294967295"):
        with pytest.raises(UsageError):
            linux.run(("id",), print, user=user)


def test_a_windows_guest_has_only_its_own_user(debug: Debug, executor: FakeExecutor) -> None:
    windows = debug("(run (shell made))", os="windows")
    windows.run(("whoami",), print)
    assert executor.commands[-1].user == WindowsUser("ContainerAdministrator")
    with pytest.raises(UsageError, match="by name"):
        windows.shell(user="0")


@pytest.mark.parametrize(
    ("os", "argv"), [("linux", ("A=b", "x")), ("windows", ("x.bat",)), ("windows", ("x", "y" * 40_000))]
)
def test_an_impossible_command_is_refused_before_a_machine_starts(
    debug: Debug, executor: FakeExecutor, os: str, argv: tuple[str, ...]
) -> None:
    debugger = debug("(run (shell made))", os=os)
    with pytest.raises(UsageError):
        debugger.run(argv, print)
    assert executor.seen == []


def test_shell_returns_the_exit_status(store: Store, debug: Debug, executor: FakeExecutor) -> None:
    executor.typed = 17
    assert debug().shell(network=True) == 17
    (command,) = executor.commands
    assert (command.cwd, command.user) == ("/w", UnixUser(7, 8))
    assert executor.seen == ["open with network", "shell", "sealed"]
    assert not any(store.cache_tmp.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError, MachineError("the guest panicked")])
def test_an_interrupted_command_leaves_nothing_behind(
    store: Store, debug: Debug, executor: FakeExecutor, error: BaseException | type[BaseException]
) -> None:
    def act(run: Run) -> int:
        raise error

    executor.script = {"x": act}
    with pytest.raises(error if isinstance(error, type) else type(error)):
        debug().run(("x",), print)
    assert executor.seen[-1] == "killed"
    assert not any(store.cache_tmp.iterdir())


def test_files_are_packed_by_the_guest_and_the_archive_is_removed(
    store: Store, debug: Debug, executor: FakeExecutor
) -> None:
    executor.files = {"dir/a": b"x"}
    debugger = debug()
    source = debugger.source("//etc/./dir/")
    assert (source.path, source.name, source.strict) == ("/etc/dir", "dir", True)
    with debugger.packed(source) as archive, tarfile.open(archive) as packed:
        assert packed.getnames() == ["dir/a"]
        assert executor.seen == ["open", "take /etc/dir", "sealed"]
    assert not any(store.cache_tmp.iterdir())


@pytest.mark.parametrize(
    ("os", "path", "found", "name"),
    [
        ("linux", "/", "/", ""),
        ("linux", "//.", "/", ""),
        ("freebsd", "/a b/c:d", "/a b/c:d", "c:d"),
        ("windows", r"C:\Users\x", "C:/Users/x", "x"),
        ("windows", "/Users", "C:/Users", "Users"),
        ("windows", "d:/", "D:/", ""),
    ],
)
def test_a_path_follows_the_rules_of_the_guest(debug: Debug, os: str, path: str, found: str, name: str) -> None:
    source = debug("(run (shell made))", os=os).source(path)
    assert (source.path, source.name) == (found, name)
    assert source.strict == (os == "linux")


@pytest.mark.parametrize(
    ("os", "path"),
    [("linux", "etc"), ("linux", "/a/../b"), ("linux", r"C:\x"), ("windows", "C:x"), ("windows", "x")],
)
def test_a_relative_path_or_one_with_dots_is_refused(debug: Debug, os: str, path: str) -> None:
    with pytest.raises(UsageError):
        debug("(run (shell made))", os=os).source(path)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("tar: ./x: Cannot stat: No such file or directory", "there is no /x in the layer"),
        ("tar: a disk error", "a disk error"),
    ],
)
def test_a_missing_file_is_reported_in_one_line(
    store: Store, debug: Debug, monkeypatch: pytest.MonkeyPatch, said: str, shown: str
) -> None:
    def take(self: FakeSession, extract: Extract, archive: Path) -> None:
        raise MachineError(f"copying from the build failed in the guest: {said}")

    monkeypatch.setattr(FakeSession, "take", take)
    debugger = debug()
    with pytest.raises(ObuildError, match=shown) as caught, debugger.packed(debugger.source("/x")):
        pass
    assert caught.value.exit_code == 1


def test_a_layer_removed_meanwhile_is_reported(store: Store, debug: Debug) -> None:
    debugger = debug()
    source = debugger.source("/x")
    gone = replace(debugger, layer=LayerId("0" * 64))
    shutil.rmtree(store.result / debugger.layer)
    for each in (debugger, gone):
        with pytest.raises(StoreError, match="removed"):
            each.shell()
        with pytest.raises(StoreError, match="removed"):
            each.run(("x",), print)
        with pytest.raises(StoreError, match="removed"), each.packed(source):
            pass


def test_a_machine_follows_the_settings(store: Store, tiny: Path, tmp_path: Path, guests: ScriptedGuests) -> None:
    layer = Engine(tmp_path, store, Settings(accel="tcg"), Heard()).build(
        spec.parse(b"((from tiny) (run (shell a)))")
    )
    settings = Settings(accel="tcg", memory=3 << 30, cpus=5)
    assert Debugger(store, Machines(store, settings), layer, SILENT).shell() == 0
    shape = guests.configs[-1].shape
    assert (shape.memory, shape.cpus) == (3 << 30, 5)


# -- as a user sees it


class Program:
    """The program with scripted guests. Its store has the layer `id`, which has only a file `out`."""

    def __init__(self, root: Path, disk: Path) -> None:
        self.root = root / "store"
        self.id = ""
        assert self("base", "add", disk, "--name=tiny").returncode == 0
        (root / "test.spec").write_text(f"((from tiny) {OPS})")
        done = self("build", "--qemu-accel=tcg", "-f", root / "test.spec", root)
        self.id = done.stdout.split('"')[-2][:12]

    def argv(self, command: str, *args: str | Path) -> list[str | Path]:
        accel = ["--qemu-accel=tcg"] if command in ("run", "shell", "cp") else []
        return [sys.executable, "-m", "tests.support.fake_obuild", command, *accel, *args]

    def __call__(self, command: str, *args: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            self.argv(command, *args),
            **{"stdout": subprocess.PIPE, "text": True, **options},  # type: ignore[call-overload]
            stderr=subprocess.PIPE,
            env={**os.environ, "OBUILD_STORE": f"qemu:{self.root}"},
        )
        assert "Traceback" not in str(done.stderr), done.stderr
        return done

    def refused(self, command: str, *args: str | Path) -> str:
        """Return the message for an error found before any machine starts."""
        done = self(command, *args)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, qcow2_disk: Path) -> Program:
    return Program(tmp_path_factory.mktemp("debug"), qcow2_disk)


def test_the_kind_of_the_store_selects_the_executor(program: Program) -> None:
    done = program("run", f"--store=other:{program.root}", program.id, "--", "true")
    assert done.returncode == 0
    (program.root.parent / "other.spec").write_text("((from tiny) (run (shell other)))")
    options = ("--qemu-accel=tcg", "-f", program.root.parent / "other.spec", program.root.parent)
    assert program("build", f"--store=other:{program.root}", *options).returncode == 0
    refused = program("build", f"--store=none:{program.root}", *options)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "there is: qemu:PATH, native:PATH, other:PATH" in refused.stderr


def test_run_prints_the_output_and_exits_with_the_status(program: Program) -> None:
    done = program("run", program.id, "--", "echo", "-n", "it's said")
    assert (done.stdout, done.stderr, done.returncode) == ("it's said\n", "", 0)
    assert program("run", program.id, "--network=host", "false", "fail").returncode == 1
    assert sorted(os.listdir(program.root / "cache-tmp")) == []


def test_shell_exits_with_the_shells_status(program: Program) -> None:
    done = program("shell", program.id, stdin=subprocess.DEVNULL)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_cp_copies_files_and_folders_out_of_a_layer(program: Program, tmp_path: Path) -> None:
    assert program("cp", f"{program.id}:/any/out", tmp_path / "new").returncode == 0
    assert program("cp", f"{program.id}:/any/out", tmp_path).returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"new": b"x", "out": b"x"}
    packed = program("cp", f"{program.id}:/any/out", "-", text=False).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:  # type: ignore[arg-type]
        assert archive.getnames() == ["out"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run", "ID"], "CMD"),
        (["run", "ID", "--network=bridge", "x"], "--network bridge"),
        (["run", "ID", "--user=opam", "x"], "by number"),
        (["run", "ID", "--qemu-cpus=0", "x"], "qemu-cpus"),
        (["run", "ID", "--qemu-guest-os=plan9", "x"], "unknown guest OS"),
        (["run", "0123456789ab", "x"], "no layer has the id"),
        (["shell", "nosuch"], "no layer has the id"),
        (["shell", "ID", "--network=x"], "--network x"),
        (["cp", "ID", "HERE"], "is not ID:PATH"),
        (["cp", "ID:", "HERE"], "is not ID:PATH"),
        (["cp", "ID:etc/passwd", "HERE"], "is not absolute"),
        (["cp", "ID:/etc/../x", "HERE"], "'..' is not allowed"),
        (["cp", "ID:/x", "HERE/no/such/x"], "HERE/no/such"),
        (["cp", "ID:/", "HERE"], "a root folder needs a new name"),
        (["cp", "ID:/folder", "HERE"], "is a folder"),
        (["cp", "ID:/link", "HERE"], "is a folder"),
        (["cp", "0123456789ab:/x", "HERE"], "no layer has the id"),
    ],
)
def test_invalid_arguments_are_refused(program: Program, tmp_path: Path, args: list[str], said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    words = [arg.replace("ID", program.id).replace("HERE", str(tmp_path)) for arg in args]
    assert said.replace("HERE", str(tmp_path)) in program.refused(*words)
    assert sorted(os.listdir(tmp_path)) == ["folder", "link"]
    assert (tmp_path / "link").is_symlink()


def test_a_step_still_being_built_cannot_be_looked_into(program: Program) -> None:
    store = Store(program.root)
    id = LayerId("f" * 64)
    with store.claim(id):
        (store.result_tmp / id).mkdir()
        assert "is still being built" in program.refused("shell", id[:12])
        (store.result_tmp / id).rmdir()


def test_a_closed_stdout_ends_the_command(program: Program) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = program("run", program.id, "echo", "x", stdout=writer)
    assert (done.returncode, done.stderr) == (1, "")
    done = program("cp", f"{program.id}:/out", "-", stdout=writer)
    assert (done.returncode, done.stderr) == (1, "")
    os.close(writer)


def test_a_full_disk_behind_stdout_is_not_reported_as_the_stores(program: Program) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        for done in (
            program("run", program.id, "echo", "x", stdout=full),
            program("cp", f"{program.id}:/out", "-", stdout=full),
        ):
            assert done.returncode == 1
            assert "cannot write to stdout: No space left on device" in done.stderr


def test_ctrl_c_exits_with_130(program: Program) -> None:
    reader, writer = os.pipe()
    with subprocess.Popen(
        program.argv("run", program.id, "echo", "x" * 70_000),  # more than a pipe holds
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OBUILD_STORE": f"qemu:{program.root}"},
    ) as child:
        os.close(writer)
        assert os.read(reader, 1) == b"x"
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        said = child.stderr.read()
    os.close(reader)
    assert (child.returncode, "interrupted" in said, "Traceback" in said) == (130, True, False)
    assert os.listdir(program.root / "cache-tmp") == []


def test_an_archive_is_not_written_to_a_terminal(program: Program) -> None:
    ours, theirs = os.openpty()
    assert "tar --list" in program("cp", f"{program.id}:/out", "-", stdout=theirs).stderr
    os.close(ours)
    os.close(theirs)
