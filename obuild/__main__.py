"""The program's first step: whatever is interrupted from here on ends with exit code 130, not a traceback."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    """Run the command line."""
    try:
        _open_stdio()
        signal.signal(signal.SIGTERM, _terminate)
        gc.disable()  # loading makes many objects and no garbage: looking for some takes a tenth of the time
        from obuild.cli import run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("obuild: interrupted\n")
        sys.exit(130)
    except OSError as error:  # the help cannot be written; commands tell of errors themselves
        sys.stderr.write(f"obuild: {error.strerror or error}\n")
        sys.exit(1)


def _open_stdio() -> None:
    """Have stdin, stdout and stderr be something: else a file of the store would get the number of one of them.

    Then whoever writes to stderr, a program that we start for one, would write into that file.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _terminate(number: int, frame: object) -> NoReturn:
    """A polite kill ends a build as Ctrl-C does, so that no guest is left behind."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
