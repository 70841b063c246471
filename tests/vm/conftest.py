"""Stores with real base images, and the real program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obuild.executors.qemu.arches import ARCHES
from obuild.host import locks
from tests.support.native import wait_for_nothing
from tests.support.program import Program, base_images, booted_store, new_store

#: The recipe of `micro` for each architecture. Emulating the others is slow, so only `make test-arch` asks for
#: them.
MICROS = [
    pytest.param("micro", id=arch)
    if arch == "x86_64"
    else pytest.param(f"micro-{arch}", id=arch, marks=pytest.mark.arch)
    for arch in ARCHES
]


@pytest.fixture(scope="session", params=MICROS)
def micro_images(request: pytest.FixtureRequest) -> Path:
    """The images of `micro` in this run: a test that uses them runs once for each architecture."""
    return base_images(request.param)


@pytest.fixture
def arch(micro_images: Path) -> str:
    """The architecture of `micro`."""
    words = micro_images.name.split("-")
    return words[1] if len(words) > 2 else "x86_64"


@pytest.fixture
def kept_warm(arch: str) -> bool:
    """Whether machines of this architecture are kept warm; else each step boots one, and talks to it by SSH."""
    return bool(ARCHES[arch].genid)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, micro_images: Path, whole_run: Path) -> Program:
    """A store that tests share: each builds its own steps, and removes none."""
    return Program(booted_store(tmp_path_factory.mktemp("shared") / "store", micro_images, whole_run))


@pytest.fixture
def fresh(tmp_path: Path, micro_images: Path) -> Program:
    """The test's own store."""
    return Program(new_store(tmp_path / "store", micro_images))


@pytest.fixture
def ready(tmp_path: Path, micro_images: Path, whole_run: Path) -> Program:
    """The test's own store, which already has the layer of `micro` and its saved machine."""
    return Program(booted_store(tmp_path / "store", micro_images, whole_run))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> Callable[[str], Path]:
    """Write a spec to a file."""

    def write(text: str) -> Path:
        path = tmp_path / "test.spec"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def alone(whole_run: Path) -> Iterator[None]:
    """Run one test with native steps at a time, and check that nothing is left after it."""
    with locks.file_lock(whole_run / "native.lock"):
        wait_for_nothing()
        yield
        wait_for_nothing()
