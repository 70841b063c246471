"""A store with real base images, and the real program run on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obuild.bases import catalog, kind, recipe
from obuild.executors.qemu.arches import ARCHES
from obuild.store.layers import Store

ROOT = Path(__file__).parent.parent.parent

#: The recipe of `micro` for each architecture. Emulating the others is slow: only `make test-arch` asks for them.
MICROS = [
    pytest.param("micro", id=arch)
    if arch == "x86_64"
    else pytest.param(f"micro-{arch}", id=arch, marks=pytest.mark.arch)
    for arch in ARCHES
]


def layers(output: str) -> list[str]:
    """The ids of the layers that a build says it has used or made, in order."""
    return re.findall(r'^---> (?:using|saved as) "([0-9a-f]{64})"', output, re.MULTILINE)


class Program:
    """The `obuild` command on one store."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def __call__(
        self, *args: str | Path, code: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, and see that it ends with `code` and without a traceback."""
        done = subprocess.run(
            self.argv(*args),
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env={**os.environ, **(env or {})},
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def build(
        self, spec: Path, source: Path, *options: str, code: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self("build", "-f", spec, *options, source, code=code, env=env)

    def argv(self, *args: str | Path) -> list[str]:
        return [sys.executable, "-m", "obuild", *map(str, args), f"--store=qemu:{self.store}"]


def base_images(*recipes: str) -> Path:
    """A folder with the base images of these recipes, names or files, and their login key.

    It is made once for each state of the recipes.
    """
    paths = [catalog.recipe_path(each) for each in recipes]
    names = "-".join(path.stem for path in paths)
    stamp = "-".join(kind.digest(recipe.load(path))[:12] for path in paths)
    kept = ROOT / ".cache" / "test-bases" / f"{names}-{stamp}"
    store = Store.open(kept)
    for path in paths:
        catalog.make(store, str(path), say=print)
    return kept


def extents(path: Path) -> Iterator[bytes]:
    """What a file holds besides holes: the memory of a saved machine is mostly those."""
    with path.open("rb") as file:
        end = 0
        while True:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield os.pread(file.fileno(), end - start, start)


def rename_base(store: Path, old: str, new: str) -> None:
    """Call a base image something else: its file, and whatever belongs to it."""
    for path in (store / "base-image").glob(f"{old}.*"):
        path.rename(path.with_stem(new))


def new_store(root: Path, bases: Path) -> Path:
    """A fresh store in which the images of `bases` are there already; a `micro-ARCH` is called `micro`."""
    Store.open(root)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{bases}/base-image", f"{bases}/state", root], check=True)
    for about in (root / "base-image").glob("micro-*.toml"):
        rename_base(root, about.stem, "micro")
    return root


@pytest.fixture(scope="session", params=MICROS)
def micro_images(request: pytest.FixtureRequest) -> Path:
    """What `micro` is in this run: a test that uses it runs once for each architecture."""
    return base_images(request.param)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, micro_images: Path) -> Program:
    """A store that tests share: each builds steps of its own, and removes none."""
    return Program(new_store(tmp_path_factory.mktemp("shared") / "store", micro_images))


@pytest.fixture
def fresh(tmp_path: Path, micro_images: Path) -> Program:
    """A store of the test's own."""
    return Program(new_store(tmp_path / "store", micro_images))


@pytest.fixture
def ready(tmp_path: Path, micro_images: Path, shared: Program) -> Program:
    """A store of the test's own, in which the layer of `micro` and its saved machine are there already.

    Nobody writes to their files, so they are those of the shared store, under other names.
    """
    spec = tmp_path / "ready.spec"
    spec.write_text('((from micro) (run (shell "echo ready")))')
    layer = layers(shared.build(spec, tmp_path).stdout)[0]
    if not (shared.store / "warm" / layer).exists():  # a test has removed it
        spec.write_text(f'((from micro) (run (shell "echo {tmp_path}")))')
        shared.build(spec, tmp_path)
    program = Program(new_store(tmp_path / "store", micro_images))
    for part in ("result", "warm"):
        (program.store / part).mkdir(exist_ok=True)
        subprocess.run(["cp", "-al", shared.store / part / layer, program.store / part], check=True)
    return program


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
