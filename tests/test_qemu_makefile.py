"""qemu/Makefile: which commands each target stands for. Nothing is made."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from obuild.bases import recipe, sources
from tests.support.program import ROOT


def commands(*targets: str) -> list[str]:
    """The commands that `make` would run, without the program's path and the store."""
    argv = [
        "make",
        "--dry-run",
        "--no-print-directory",
        "-C",
        str(ROOT / "qemu"),
        "OBUILD=/bin/true",
        "STORE=qemu:/s",
    ]
    done = subprocess.run(
        [*argv, f"PYTHON={sys.executable}", *targets], check=True, capture_output=True, text=True
    )
    return re.findall(r"^/bin/true (.*) --store=qemu:/s$", done.stdout, re.MULTILINE)


def made(names: list[str]) -> list[str]:
    return [f"base make {name} --if-changed" for name in names]


def test_every_recipe_is_a_target() -> None:
    names = list(sources.names())
    assert commands(*names) == made(names)


def test_all_is_what_has_been_tried() -> None:
    found = {name: recipe.load(path) for name in sources.names() if (path := sources.find(name))}
    assert commands("all") == made([name for name, each in found.items() if each.tried])
    assert not found["fedora-aarch64"].tried, "it has that from the recipe that it extends"


@pytest.mark.parametrize("system", ["ubuntu", "windows", "freebsd", "openbsd"])
def test_a_system_stands_for_all_recipes_of_it(system: str) -> None:
    assert sorted(commands(system)) == made([name for name in sources.names() if name.startswith(f"{system}-")])


def test_a_seed_is_a_target() -> None:
    assert commands("fedora-seed.iso") == ["base make fedora --seed ."]


def test_clean_removes_every_image() -> None:
    argv = ["make", "--dry-run", "-C", str(ROOT / "qemu"), "OBUILD=/bin/true", "clean"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "base rm $name" in done.stdout
    assert set(sources.names()) <= set(re.findall(r"[\w.-]+", done.stdout))
