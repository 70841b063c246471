"""The `obuild` program with scripted machines, for workers and clients of a farm.

A command writes a random word to its disk, prints its text, and does what its words say: `fail`, `sleep SECONDS`,
`wait FILE` until the file is there, `touch FILE`, `full` for a disk without room, `secret NAME` to print a value.
`wait` and `pid` print which process they run in, and `die` kills it. `nap SECONDS` does nothing else.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from obuild.__main__ import main
from obuild.builder.farm import link, needs, order, server
from obuild.errors import MachineError
from obuild.executors.all import EXECUTORS
from obuild.host import process
from tests.support.fakes import Act, FakeExecutor, Run, ScriptedGuests

#: A worker has no room for the commands `full` while there is a file of this name in its store.
FULL = "full"


def act(step: Run) -> int:
    """The script of every command."""
    text = step.command.argv[-1]
    step.output(f"{text}\n".encode(errors="surrogateescape"))
    if text.startswith("nap "):
        time.sleep(float(text.split()[1]))
        return 0
    process.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P {1 + os.urandom(1)[0] % 255} 64k 64k", step.draft.image]
    )
    for cache in step.caches:
        if cache.exists():
            step.new(cache).write_bytes(cache.read_bytes())
    match text.split():
        case ["fail", *_]:
            return 1
        case ["sleep", seconds, *_]:
            time.sleep(float(seconds))
        case ["wait", path, *_]:
            step.output(f"made by {os.getpid()}\n".encode())
            while not Path(path).exists():
                if GUESTS.configs[-1].scope.cancelled:
                    raise MachineError("the machine was killed")
                time.sleep(0.02)
        case ["die", *_]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["touch", path, *_]:
            Path(path).touch()
        case ["full", *_] if (step.draft.path.parent.parent / FULL).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case ["pid", *_]:
            step.output(f"made by {os.getpid()}\n".encode())
        case ["secret", name, *_]:
            step.output(f"{len(step.secrets[name])} bytes: {step.secrets[name].decode()}\n".encode())
    return 0


class Always(dict[str, Act]):
    """A script with the same action for every command."""

    def get(self, key: str, default: object = None) -> Act:
        return act


GUESTS = ScriptedGuests(FakeExecutor(Always(), files={"out": b"x"}))

if __name__ == "__main__":
    EXECUTORS["qemu"] = GUESTS
    server.LEASE, server.CONNECT, link.CONNECT = 1, 3, 3  # tests kill workers and schedulers, and wait
    if version := os.environ.get("OBUILD_FAKE_VERSION"):
        vars(needs)["VERSION"] = vars(order)["VERSION"] = version
    main()
