"""Looking into a layer with real guests: a command, a shell at a terminal, files."""

from __future__ import annotations

import os
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.program import Program
from tests.support.typist import LONG, at_a_terminal

pytestmark = pytest.mark.vm

Spec = Callable[[str], Path]


def test_run_shell_and_cp_look_into_a_layer_and_change_nothing(
    ready: Program, spec: Spec, source: Path, tmp_path: Path
) -> None:
    """On a base whose image is gone."""
    id = ready.build(spec("((from micro))"), source).stdout.split('"')[-2]
    ready("base", "rm", "micro")

    script = "id -u; id -g; pwd; echo err >&2; exit 7"
    done = ready("run", id[:9], "--user=12:34", "--", "sh", "-c", script, code=7)
    assert done.stdout == "12\n34\n/\nerr\n"

    with at_a_terminal(ready.argv("shell", id[:9], "--user=1000")) as (child, typist):
        typist.expect(b"will be thrown away\r\n")
        typist.expect(b"$ ")
        typist.type(b"echo $TERM; id -u; stty size; echo mine >$(tty)")
        typist.expect(b"\rvt52\r\n1000\r\n33 101\r\nmine\r\n")
        termios.tcsetwinsize(typist.fd, (44, 55))
        # a signal that a shell gets while it starts a program can be lost: Ctrl-C must meet one that has written
        typist.type(b"echo ready >/tmp/me; until stty size | grep '44 55'; do sleep 0.1; done; tail -f /tmp/me")
        typist.expect(b"44 55\r\n")
        typist.expect(b"ready\r\n")
        os.write(typist.fd, b"\x03")
        typist.expect(b"^C")  # else an earlier prompt might match, redrawn after the resize
        typist.expect(b"$ ")
        typist.type(b"exit 5")
        assert child.wait(LONG) == 5

    ready("cp", f"{id[:9]}:/etc", tmp_path / "new")
    assert (tmp_path / "new/passwd").read_text().startswith("root:")
    assert list(tmp_path.glob(".obuild*")) == []
    assert list((ready.store / "cache-tmp").iterdir()) == []
    assert [path.name for path in (ready.store / "result").iterdir()] == [id]
    assert ready("fsck", "--read-data").stdout == "clean: 1 layers\n"
