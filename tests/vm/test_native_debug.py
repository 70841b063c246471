"""Looking into layers by containers: a command, a shell at a terminal, files; and into a step that failed."""

from __future__ import annotations

import os
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.program import SAVED, Program, assert_clean, base_images, new_store
from tests.support.typist import LONG, at_a_terminal

pytestmark = [
    pytest.mark.vm,
    pytest.mark.usefixtures("alone"),
    pytest.mark.skipif(os.geteuid() != 0, reason="native steps need root"),
]


@pytest.fixture
def native(tmp_path: Path) -> Program:
    return Program(new_store(tmp_path / "store", base_images("micro")), "native")


def test_run_shell_and_cp_look_into_a_layer_and_change_nothing(
    native: Program, spec: Callable[[str], Path], source: Path, tmp_path: Path
) -> None:
    """On a base whose image is gone."""
    id = SAVED.findall(native.build(spec("((from micro))"), source).stdout)[0]
    native("base", "rm", "micro")

    script = "id -u; id -g; pwd; echo err >&2; exit 7"
    done = native("run", id[:9], "--user=12:34", "--", "sh", "-c", script, code=7)
    assert done.stdout == "12\n34\n/\nerr\n"

    with at_a_terminal(native.argv("shell", id[:9], "--user=1000")) as (child, typist):
        typist.expect(b"will be thrown away\r\n")
        typist.expect(b"$ ")
        typist.type(b"echo $TERM; id -u; stty size; echo mine >$(tty)")
        typist.expect(b"\rvt52\r\n1000\r\n33 101\r\nmine\r\n")
        termios.tcsetwinsize(typist.fd, (44, 55))
        typist.type(b"until stty size | grep '44 55'; do sleep 0.1; done; echo ready >/tmp/me; tail -f /tmp/me")
        typist.expect(b"44 55\r\n")
        typist.expect(b"ready\r\n")
        os.write(typist.fd, b"\x03")
        typist.expect(b"^C")
        typist.expect(b"$ ")
        typist.type(b"exit 5")
        assert child.wait(LONG) == 5

    native("cp", f"{id[:9]}:/etc", tmp_path / "new")
    assert (tmp_path / "new/passwd").read_text().startswith("root:")
    assert native("run", id[:9], "--", "find", "/tmp", "-mindepth", "1").stdout == ""
    assert_clean(native)
    assert native("fsck", "--read-data").stdout == "clean: 1 layers\n"


def test_a_shell_opens_where_a_command_failed(native: Program, spec: Callable[[str], Path], source: Path) -> None:
    path = spec(
        "((from micro) (user (uid 5) (gid 6)) (workdir /here) (env WORD set)"
        ' (run (cache (c (target /cached))) (shell "echo half >file; sleep 9991 & exit 3")))'
    )
    with at_a_terminal(native.argv("build", "-f", path, "--on-failure=shell", source)) as (child, typist):
        typist.expect(b"failed with exit status 3; opening a shell")
        typist.expect(b"$ ")
        typist.type(b"id -u; cat file; echo $WORD $PWD; ps ax -o args | grep -c '[s]leep 9991'")
        typist.expect(b"\r5\r\nhalf\r\nset /here\r\n0\r\n")
        typist.type(b"exit 0")
        typist.expect(b"failed with exit status 3")
        assert child.wait(LONG) == 1
    assert_clean(native)
