"""Where a command runs in a layer: read from the keys of the layer and of those below it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.builder import inside
from obuild.builder.chain import Builder
from obuild.errors import StoreError
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain, Command
from obuild.spec import UnixUser, WindowsUser
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, Heard

Plan = Callable[[str], Chain]
USER = '(user (uid 7) (gid 8)) (workdir "/a b") (env B "1\\n2") (env A é)'


@pytest.fixture
def build(store: Store, chain: Plan) -> Callable[[str], Chain]:
    def run(ops: str) -> Chain:
        made = chain(ops)
        Builder(store, FakeExecutor, Heard().tell).build(made)
        return made

    return run


def command(store: Store, id: LayerId, os: str = "linux") -> Command:
    return inside.command(store, id, os, ("x",), network=True)


def test_a_command_runs_as_the_layers_own_did(store: Store, build: Plan) -> None:
    last = build(f"{USER} (run (shell a))").steps[-1]
    assert isinstance(last.action, Command)
    found = command(store, last.id)
    assert (found.cwd, found.env, found.user) == (last.action.cwd, last.action.env, last.action.user)
    assert (found.argv, found.network, found.caches, found.secrets) == (("x",), True, (), ())


def test_a_copy_is_skipped_for_the_last_command_below_it(store: Store, build: Plan, tmp_path: Path) -> None:
    (tmp_path / "source/file").touch()
    ops = f"{USER} (run (shell a)) (user (uid 9) (gid 9)) (copy (src file) (dst /b)) (copy (src file) (dst /c))"
    assert command(store, build(ops).steps[-1].id).user == UnixUser(7, 8)


@pytest.mark.parametrize(
    ("os", "expected"),
    [
        ("linux", Command(("x",), "/", (), UnixUser(0, 0), True)),
        ("windows", Command(("x",), "C:/", (), WindowsUser("ContainerAdministrator"), True)),
    ],
)
def test_without_a_command_below_the_defaults_of_a_spec_apply(
    store: Store, build: Plan, tmp_path: Path, os: str, expected: Command
) -> None:
    (tmp_path / "source/file").touch()
    for step in build("(user (uid 9) (gid 9)) (copy (src file) (dst /b))").steps:
        assert command(store, step.id, os) == expected


def rekey(store: Store, id: LayerId, key: str) -> None:
    path = store.result / id / "key"
    path.chmod(0o644)
    path.write_text(key)


HEAD = f"((format 2)(parent {'0' * 64})(executor qemu)"


def test_a_user_may_have_a_name(store: Store, build: Plan) -> None:
    id = build("(run (shell a))").steps[-1].id
    rekey(store, id, f"{HEAD}(workdir C:/)(user Admin)(env ())(run (x))(network none)(secrets ()))")
    assert command(store, id).user == WindowsUser("Admin")


@pytest.mark.parametrize(
    "rest",
    [
        "(workdir",
        "(run (x)))",
        "(workdir /)(user (1))(env ())(run (x)))",
        "(workdir /)(user (a b))(env ())(run (x)))",
        "(workdir (/))(user (1 2))(env ())(run (x)))",
        "(workdir /)(user (1 2))(env a)(run (x)))",
        "(workdir /)(user (1 2))(env ((a)))(run (x)))",
    ],
)
def test_a_damaged_key_is_reported(store: Store, build: Plan, rest: str) -> None:
    id = build("(run (shell a))").steps[-1].id
    rekey(store, id, HEAD + rest)
    with pytest.raises(StoreError, match=id):
        command(store, id)


def test_a_missing_layer_is_reported(store: Store, build: Plan) -> None:
    last = build("(run (shell a))").steps[-1]
    shutil.rmtree(store.result / last.id)
    with pytest.raises(StoreError, match="just removed"):
        command(store, last.id)
