"""A build on a stock guest: systemd, sudo, apt, and a real network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.manual import example
from tests.support.program import ROOT, Program, base_images, new_store

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Program:
    folder = tmp_path_factory.mktemp("debian")
    return Program(new_store(folder / "store", base_images("debian-12")))


def test_a_step_runs_on_debian(debian: Program, tmp_path: Path) -> None:
    spec = tmp_path / "test.spec"
    command = ". /etc/os-release; echo $ID $VERSION_ID; systemctl is-active ssh; apt-get --version | head -n 1"
    spec.write_text(f'((from debian-12) (run (shell "{command}")))')
    output = debian.build(spec, tmp_path, "--vm", "boot").stdout
    assert "\ndebian 12\nactive\napt " in output


@pytest.mark.long
def test_the_example_is_built_and_then_comes_from_the_cache(debian: Program, tmp_path: Path) -> None:
    source = shutil.copytree(ROOT / "specs/hello", tmp_path / "hello")
    shown = example("network")
    assert (source / "hello.spec").read_text() == shown.spec  # so the build tests the manual's example
    first = debian.build(source / "hello.spec", source)
    assert first.stdout.count("---> saved as") == 4
    assert shown.output in first.stdout
    assert list((debian.store / "cache/c-apt-archives").iterdir())

    again = debian.build(source / "hello.spec", source, "-v")
    assert again.stdout.count("---> using") == 4
    assert "Exec" not in again.stderr
