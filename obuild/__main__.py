"""The program's entry point. From here on an interrupt ends with exit code 130, not with a traceback."""

from __future__ import annotations

import gc
import signal
import sys
from typing import NoReturn

from obuild.errors import OutputError
from obuild.host import streams

#: How many new objects make Python collect garbage. A cached build makes some 25,000, hardly any of them garbage,
#: and collecting would take a tenth of its time.
GARBAGE = 100_000


def main() -> None:
    """Run the command line."""
    try:
        streams.prepare()
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
            signal.signal(signal.SIGHUP, _terminate)
        gc.set_threshold(GARBAGE)
        from obuild.cli.main import run

        try:
            run()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        _interrupted()
    except RuntimeError as error:
        # While a module is imported, Python 3.11 wraps what a descriptor's __set_name__ raises.
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        _interrupted()
    except BrokenPipeError:  # `obuild --help | head`; commands handle it themselves
        streams.forget_output()
        sys.exit(1)
    except OutputError as error:
        streams.forget_output()
        sys.stderr.write(f"obuild: {error.message}\n")
        sys.exit(1)


def _interrupted() -> NoReturn:
    sys.stderr.write("obuild: interrupted\n")
    sys.exit(130)


def _terminate(number: int, frame: object) -> NoReturn:
    """Let SIGTERM, and SIGHUP, end a build as Ctrl-C does, so that no guest is left behind."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
