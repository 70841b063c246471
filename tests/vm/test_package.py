"""The example specs/package: a package that one machine builds is installed in another, and comes out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.program import ROOT, Program, base_images, new_store

pytestmark = [
    pytest.mark.vm,
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="native steps need root"),
]


def test_the_package_is_built_installed_and_taken_out(tmp_path: Path, alone: None) -> None:
    program = Program(new_store(tmp_path / "store", base_images("debian-12")), "native")
    folder = ROOT / "specs/package"
    done = program.build(folder / "package.spec", folder, "-t", "package")
    assert "/: (run (shell greet))\nHello from a package!\n" in done.stdout
    program("cp", "package:/packages", tmp_path / "packages")
    (package,) = (tmp_path / "packages").iterdir()
    said = subprocess.run(["dpkg-deb", "-f", package, "Package"], check=True, capture_output=True, text=True)
    assert (package.name, said.stdout) == ("greet_1.0_all.deb", "greet\n")
