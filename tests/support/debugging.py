"""What people do to look into a layer, by any executor: a command, a shell at a terminal, files copied out."""

from __future__ import annotations

import os
import termios
from pathlib import Path

from tests.support.program import Program, assert_clean, layers
from tests.support.typist import LONG, at_a_terminal


def look_into_micro(program: Program, spec: Path, source: Path, out: Path) -> None:
    """Look into the layer of `micro`, whose image is removed; it must stay the same, and nothing must be left.

    The file `spec` is written, and `out` is a folder for files.
    """
    spec.write_text("((from micro))")
    id = layers(program.build(spec, source).stdout)[0]
    program("base", "rm", "micro")

    script = "id -u; id -g; pwd; echo err >&2; exit 7"
    done = program("run", id[:9], "--user=12:34", "--", "sh", "-c", script, code=7)
    assert done.stdout == "12\n34\n/\nerr\n"

    with at_a_terminal(program.argv("shell", id[:9], "--user=1000")) as (child, typist):
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

    program("cp", f"{id[:9]}:/etc", out / "new")
    assert (out / "new/passwd").read_text().startswith("root:")
    assert list(out.glob(".obuild*")) == []
    assert_clean(program)
    assert [path.name for path in (program.store / "result").iterdir()] == [id]
    assert program("fsck", "--read-data").stdout == "clean: 1 layers\n"
