"""docs/cli.md matches the program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from obuild.cli import main

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_command_line_reference_is_up_to_date() -> None:
    argv = [sys.executable, "-m", "obuild.cli.reference"]
    written = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert DOCS.read_text(encoding="utf-8") == written, "run: make docs"


def test_the_reference_has_every_command_and_alias() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name in (*main.COMMANDS, *main.ALIASES, *main.HIDDEN):
        assert f"`obuild {name}" in text
    assert "--qemu-guest-arch" in text
    assert "`obuild tag rm [OPTIONS] NAME...`" in text
