"""The command line as a user meets it: bad input of every kind, help, completion. No guest boots."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HELLO = "((from there) (run (shell true)))"


def obuild(*args: str | Path, code: int, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program; it must end with `code`, and never with a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "obuild", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a spec, a source and a place for a store."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src/file").write_text("x")
    (tmp_path / "spec").write_text(HELLO)
    return tmp_path


def refused(
    here: Path, spec: str | None = None, *options: str | Path, source: str = "src", store: str = ""
) -> str:
    """The message for a build that is found wrong before anything is built."""
    if spec is not None:
        (here / "spec").write_text(spec)
    where = store or f"qemu:{here / 'store'}"
    done = obuild("build", f"--store={where}", "-f", here / "spec", *options, here / source, code=2)
    assert not list((here / "store").glob("result*/*"))
    return done.stderr


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "empty"),
        ("((from micro)", "1:1"),
        ("((from micro)\n (run (shell true)))\n )", ":3:2:"),
        ("((from micro)\n (rnu (shell true)))", "spec:2:2:"),
        ("((from micro) (rnu (shell true)))", "run"),
        ("((from ../../etc/passwd))", "cannot be the name of a base image"),
        ("((from a/b))", "cannot be the name of a base image"),
        ("((from ..))", "cannot be the name of a base image"),
        ("((from nosuch))", "unknown base image 'nosuch'"),
        ("((from nosuch))", "micro"),
        ("((from micro@md5:123))", "sha256"),
    ],
)
def test_a_bad_spec_is_refused_with_its_place(here: Path, spec: str, said: str) -> None:
    assert said in refused(here, spec)


@pytest.fixture
def based(here: Path) -> Path:
    """As `here`, with a base image called `there`."""
    disk = here / "disk.raw"
    disk.write_bytes((b"\0" * 510 + b"\x55\xaa").ljust(1 << 20, b"\0"))
    obuild("base", "add", disk, "--name", "there", f"--store=qemu:{here / 'store'}", code=0)
    return here


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        ("(copy (src ../up) (dst /x))", "'..' is not allowed"),
        ("(copy (src nosuch) (dst /x))", "'nosuch' not found"),
        ("(copy (src file/x) (dst /x))", "not a directory"),
        ("(copy (src file file) (dst /x))", "must end with '/'"),
        ("(env A=B c)", "name of an environment variable"),
        ('(env "" c)', "name of an environment variable"),
        ("(run (secrets (tok (target /t))) (shell true))", "--secret tok:FILE"),
        ("(user (uid -1) (gid 0))", "uid"),
        ("(user (name opam))", "by number"),
        (f"(run (shell {'x' * 140_000}))", "script"),
    ],
)
def test_an_op_that_cannot_work_is_refused_with_its_line(based: Path, ops: str, said: str) -> None:
    message = refused(based, f"((from there)\n {ops})")
    assert said in message
    assert "spec:2:2:" in message


def test_a_source_that_leads_out_through_a_symlink_is_refused(based: Path) -> None:
    (based / "src/out").symlink_to("/etc")
    assert "not a directory" in refused(based, "((from there) (copy (src out/passwd) (dst /x)))")


def test_files_that_are_not_there(here: Path) -> None:
    (here / "spec").unlink()
    assert "cannot read the spec" in refused(here)
    (here / "spec").mkdir()
    assert "is a directory" in refused(here)


def test_a_source_directory_that_is_not_there(here: Path) -> None:
    assert "no source directory" in refused(here, HELLO, source="nosuch")


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("/data", "KIND:PATH"),
        ("qemu:", "KIND:PATH"),
        ("btrfs:/data", "unknown kind of store 'btrfs'"),
        ("qemu:/proc/nosuch", "cannot write to the store"),
        ("qemu:/dev/null", "cannot write to the store"),
    ],
)
def test_a_store_that_cannot_be(here: Path, store: str, said: str) -> None:
    assert said in refused(here, store=store)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--qemu-accel", "xen"], "xen"),
        (["--qemu-memory", "much"], "--qemu-memory"),
        (["--qemu-memory", "1M"], "at least"),
        (["--qemu-cpus", "0"], "--qemu-cpus"),
        (["--qemu-guest-os", "plan9"], "plan9"),
        (["--qemu-guest-arch", "vax"], "vax"),
        (["--secret", "x"], "ID:FILE"),
        (["--secret", "x:/no/such/file"], "/no/such/file"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_options_that_cannot_be(based: Path, options: list[str], said: str) -> None:
    assert said in refused(based, HELLO, *options)


def test_qemu_that_is_not_installed_is_said_to_be_with_its_package(based: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    done = obuild(
        *("build", f"--store=qemu:{based / 'store'}", "-f", based / "spec", based / "src"),
        code=2,
        env={"PATH": str(tools)},
    )
    assert "apt install qemu" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a disk image"),
        (b"hello" * 1000, "not a disk image"),
        (b"QFI\xfb" + b"\0" * 600, "not a disk image"),
        (b"KDMV" + b"\0" * 600, "VMDK"),
        (b"\x1f\x8b" + b"\0" * 600, "gzip"),
    ],
)
def test_a_base_image_that_is_no_disk(here: Path, content: bytes, said: str) -> None:
    folder = here / "store/base-image"
    obuild("base", "ls", f"--store=qemu:{here / 'store'}", code=0)
    (folder / "there.qcow2").write_bytes(content)
    assert said in refused(here)


def test_a_truncated_base_image(here: Path) -> None:
    obuild("base", "ls", f"--store=qemu:{here / 'store'}", code=0)
    image = here / "store/base-image/there.qcow2"
    raw = here / "raw"
    raw.write_bytes(os.urandom(4 << 20))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    os.truncate(image, image.stat().st_size - (1 << 20))
    assert "damaged or truncated" in refused(here)


def test_a_base_image_that_points_at_another_file(here: Path) -> None:
    obuild("base", "ls", f"--store=qemu:{here / 'store'}", code=0)
    image = here / "store/base-image/there.qcow2"
    secret = here / "secret"
    secret.write_bytes(b"s" * 65536)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", image], check=True)
    assert "needs another file" in refused(here)


def test_a_card_that_is_malformed(based: Path) -> None:
    (based / "store/base-image/there.toml").write_text("os = 'minix'")
    assert "there.toml" in refused(based)


@pytest.mark.parametrize(
    "args",
    [["log", "abc"], ["delete", "abc"], ["base", "rm", "abc"], ["base", "make", "abc"], ["base", "rm", "../x"]],
)
def test_names_that_stand_for_nothing(based: Path, args: list[str]) -> None:
    assert "abc" in obuild(*args, f"--store=qemu:{based / 'store'}", code=2).stderr or args[-1] == "../x"


def test_a_store_is_only_made_by_commands_that_fill_it(tmp_path: Path) -> None:
    for args in (["ls"], ["clean"], ["log", "a"], ["delete", "a"]):
        assert "is not a store" in obuild(*args, f"--store=qemu:{tmp_path / 'none'}", code=2).stderr
    assert not (tmp_path / "none").exists()


COMMANDS = ["build", "healthcheck", "log", "ls", "delete", "clean", "dockerfile", "base"]


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS], ["base", "make"], ["base", "add"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    shown = obuild(*command, "--help", code=0).stdout
    assert "Usage: obuild" in shown
    for name in COMMANDS if not command else ():
        assert name in shown


def test_the_version_is_said() -> None:
    from obuild.version import VERSION

    assert obuild("--version", code=0).stdout == f"obuild {VERSION}\n"


def test_the_shell_can_complete() -> None:
    done = obuild(
        code=0, env={"_OBUILD_COMPLETE": "complete_bash", "COMP_WORDS": "obuild heal", "COMP_CWORD": "1"}
    )
    assert "healthcheck" in done.stdout


def test_a_dockerfile_is_printed(here: Path) -> None:
    assert obuild("dockerfile", "-f", here / "spec", code=0).stdout == "FROM there\nRUN true\n\n"
    assert "windows" in obuild("dockerfile", "-f", here / "spec", "--escape", "vms", code=2).stderr
