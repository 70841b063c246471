"""An exported image boots elsewhere."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.program import Program

pytestmark = pytest.mark.vm

Spec = Callable[[str], Path]


def test_an_exported_image_boots_in_another_store(
    shared: Program, spec: Spec, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = spec('((from micro) (run (shell "echo exported >/marker")))')
    shared.build(made, source, "-t", "team/pg:16")
    done = shared("export", "team/pg:16", "--type=qcow2", "--type=vmdk", "--version=1.0", "-o", out)
    image = out / "team-pg-16-1.0.qcow2"
    assert done.stdout.splitlines() == [str(image), str(image.with_suffix(".vmdk"))]
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", image]))
    assert "backing-filename" not in info

    other = Program(tmp_path / "other")
    key = shared.store / "state/ssh/id_ed25519"
    other("base", "add", image, "--name=exported", "--memory=128M", "--key", key)
    text = other.build(spec('((from exported) (run (shell "cat /marker")))'), source).stdout
    assert "\nexported\n" in text
