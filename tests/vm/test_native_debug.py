"""Looking into layers by containers: a command, a shell at a terminal, files; and into a step that failed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.debugging import look_into_micro
from tests.support.program import Program, assert_clean, base_images, new_store
from tests.support.typist import LONG, at_a_terminal

pytestmark = [
    pytest.mark.vm,
    pytest.mark.usefixtures("alone"),
    pytest.mark.skipif(os.geteuid() != 0, reason="native steps need root"),
]


@pytest.fixture
def native(tmp_path: Path) -> Program:
    return Program(new_store(tmp_path / "store", base_images("micro")), "native")


def test_run_shell_and_cp_look_into_a_layer_and_change_nothing(
    native: Program, source: Path, tmp_path: Path
) -> None:
    look_into_micro(native, tmp_path / "test.spec", source, tmp_path)


def test_a_shell_opens_where_a_command_failed(native: Program, spec: Callable[[str], Path], source: Path) -> None:
    path = spec(
        "((from micro) (user (uid 5) (gid 6)) (workdir /here) (env WORD set)"
        ' (run (cache (c (target /cached))) (shell "echo half >file; sleep 9991 & exit 3")))'
    )
    with at_a_terminal(native.argv("build", "-f", path, "--on-failure=shell", source)) as (child, typist):
        typist.expect(b"failed with exit status 3; opening a shell")
        typist.expect(b"$ ")
        typist.type(b"id -u; cat file; echo $WORD $PWD; ps ax -o args | grep -c '[s]leep 9991'")
        typist.expect(b"\r5\r\nhalf\r\nset /here\r\n0\r\n")
        typist.type(b"exit 0")
        typist.expect(b"failed with exit status 3")
        assert child.wait(LONG) == 1
    assert_clean(native)
