"""The language reference: its examples are really built, and print what it says."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obuild import spec
from obuild.spec import Comment, Copy, Env, Op, Run, Shell, Stage, User, Workdir
from tests.support.manual import Example, example, examples
from tests.support.program import Program, booted_store, rename_base

Spec = Callable[[str], Path]

#: Needs apt and a network, so tests/vm/test_debian.py builds it.
NETWORK = "network"

#: Needs an image of Windows, which must not be distributed, so it is only planned.
WINDOWS = "Other systems"

BUILT_HERE = [each for each in examples() if each.section not in (NETWORK, WINDOWS)]

LAYER = re.compile(r'^---> (?:saved as|using) "([0-9a-f]{64})"', re.MULTILINE)

#: The files that the examples copy or exclude.
FILES = {
    "dune-project": "(lang dune 3.0)",
    "lib/app.ml": "let name = 1",
    "lib/.git/config": "",
    "bin/main.ml": "let () = ()",
    "bin/_build/main.o": "",
    "config.example": "colour = red\n",
}


@pytest.fixture
def files(source: Path) -> Path:
    """The source folder of the examples."""
    for name, content in FILES.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return source


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, micro_images: Path, whole_run: Path) -> Program:
    """A store for all examples, so that common steps are built once. Its debian-12 is micro."""
    store = booted_store(tmp_path_factory.mktemp("manual") / "store", micro_images, whole_run)
    rename_base(store, "micro", "debian-12")
    return Program(store)


def printed(program: Program, shown: str) -> str:
    """Return what all commands of a build have printed, now or when their layers were made."""
    return "".join((program.store / "result" / id / "log").read_text() for id in LAYER.findall(shown))


@pytest.mark.vm
@pytest.mark.parametrize("shown", BUILT_HERE, ids=lambda each: each.section)
def test_an_example_prints_what_the_manual_says(
    program: Program, spec: Spec, files: Path, tmp_path: Path, shown: Example
) -> None:
    token = tmp_path / "token"
    token.write_text("tH3-v4lu3\n")
    done = program.build(spec(shown.spec), files, "--secret", f"token:{token}")
    assert printed(program, done.stdout) == shown.output


def test_the_windows_example_is_only_planned(tmp_path: Path, spec: Spec, source: Path) -> None:
    program = Program(tmp_path / "store")
    (tmp_path / "disk").write_bytes((b"\0" * 510 + b"\x55\xaa").ljust(1 << 20, b"\0"))
    program("base", "add", tmp_path / "disk", "--name", "windows-server-2022", "--os", "windows")
    (source / "app").mkdir()
    (source / "app" / "app.c").touch()
    planned = json.loads(program("plan", "--json", "-f", spec(example(WINDOWS).spec), source).stdout)
    ops = [step["op"].splitlines()[0] for step in planned]
    assert ops[0] == "(from windows-server-2022)"
    assert ops[1].startswith("C:/src: (copy ")
    assert ops[2].startswith("C:/src: (run (cache ")
    assert len(ops) == 3


def test_layout_and_comments_of_a_spec_make_no_difference() -> None:
    first, second = (spec.parse(example(name).spec) for name in ("A first spec", "Words, quotes and comments"))
    assert first == second  # as the manual says of the two


def stages(stage: Stage) -> Iterator[Stage]:
    yield stage
    for _, inner in stage.stages:
        yield from stages(inner)


def test_the_examples_that_are_built_use_every_op_and_field() -> None:
    whole = [spec.parse(each.spec) for each in (*BUILT_HERE, example(NETWORK))]
    assert any(stage.stages for stage in whole)
    ops: list[Op] = [op for outer in whole for stage in stages(outer) for op in stage.ops]
    for kind in (Run, Copy, Env, Workdir, User, Shell, Comment):
        used = [op for op in ops if isinstance(op, kind)]
        assert used, kind
        for field in dataclasses.fields(kind):
            assert any(getattr(op, field.name) != field.default for op in used), (kind, field.name)
    assert any(cache.buildkit_options for op in ops if isinstance(op, Run) for cache in op.caches)
    copies = [op for op in ops if isinstance(op, Copy)]
    # into a folder and under a new name, relative and absolute, one source and several
    assert {(op.dst.endswith("/"), op.dst.startswith("/")) for op in copies} >= {
        (True, False),
        (True, True),
        (False, True),
    }
    assert {len(op.src) > 1 for op in copies} == {True, False}
    assert {op.origin is None for op in copies} == {True, False}
