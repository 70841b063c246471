"""A real terminal: tmux, whose keys are typed and whose screen is read."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

#: How long to wait for something to appear, in seconds.
LONG = 60.0

_LOOK = 0.1


class Terminal:
    """A window of a tmux server of its own."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def tmux(self, *words: str) -> str:
        """Run a command of tmux; returns what it prints."""
        argv = ["tmux", "-S", str(self._socket), "-f", os.devnull, *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    @property
    def screen(self) -> str:
        """What can be seen."""
        return self.tmux("capture-pane", "-p")

    @property
    def all(self) -> str:
        """What can be seen, after all that has scrolled away. Lines that were wrapped are joined."""
        return self.tmux("capture-pane", "-p", "-J", "-S", "-")

    def tell(self, what: str) -> str:
        """A variable of the window, such as `cursor_flag`."""
        return self.tmux("display-message", "-p", f"#{{{what}}}").strip()

    def children(self) -> list[int]:
        """The processes that the shell has started, and that run now."""
        shell = self.tmux("display-message", "-p", "#{pane_pid}").strip()
        return [int(pid) for pid in Path(f"/proc/{shell}/task/{shell}/children").read_text().split()]

    def wait_for_end(self, pid: int) -> None:
        """Wait until a process has ended."""
        deadline = time.monotonic() + LONG
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            assert time.monotonic() < deadline, f"process {pid} does not end"
            time.sleep(_LOOK)

    def keys(self, *keys: str) -> None:
        """Type keys, by the names that tmux gives them."""
        self.tmux("send-keys", *keys)

    def type(self, line: str) -> None:
        """Type a line, and Enter."""
        self.tmux("send-keys", "-l", line)
        self.keys("Enter")

    def resize(self, columns: int, lines: int) -> None:
        self.tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def expect(self, *texts: str, gone: Sequence[str] = ()) -> str:
        """Wait until the screen has all of the texts, and none of those that must be `gone`; returns it."""
        deadline = time.monotonic() + LONG
        while not (all(text in (seen := self.screen) for text in texts) and not any(t in seen for t in gone)):
            assert time.monotonic() < deadline, f"waited for {texts}, not {gone}:\n{self.all}"
            time.sleep(_LOOK)
        return seen


@contextmanager
def terminal(
    folder: Path, columns: int, lines: int, env: Mapping[str, str], shell: Sequence[str] = ("sh",)
) -> Iterator[Terminal]:
    """A terminal of this size, in which a shell runs with these variables alone."""
    found = Terminal(folder / "tmux")
    assignments = [f"{name}={value}" for name, value in {"PS1": "$ ", "TERM": "screen", **env}.items()]
    command = shlex.join(["env", "-i", f"PATH={os.environ['PATH']}", *assignments, *shell])
    found.tmux("new-session", "-d", "-x", str(columns), "-y", str(lines), "-c", str(folder), command)
    try:
        found.tmux("set-option", "-g", "window-size", "manual")
        found.expect("$")
        yield found
    finally:
        subprocess.run(["tmux", "-S", str(found._socket), "kill-server"], capture_output=True, check=False)
