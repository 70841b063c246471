"""The helper program of the shell in a Linux guest: what it prints about files, folders and processes."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.guests import linux_agent

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="needs x86_64")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SOURCE = Path(linux_agent.__file__).parent / "resident" / "amd64.S"

Tool = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "tool"
    path.write_bytes(linux_agent._program())
    path.chmod(0o700)
    return path


@pytest.fixture
def tool(program: Path) -> Tool:
    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *args], capture_output=True, text=True, errors="surrogateescape", check=False
        )

    return run


@pytest.fixture
def listed(tool: Tool, tmp_path: Path) -> Callable[..., list[str]]:
    """Its output for the lines of a list."""

    def run(*lines: str) -> list[str]:
        path = tmp_path / "list"
        path.write_text("".join(f"{line}\n" for line in lines))
        text, again = tool("l", path), tool("h", path)
        assert text.returncode == again.returncode == 0
        assert fnv(text.stdout.encode(errors="surrogateescape")) == int(text.stderr, 16)
        if "p" not in lines:
            assert again.stdout == text.stderr
        return text.stdout.splitlines()

    return run


def fnv(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return found


@pytest.mark.skipif(not shutil.which("as") or not shutil.which("objcopy"), reason="needs binutils")
def test_it_is_built_from_its_source(tmp_path: Path) -> None:
    subprocess.run(["as", "-o", tmp_path / "tool.o", SOURCE], check=True)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "tool.o", tmp_path / "tool.bin"], check=True
    )
    assert (tmp_path / "tool.bin").read_bytes() == SOURCE.with_suffix(".bin").read_bytes()


def test_ioctl(tool: Tool, tmp_path: Path) -> None:
    def asked(path: Path, number: int) -> int:
        """The error it exits with."""
        return tool("i", path, str(number)).returncode

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert asked(tmp_path / "socket", 0x5207) == errno.ENXIO  # it cannot be opened
    assert asked(tmp_path, 0xFFFFFFFF) == errno.ENOTTY  # no such thing
    assert asked(Path("/dev/urandom"), 0x5207) in (0, errno.EPERM)  # RNDRESEEDCRNG, which is for root
    assert asked(Path("/proc/self"), 0xC0045877) in (errno.EOPNOTSUPP, errno.EPERM)  # FIFREEZE: /proc cannot be


@pytest.mark.parametrize("args", [(), ("x",), ("x", "y"), ("i",), ("i", "/"), ("c",), ("l",), ("h",)])
def test_unknown_arguments(tool: Tool, args: tuple[str, ...]) -> None:
    assert tool(*args).returncode == errno.EINVAL


def test_the_clock(tool: Tool) -> None:
    """Set to an invalid time, since this is the host's clock."""
    assert tool("c", f"{1 << 62}.5").returncode in (errno.EINVAL, errno.EPERM)


def test_files_are_hashed(listed: Callable[..., list[str]], tmp_path: Path) -> None:
    for name, data in {"empty": b"", "small": b"x\n", "large": os.urandom(200_000)}.items():
        (tmp_path / name).write_bytes(data)
        assert listed(f"f {tmp_path}/{name}") == [f"{tmp_path}/{name} {fnv(data):x}"]
    missing, folder = f"{tmp_path}/missing", str(tmp_path)
    assert listed(f"f {missing}", f"f {folder}") == [f"{missing} -{errno.ENOENT:x}", f"{folder} -{errno.EISDIR:x}"]


