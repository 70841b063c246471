"""The live view in a real terminal: nothing breaks the screen, whatever the size, the keys and the output.

Steps wait for files that the tests make, so what the screen shows at each point is known.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from obuild.store.layers import Store
from tests.support.tmux import Terminal, terminal

ROOT = Path(__file__).parents[3]


class Bench:
    """A terminal with a shell, and builds to type into it."""

    def __init__(self, folder: Path, store: Store, terminal: Terminal) -> None:
        self.folder = folder
        self.store = store
        self.terminal = terminal

    def sign(self, name: str) -> None:
        """Let the steps go on that wait for this file."""
        (self.folder / "signs" / name).touch()

    def build(self, spec: str, *options: str, before: str = "", after: str = "") -> None:
        """Type a build."""
        (self.folder / "spec").write_text(spec)
        argv = [sys.executable, "-m", "tests.support.scripted", "build", f"--store=qemu:{self.store.root}"]
        argv += ["--qemu-accel=tcg", "-f", str(self.folder / "spec"), *options, str(self.folder / "signs")]
        (self.folder / "b").write_text(f"{before} {shlex.join(argv)} {after}\n")
        self.terminal.type(". ./b")

    def ended(self, code: int = 0) -> str:
        """Wait for the end of the build; returns all that the terminal has."""
        self.terminal.type("echo code=$?.")
        self.terminal.expect(f"code={code}.")
        assert self.terminal.tell("cursor_flag") == "1"
        return self.terminal.all


Open = Callable[..., AbstractContextManager[Bench]]


@pytest.fixture
def bench(tmp_path: Path, store: Store, tiny: Path) -> Open:
    """Opens a terminal of a size, with environment variables."""
    (tmp_path / "signs").mkdir()

    @contextmanager
    def opened(columns: int = 80, lines: int = 24, **env: str) -> Iterator[Bench]:
        env = {"OBUILD_SIGNS": str(tmp_path / "signs"), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", **env}
        with terminal(tmp_path, columns, lines, env) as found:
            yield Bench(tmp_path, store, found)

    return opened


TWO = """((build dev ((from tiny) (run (shell "print in dev; wait dev"))))
 (from tiny)
 (run (shell "print one; send 40000000; wait go; print two"))
 (run (network host) (shell "print three; wait end")))"""


@pytest.mark.parametrize(("columns", "lines"), [pytest.param(100, 30, marks=pytest.mark.long), (80, 24), (40, 8)])
def test_a_build_on_terminals_of_any_size(bench: Open, columns: int, lines: int) -> None:
    with bench(columns, lines) as at:
        at.build(TWO, "--tag=web")
        seen = at.terminal.expect("running", "in dev", "1/5 steps")
        assert "no similar layer" in seen
        at.sign("dev")
        assert "19.1" in at.terminal.expect("sending stuff", "3/5 steps", "| one")
        at.sign("sent")
        at.terminal.expect("running", gone=["sending"])
        at.sign("go")
        seen = at.terminal.expect("4/5 steps", "| three")
        if columns > 40:
            assert "network open" in seen
        at.sign("end")
        at.terminal.expect("Got: ")
        shown = at.ended()
        for text in (
            "\nin dev\n",
            '--> finished "dev"',
            "\none\n",
            "\ntwo\n",
            "\nthree\n",
            "1 from the cache, 4 made",
        ):
            assert shown.count(text) == 1, text
        assert "slowest:" in shown
        assert "tags:    web\n" in shown
        for text in ("running", "| three", "similar", "/5 steps"):
            assert text not in shown, text


def test_a_terminal_may_change_its_size(bench: Open) -> None:
    """What the terminal itself has moved to its scrollback meanwhile stays there; the screen is right."""
    with bench(100, 24) as at:
        at.build(TWO)
        at.terminal.expect("in dev", "GiB free")
        for columns, lines in ((40, 8), (90, 30), (50, 10), (100, 24)):
            at.terminal.resize(columns, lines)
            wide = ["GiB free"] if columns > 80 else []
            seen = at.terminal.expect("in dev", *wide, gone=[] if wide else ["GiB"])
            assert seen.count("running") == seen.count("1/5 steps") == 1
        for name in ("dev", "sent", "go", "end"):
            at.sign(name)
        at.terminal.expect("Got: ")
        shown = at.ended()
        for text in ("---> 1 step from the cache", "\nin dev\n", "\nthree\n", "5 steps in"):
            assert shown.count(text) == 1, text


def test_ctrl_z_and_ctrl_c_leave_a_clean_screen(bench: Open) -> None:
    with bench() as at:
        at.build(TWO)
        at.terminal.expect("in dev", "1/5 steps")
        at.terminal.keys("C-z")
        seen = at.terminal.expect("Stopped")
        assert "1/5 steps" not in seen
        assert at.terminal.tell("cursor_flag") == "1"
        at.terminal.type("fg")
        at.terminal.expect("in dev", "1/5 steps")
        at.terminal.keys("C-c")
        at.terminal.expect("interrupted")
        shown = at.ended(130)
        assert "1/5 steps" not in shown
        assert "obuild: interrupted\nhint: finished steps are kept" in shown


@pytest.mark.parametrize(
    "env",
    [{}, {"NO_COLOR": "1", "LANG": "C"}, {"TERM": "dumb"}],
    ids=["usual", "no colour, no UTF-8", "dumb"],
)
def test_output_cannot_break_the_screen(bench: Open, env: dict[str, str]) -> None:
    with bench(60, 12, **env) as at:
        spec = """((from tiny) (run (shell "print \\\\x1b[31mred; wait go; write """ + "10%\\\\r" * 40
        spec += """99%; wait end; print \\\\x1b[2J\\\\x1b[5;5Hhostile\\\\x1b]0;title\\\\x07; flood 2000000"""
        spec += """; write \\\\x1b[?25l\\\\x1b[1000B\\\\xc3\\\\x9b")))"""
        at.build(spec)
        at.terminal.expect("red")
        assert env.get("TERM") != "dumb" or "\x1b[94m" not in at.terminal.tmux("capture-pane", "-p", "-e")
        at.sign("go")
        if env.get("TERM") == "dumb":
            at.sign("end")
            at.terminal.expect("Got: ")
            return
        at.terminal.expect("| 99%", "1/2 steps", gone=["10%"])
        assert at.terminal.tell("cursor_flag") == "1"
        codes = at.terminal.tmux("capture-pane", "-p", "-e")
        assert ("\x1b[" in codes) == ("NO_COLOR" not in env)
        assert "\x1b[31m" not in codes
        assert codes.isascii() == (env.get("LANG") == "C")
        at.sign("end")
        at.terminal.expect("Got: ")
        shown = at.ended()
        assert "1/2 steps" not in shown
        assert "obuild logs" in shown, "the beginning was dropped"


def test_a_failed_step_shows_the_end_of_its_output_and_what_helps(bench: Open) -> None:
    with bench(100, 40) as at:
        prints = "; ".join(f"print line {number}." for number in range(30))
        at.build(f'((from tiny) (run (shell "{prints}; fail")))')
        at.terminal.expect("these may help")
        shown = at.ended(1)
        assert [number for number in range(30) if f"\nline {number}.\n" in shown] == list(range(10, 30))
        assert "failed with exit status 3" in shown
        for command in ("obuild logs ", "obuild build --on-failure shell ", "obuild run "):
            assert command in shown


def test_a_shell_in_the_failed_step_has_the_terminal_to_itself(bench: Open) -> None:
    with bench() as at:
        at.build('((from tiny) (run (shell "print before; wait go; fail")))', "--on-failure=shell")
        at.terminal.expect("| before", "1/2 steps")
        at.sign("go")
        assert "1/2 steps" not in at.terminal.expect("exit status 3; opening a shell", "a shell")
        at.sign("shell")
        at.terminal.expect("these may help")
        assert "1/2 steps" not in at.ended(1)


def test_stages_side_by_side_are_all_shown(bench: Open) -> None:
    with bench() as at:
        at.build(
            """((build a ((from tiny) (run (shell "print in a; wait a"))))
                (build b ((from tiny) (run (shell "print in b; wait b"))))
                (from tiny) (run (shell "print last")))""",
            "--jobs=2",
        )
        at.terminal.expect("a 2/2", "b 2/2", "| in a", "| in b")
        at.sign("b")
        at.terminal.expect('finished "b"', "| in a", gone=["| in b"])
        at.sign("a")
        at.terminal.expect("Got: ")
        assert at.ended().count("in b\n") == 1


def test_nothing_is_left_of_a_build_whose_terminal_goes_away(bench: Open) -> None:
    with bench() as at:
        at.build('((from tiny) (run (shell "print here; wait go")))', after="; touch ended")
        at.terminal.expect("| here")
        (pid,) = at.terminal.children()
        at.terminal.tmux("kill-session")
        at.terminal.wait_for_end(pid)
        assert list(at.store.result_tmp.iterdir()) == []
        assert len(at.store.ids()) == 1


def test_a_build_goes_on_without_its_terminal_if_it_is_told_to(bench: Open) -> None:
    with bench() as at:
        at.build('((from tiny) (run (shell "print here; wait go")))', before="trap '' HUP;")
        at.terminal.expect("| here")
        (pid,) = at.terminal.children()
        at.terminal.tmux("kill-session")
        at.sign("go")
        at.terminal.wait_for_end(pid)
        assert len(at.store.ids()) == 2


@pytest.mark.parametrize("after", ["| head -n 2", pytest.param("> out 2>&1", marks=pytest.mark.long)])
def test_what_is_no_terminal_gets_lines(bench: Open, after: str) -> None:
    with bench() as at:
        at.build('((from tiny) (run (shell "print here; print there")))', after=after)
        shown = at.ended()
        if after == "> out 2>&1":
            shown = (at.folder / "out").read_text()
        assert "\n(from tiny)\n" in f"\n{shown}"
        assert "steps" not in shown
