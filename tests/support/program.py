"""A store with real base images, and the real program run on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from obuild.bases import kind, making, recipe
from obuild.host import locks
from obuild.store.layers import Store
from tests.support import forked

ROOT = Path(__file__).parent.parent.parent


def layers(output: str) -> list[str]:
    """The ids of the layers that a build reports as used or made, in order."""
    return re.findall(r'^---> (?:using|saved as) "([0-9a-f]{64})"', output, re.MULTILINE)


def boots(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the ids of the boots in which steps ran; the steps print them."""
    return re.findall(r"^[0-9a-f]{8}-[0-9a-f-]{27}$", done.stdout, re.MULTILINE)


class Program:
    """The `obuild` command on one store, whose steps run in an executor of one kind."""

    def __init__(self, store: Path, executor: str = "qemu") -> None:
        self.store = store
        self.executor = executor

    def __call__(
        self, *args: str | Path, code: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run it, and check that it ends with `code` and without a traceback."""
        done = forked.run(self.argv(*args)[3:], env=env)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def build(
        self, spec: Path, source: Path, *options: str, code: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return self("build", "-f", spec, *options, source, code=code, env=env)

    def argv(self, *args: str | Path) -> list[str]:
        """The command line. What follows `--` in the arguments is the command of somebody else."""
        words = list(map(str, args))
        end = words.index("--") if "--" in words else len(words)
        return [
            sys.executable,
            "-m",
            "obuild",
            *words[:end],
            f"--store={self.executor}:{self.store}",
            *words[end:],
        ]


def base_images(*recipes: str) -> Path:
    """A folder with the base images of these recipes, names or files, and their login key.

    It is made once for each state of the recipes.
    """
    paths = [making.recipe_path(each) for each in recipes]
    names = "-".join(path.stem for path in paths)
    stamp = "-".join(kind.digest(recipe.load(path))[:12] for path in paths)
    kept = ROOT / ".cache" / "test-bases" / f"{names}-{stamp}"
    store = Store.open(kept)
    for path in paths:
        making.make(store, str(path), say=print)
    return kept


def extents(path: Path) -> Iterator[bytes]:
    """The content of a file without its holes: the memory of a saved machine is mostly holes."""
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
    """Rename a base image: its file, and the files that belong to it."""
    for path in (store / "base-image").glob(f"{old}.*"):
        path.rename(path.with_stem(new))


def new_store(root: Path, bases: Path) -> Path:
    """A fresh store that has the images of `bases`; a `micro-ARCH` is called `micro`."""
    Store.open(root)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{bases}/base-image", f"{bases}/state", root], check=True)
    for about in (root / "base-image").glob("micro-*.toml"):
        rename_base(root, about.stem, "micro")
    return root


def booted_store(root: Path, bases: Path, run: Path) -> Path:
    """As `new_store`, with the layer of `micro` and its saved machine.

    One machine is booted for all of a test run, whose folder is `run`. Nobody writes to the files of the layer and
    of the machine, so every store has the same ones, under other names.
    """
    first = run / f"booted-{bases.name}"
    with locks.file_lock(run / f"{first.name}.lock"):
        if not first.exists():
            maker = Program(new_store(run / f"{first.name}.part", bases))
            spec = run / f"{first.name}.spec"
            spec.write_text('((from micro) (run (shell "echo booted")))')
            step = layers(maker.build(spec, run).stdout)[-1]
            maker("rm", step)
            maker.store.rename(first)
    new_store(root, bases)
    for part in ("result", "warm"):  # machines of other architectures are not saved
        (root / part).mkdir(exist_ok=True)
        for path in (first / part).glob("*"):
            subprocess.run(["cp", "-al", path, root / part], check=True)
    return root


def machines(store: Path) -> list[int]:
    """The QEMU processes that work on a store."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"qemu-system" in command and os.fsencode(store) in command:
                found.append(int(entry.name))
    return found


def assert_clean(program: Program) -> None:
    """Check that nothing of the failed step is left."""
    assert machines(program.store) == []
    for folder in ("result-tmp", "cache-tmp", "warm-tmp", "state/locks"):
        assert not list((program.store / folder).glob("*")), folder


@contextmanager
def running(
    program: Program, spec: Path, source: Path, until: str, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A build that has printed `until`."""
    child = subprocess.Popen(
        program.argv("build", "-f", spec, *options, source), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.decode().strip() == until:
                break
        else:
            pytest.fail(f"the build ended: {child.stderr.read().decode() if child.stderr else ''}")
        yield child


SAVED = re.compile(r'^---> saved as "([0-9a-f]{64})"$', re.MULTILINE)