def test_a_fifo_does_not_block_it(listed: Callable[..., list[str]], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert listed(f"f {tmp_path}/fifo") == [f"{tmp_path}/fifo {fnv(b''):x}"]


def test_counter_columns_are_left_out(listed: Callable[..., list[str]], tmp_path: Path) -> None:
    """Of ipv6_route: 32 + 2 + 32 + 2 + 32 + 8 digits, then two counters of 8, then flags and a name."""
    routes = tmp_path / "routes"

    def route(metric: str, used: str, name: str) -> str:
        return f"{'f' * 32} 80 {'0' * 32} 00 {'a' * 32} {metric:0>8} {used:0>8} {used:0>8} 00000001       {name}\n"

    found = []
    for text in (route("1", "0", "lo"), route("1", "7", "lo"), route("2", "0", "lo"), route("1", "0", "l")):
        routes.write_text(route("9", "9", "eth0") + text)
        found += listed(f"v {routes}")
    assert found[0] == found[1]
    assert len({*found}) == 3


def test_lstat_fields(listed: Callable[..., list[str]], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    about = link.lstat()
    seconds, rest = divmod(about.st_ctime_ns, 10**9)
    numbers = (about.st_mode, about.st_uid, about.st_gid, 0, about.st_size, seconds, rest)
    words = [str(link), *(f"{number:x}" for number in numbers)]
    assert listed(f"s {link}", f"o {link}") == [" ".join(words), " ".join(words[:5])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all kinds of things."""
    top = tmp_path / "top"
    for name in ("a b/c/d", ".hidden", "left/out", "empty", *(f"many/{number:040}" for number in range(300))):
        (top / name).mkdir(parents=True)
    for name, size in {"file": 0, "a b/c/large": 5000, "left/out/x": 1, "\udcff": 3}.items():
        (top / name).write_bytes(bytes(size))
    (top / "link").symlink_to("a b")
    (top / "file").chmod(0o640)
    os.mkfifo(top / "fifo")
    return top


def below(top: Path) -> list[Path]:
    return [Path(where, name) for where, folders, files in os.walk(top) for name in (*folders, *files)]


def test_names_in_a_folder(listed: Callable[..., list[str]], folder: Path) -> None:
    assert sorted(listed(f"d {folder}")) == sorted(f"{folder}/{name}" for name in os.listdir(folder))
    assert listed(f"d {folder}/none") == [f"{folder}/none -{errno.ENOENT:x}"]


def test_folders_below_a_folder(listed: Callable[..., list[str]], folder: Path) -> None:
    folders = sorted(str(path) for path in below(folder) if path.is_dir() and not path.is_symlink())
    assert sorted(listed(f"D {folder}")) == folders


def test_everything_below_a_folder(listed: Callable[..., list[str]], folder: Path) -> None:
    def line(path: Path) -> str:
        about = path.lstat()
        size = about.st_size if stat.S_ISREG(about.st_mode) else 0
        numbers = (about.st_mode, about.st_uid, about.st_gid, about.st_rdev, size)
        return " ".join([str(path), *(f"{number:x}" for number in numbers)])

    assert sorted(listed(f"t {folder}")) == sorted(map(line, below(folder)))
    kept = [path for path in below(folder) if "left/out" not in str(path) and path.name != "empty"]
    assert sorted(listed(f"x {folder}/left/out", f"x {folder}/empty", f"t {folder}")) == sorted(map(line, kept))


def test_names_that_are_too_long_are_skipped(listed: Callable[..., list[str]], tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 250, dir_fd=at)
        inner = os.open("n" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    lines = [line for line in listed(f"D {tmp_path}") if "nnn" in line]
    assert 10 < len(lines) < 20


def test_processes(listed: Callable[..., list[str]], program: Path, tmp_path: Path) -> None:
    name = "a ) name"
    shutil.copy("/bin/sleep", tmp_path / name)
    with subprocess.Popen([tmp_path / name, "60"]) as child:
        while Path(f"/proc/{child.pid}/comm").read_text() != f"{name}\n":
            pass
        stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        (line,) = [line for line in listed("p") if line.startswith(f"process {child.pid} ")]
        assert line == f"process {child.pid} ({name}) {os.getpid():x} {int(stat[19]):x}"
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        assert not [line for line in listed("p") if line.startswith(f"process {child.pid} ")]
    lines = listed("p")
    assert not [line for line in lines if f"(tool) {os.getpid():x} " in line]  # others may run theirs
    assert [line for line in lines if line.startswith(f"process {os.getpid()} ")]


@root_only
def test_it_reports_mounts_and_writes_to_proc_and_sys(program: Path, tmp_path: Path) -> None:
    """Each once. A setting is written with its own value, and the mount is in a namespace of the test."""
    script = tmp_path / "script"
    setting = "/proc/sys/vm/swappiness"
    script.write_text(
        f"q() {{ {program} q; printf '%s ' $?; }}\n"
        f"q; read -r value <{setting}; q; echo $value >{setting}; q; q\n"
        f"for n in $(seq 5000); do echo $value >{setting}; done; q; q\n"
        f"mkdir {tmp_path}/mnt; mount -t tmpfs t {tmp_path}/mnt; q; q; umount {tmp_path}/mnt; q; q\n"
    )
    argv: list[str | Path] = ["unshare", "--mount", program, "w", script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.split() == list("0010101010")
