"""A build that is killed while it works, and the checks afterwards."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from obuild.store import fsck
from obuild.store.layers import Store
from tests.support import forked

SAVED = re.compile(r'---> saved as "([0-9a-f]{64})"')


#: What fsck may find after a process was killed.
EXPECTED = (
    "a draft that no living process owns|a copy of a cache that no living process owns"
    "|a lock file that nobody holds|a base image that was never put in place|a file that was never finished"
    "|a flattened copy of a layer that is gone|a manifest of a layer that is gone"
    "|a machine that no living process owns"
)


class Victim:
    """The program, on its own store, run until it is killed. `words` stand for paths in commands."""

    module = "tests.support.fake_obuild"
    executor = "qemu"

    def __init__(self, root: Path, words: dict[str, Path]) -> None:
        self.root = root
        self.words = words
        self.saved: set[str] = set()

    def start(self, *command: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", self.module, *self._args(command)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *command: str, kill_at: str = "") -> int:
        """Run a command to its end, and record what it says it has saved."""
        done = forked.run(self._args(command), module=self.module, env={"OBUILD_KILL_AT": kill_at})
        assert "Traceback" not in done.stderr, done.stderr
        self.saved |= set(SAVED.findall(done.stdout))
        return done.returncode

    def _args(self, command: Iterable[str]) -> list[str]:
        return [*(str(self.words.get(word, word)) for word in command), f"--store={self.executor}:{self.root}"]

    def check(self) -> None:
        """A crash leaves only rubbish: the next command removes it, and then the store is sound."""
        store = Store(self.root)
        assert self.saved <= {layer.id for layer in store.layers()}  # no finished layer is lost
        for finding in fsck.check(store):
            assert re.fullmatch(EXPECTED, finding.what), finding
        assert self.run("prune") == 0
        harmless = {"a lock file that nobody holds", "a file that was never finished"}
        assert {finding.what for finding in fsck.check(store, read_data=True)} <= harmless
        assert self.run("fsck", "--repair") == 0
        assert list(fsck.check(store)) == []
