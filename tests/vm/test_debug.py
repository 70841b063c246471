"""Looking into a layer with real guests: a command, a shell at a terminal, files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.debugging import look_into_micro
from tests.support.program import Program

pytestmark = pytest.mark.vm


def test_run_shell_and_cp_look_into_a_layer_and_change_nothing(
    ready: Program, source: Path, tmp_path: Path
) -> None:
    look_into_micro(ready, tmp_path / "test.spec", source, tmp_path)
