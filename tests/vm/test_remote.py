"""Layers that another store has made, in real guests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.program import Program, assert_clean, base_images, layers, new_store

pytestmark = [pytest.mark.vm, pytest.mark.long]


def test_a_guest_boots_from_pulled_layers(source: Path, spec: Callable[[str], Path], tmp_path: Path) -> None:
    """The other store has no base image, and other keys: it can log in to what it has fetched."""
    first = Program(new_store(tmp_path / "store", base_images("micro")))
    remote = f"dir:{tmp_path / 'remote'}"
    made = first.build(spec('((from micro) (run (shell "echo made there >/made")))'), source, "--remote", remote)
    last = layers(made.stdout)[-1]
    other = Program(tmp_path / "other")
    other("pull", last, remote)
    assert other("run", last, "--", "cat", "/made").stdout == "made there\n"
    keys = [(each.store / "state/ssh/id_ed25519").read_bytes() for each in (first, other)]
    assert keys[0] != keys[1]
    assert_clean(other)
