"""The program's first step: whatever is interrupted from here on ends with exit code 130, not a traceback."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from obuild.cli import run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("obuild: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
