"""Keys: their text, and that what is written can be read."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from obuild import spec
from obuild.guests.profile import Card
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.plan.planner import plan
from obuild.plan.steps import Base, Command, Extract, Graft, Step
from obuild.spec import Run, Stage, UnixUser, WindowsUser, sexp

BASE = Base("b", Path("/nowhere"), "d" * 64, (1, 2, 3), Card())
PARENT = LayerId("0" * 64)


def make(ops: str, source: Path = Path()) -> tuple[Step, ...]:
    stage = spec.parse(f"((from b)\n{ops})".encode())
    return plan(stage, source=source, bases={"b": BASE}).known


def test_an_id_is_the_sha256_of_a_key_that_can_be_read_back() -> None:
    step = make("(run (shell a))")[-1]
    assert step.id == hashlib.sha256(step.key.encode()).hexdigest()
    assert sexp.dumps(sexp.loads(step.key)) == step.key


def test_bytes_that_are_not_utf_8_survive_in_a_key() -> None:
    step = plan(Stage("b", (Run("echo \udcff"),)), source=Path(), bases={"b": BASE}).known[-1]
    assert step.id == hashlib.sha256(step.key.encode("utf-8", "surrogateescape")).hexdigest()


def test_the_ids_of_a_spec_are_stable(tmp_path: Path) -> None:
    """A change here makes every user rebuild everything: it needs a reason."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "a").chmod(0o644)
    ops = """(env A 1) (user (uid 1) (gid 2)) (workdir /w) (run (network host) (shell "make"))
             (copy (src a) (dst b/))"""
    imported, command, transfer = make(ops, tmp_path)
    assert imported.key == f"((format 2)(base sha256:{BASE.digest}))"
    assert command.key == (
        f"((format 2)(parent {imported.id})(executor qemu)(workdir /w)(user(1 2))(env((A 1)))"
        "(run(bash -c make))(network host)(secrets()))"
    )
    assert transfer.key == (
        f"((format 2)(parent {command.id})(copy /w/b)(user(1 2))(files((file a 644 "
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb))))"
    )
    assert imported.id == "789bb3f36977d9c7be1ad454948cad3ebe716824b657c23727acc2e691e84249"


def test_the_parent_is_read_from_the_beginning_of_a_key() -> None:
    base, command = make("(run (shell a))")
    assert keys.parent(command.key.encode()) == base.id
    assert keys.parent(command.key.encode()[: keys.HEAD]) == base.id
    assert keys.parent(base.key.encode()) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(",
        "((format 2))",
        f"((format 2)(parent {'0' * 63}))",
        f"((format 1)(parent {'0' * 64}))",
        f"((format 3)(parent {'0' * 64}))",
        f"((executor q)(format 1)(parent {'0' * 64}))",
        "\udcff",
    ],
)
def test_text_that_is_not_a_key_has_no_parent(text: str) -> None:
    assert keys.parent(text.encode("utf-8", "surrogateescape")) is None


def test_the_beginning_of_a_key_tells_a_copy_from_a_command(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    base, command, copy = make("(run (shell a)) (copy (src a) (dst /b))", tmp_path)
    assert [keys.is_copy(step.key) for step in (base, command, copy)] == [False, False, True]


@pytest.mark.parametrize("user", [UnixUser(7, 8), WindowsUser("Admin")])
def test_workdir_env_and_user_of_a_command_are_read_back(user: UnixUser | WindowsUser) -> None:
    text = keys.of_command(
        PARENT,
        executor="qemu",
        workdir="/a b",
        user=user,
        env=(("A", "1\n2"),),
        argv=("x",),
        network=True,
        secrets=(),
    )
    key = keys.fields(text)
    assert (keys.workdir(key), keys.user(key), keys.env(key)) == ("/a b", user, (("A", "1\n2"),))


def test_the_digest_of_a_base_is_read_back() -> None:
    assert keys.base_digest(keys.fields(make("")[0].key)) == BASE.digest
    assert keys.base_digest({}) == ""


def test_a_field_that_is_nested_too_deeply_is_a_text() -> None:
    deep = "(" * 50 + ")" * 50
    assert keys.fields(f"((format 1)(odd {deep}))")["odd"] == deep


def test_the_keys_of_development_versions_can_be_read() -> None:
    command = f"((format 1)(executor qemu)(parent {PARENT})(workdir /w)(user(1 2))(env((A 1)))(run(sh)))"
    copy = f"((format 1)(executor qemu)(parent {PARENT})(copy /w/b)(user(1 2))(files()))"
    base = f"((format 1)(executor qemu)(base sha256:{BASE.digest}))"
    assert [keys.parent(key.encode()) for key in (command, copy, base)] == [PARENT, PARENT, None]
    assert [keys.is_copy(key) for key in (command, copy, base)] == [False, True, False]
    read = keys.fields(command)
    assert (keys.workdir(read), keys.user(read), keys.env(read)) == ("/w", UnixUser(1, 2), (("A", "1"),))
    assert keys.base_digest(keys.fields(base)) == BASE.digest


def test_only_the_key_of_a_command_has_the_executor(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    imported, run, copy = make("(run (shell a)) (copy (src a) (dst /b))", tmp_path)
    assert isinstance(run.action, Command)
    elsewhere = replace(run, action=run.action._replace(executor="native"))
    assert elsewhere.id != run.id
    assert [("executor" in keys.fields(step.key)) for step in (imported, run, copy)] == [False, True, False]
    graft = Graft(Extract("dev", ("a",), (), None, UnixUser(0, 0)), PARENT, (), "/b")
    assert "executor" not in keys.fields(Step(PARENT, graft).key)
