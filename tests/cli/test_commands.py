"""The command line: names, aliases, the default store and spec, progress. No guest boots."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import typer

from obuild.cli import console, main
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store import layers
from obuild.store.layers import Store
from tests.support import odd
from tests.support.layers import make_all

ChainMaker = Callable[[str], Chain]


@pytest.fixture
def ids(store: Store, chain: ChainMaker) -> list[LayerId]:
    """The ids of a small chain of layers in the store."""
    return make_all(store, chain("(run (shell one)) (run (shell two))"))


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """A source folder with a spec for that chain."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "obuild.spec").write_text("((from tiny) (run (shell one)))")
    return tmp_path / "src"


def obuild(*args: str | Path, code: int = 0, env: dict[str, str] | None = None) -> tuple[str, str]:
    """Run the program in its own process; return its stdout and stderr."""
    ended, out, err = odd.run(map(str, args), before=partial(os.environ.update, env or {}))
    assert "Traceback" not in err
    assert ended == code, out + err
    return out, err


# -- aliases


def test_aliases_work_like_the_commands_they_stand_for(store: Store, ids: list[LayerId]) -> None:
    where = f"--store=qemu:{store.root}"
    assert obuild("log", ids[1], where) == obuild("logs", ids[1], where)
    assert obuild("explain", ids[1], where, "--json") == obuild("inspect", ids[1], where, "--json")
    dry = ("--keep-bytes=0", "--dry-run", "--json")
    assert obuild("gc", where, *dry) == obuild("prune", where, *dry)
    assert obuild("prune", where, "--before=0s", "--limit=1")[0] == f"Removing {ids[2]}\nRemoved 1 item\n"
    assert obuild("delete", ids[1][:12], where)[0] == f"Removing {ids[1]}\n"
    assert obuild("clean", where)[0] == f"Removing {ids[0]}\nRemoved 1 item\n"
    assert store.ids() == []


def test_aliases_and_hidden_commands_are_not_in_the_help() -> None:
    assert set(main.ALIASES.values()) <= set(main.COMMANDS)
    assert not {*main.ALIASES, *main.HIDDEN} & set(main.COMMANDS)


def test_rm_removes_several_layers_or_none(store: Store, ids: list[LayerId]) -> None:
    assert "no layer has the id" in obuild("rm", ids[2], "f" * 64, f"--store=qemu:{store.root}", code=2)[1]
    assert len(store.ids()) == 3
    obuild("rm", ids[2], ids[1], f"--store=qemu:{store.root}")
    assert store.ids() == [ids[0]]


def test_prune_all_removes_untagged_layers_but_no_caches(store: Store, ids: list[LayerId]) -> None:
    where = f"--store=qemu:{store.root}"
    archive = store.caches.file("old")
    archive.parent.mkdir()
    archive.write_bytes(b"x" * 4096)
    store.tag(ids[1], "web")
    planned = json.loads(obuild("prune", "--all", "--dry-run", "--json", where)[0])
    assert [item["name"] for item in planned["items"]] == [ids[2]]
    assert [(item["name"], item["why"]) for item in planned["in_use"]] == [(ids[1], "tagged web")]
    said = obuild("prune", "--all", where)[0]
    assert f"removing layer {ids[2][:12]}" in said
    assert f"stays layer {ids[1][:12]}" in said
    assert set(store.ids()) == set(ids[:2])
    assert archive.exists()


# -- the default store


def test_the_default_store_is_in_the_data_folder_and_is_announced_when_made(tmp_path: Path, src: Path) -> None:
    data = tmp_path / "data"
    env = {"XDG_DATA_HOME": str(data), "OBUILD_STORE": ""}
    (src / "tar").write_bytes(b"\0" * 10240)
    assert "data/obuild is not a store" in obuild("ls", code=2, env=env)[1]
    assert not data.exists()
    assert obuild("cache", "import", "c", src / "tar", env=env)[1] == (
        f"obuild: the store is {data}/obuild; --store or OBUILD_STORE names another\n"
    )
    assert obuild("cache", "ls", env=env)[1] == ""
    assert (data / "obuild" / "README").exists()


@pytest.mark.parametrize("data", ["", "relative/path"])
def test_the_data_folder_is_below_home_unless_it_is_absolute(tmp_path: Path, data: str) -> None:
    env = {"XDG_DATA_HOME": data, "HOME": str(tmp_path), "OBUILD_STORE": ""}
    _, said = obuild("ls", code=2, env=env)
    assert f"{tmp_path}/.local/share/obuild is not a store" in said


def test_the_store_option_overrides_the_environment(store: Store, ids: list[LayerId]) -> None:
    env = {"OBUILD_STORE": f"qemu:{store.root}"}
    assert obuild("ls", env=env)[0].count("\n") == 3
    assert "is not a store" in obuild("ls", "--store=qemu:/nosuch", code=2, env=env)[1]


# -- the default spec


def test_a_build_finds_the_spec_in_its_source(store: Store, ids: list[LayerId], src: Path) -> None:
    where = f"--store=qemu:{store.root}"
    assert obuild("build", where, src)[0].endswith(f'Got: "{ids[1]}"\n')
    assert "2 of 2 steps are in the store" in obuild("plan", where, src)[0]
    (src / "obuild.spec").write_text("((from tiny)\n (rnu x))")
    for command in ("build", "plan"):
        assert f"obuild: {src}/obuild.spec:2:2: " in obuild(command, where, src, code=2)[1]
    (src / "obuild.spec").unlink()
    for command in ("build", "plan"):
        said = obuild(command, where, src, code=2)[1]
        assert f"cannot read the spec {src}/obuild.spec: No such file" in said
        assert "-f" in said


# -- progress


def test_progress_can_be_lines_or_json(store: Store, ids: list[LayerId], src: Path) -> None:
    argv = ("build", f"--store=qemu:{store.root}", src)
    assert obuild(*argv)[0] == obuild(*argv, "--events=lines")[0]
    plain = re.sub(r"^\[ {4}\d\.\d\] ", "", obuild(*argv, "--progress=plain")[0], flags=re.MULTILINE)
    assert plain == obuild(*argv)[0]
    told = [json.loads(line) for line in obuild(*argv, "--progress=json")[0].splitlines()]
    assert told[-1]["event"] == "done"
    again = [json.loads(line) for line in obuild(*argv, "--events=json")[0].splitlines()]
    assert [each["event"] for each in again] == [each["event"] for each in told]
    for option in ("--progress=fancy", "--events=plain"):
        said, why = obuild(*argv, option, code=2)
        assert said == ""
        assert "it can be" in why


def test_jobs_of_ci_services_have_plain_lines_that_fold(store: Store, ids: list[LayerId], src: Path) -> None:
    argv = ("build", f"--store=qemu:{store.root}", src)
    github = obuild(*argv, env={"GITHUB_ACTIONS": "true"})[0]
    assert github.startswith("[    0.0] (from tiny)\n")
    gitlab = obuild(*argv, env={"GITLAB_CI": "true"})[0]
    assert github.endswith(f'] Got: "{ids[1]}"\n')
    assert obuild(*argv, "--events=lines", env={"GITLAB_CI": "true"})[0] == obuild(*argv)[0] != gitlab


def test_a_failed_step_names_commands_that_help(store: Store, ids: list[LayerId], src: Path) -> None:
    where = f"qemu:{store.root}"
    (src / "obuild.spec").write_text('((from tiny) (run (shell one)) (run (shell "fail here")))')
    build = ("build", f"--store={where}", "--qemu-accel=tcg", src)
    why = obuild(*build, code=1)[1]
    logs, shell, run = why.splitlines()[-3:]
    failed = logs.split()[2]
    assert re.fullmatch(rf"  obuild logs {failed} --store={re.escape(where)} +all of its output", logs)
    assert shell.split("  ")[1] == f"obuild build --on-failure shell --store={where} …"
    assert run.split("  ")[1] == f"obuild run {ids[1][:12]} --store={where} -- COMMAND"
    assert obuild("logs", failed, f"--store={where}")[0] == "fail here\n"
    assert "no layer" in obuild("inspect", failed, f"--store={where}", code=2)[1]
    assert obuild("fsck", f"--store={where}")[0].startswith("clean")


def test_the_logs_of_the_last_failed_steps_are_kept(
    store: Store, ids: list[LayerId], src: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "FAILED", 2)
    for number in range(3):
        (src / "obuild.spec").write_text(f'((from tiny) (run (shell "fail {number}")))')
        obuild("build", f"--store=qemu:{store.root}", "--qemu-accel=tcg", src, code=1)
    kept = sorted(path.read_text() for path in store.failed.iterdir())
    assert kept == ["fail 1\n", "fail 2\n"]


def test_quiet_prints_only_the_id(store: Store, ids: list[LayerId], src: Path, tmp_path: Path) -> None:
    argv = ("build", f"--store=qemu:{store.root}", "-q", src)
    assert obuild(*argv) == (f"{ids[1]}\n", "")
    assert obuild(*argv, "-t", "web", "--vm=boot") == (f"{ids[1]}\n", "")
    assert "exclude each other" in obuild(*argv, "--progress=json", code=2)[1]


def test_quiet_shows_the_output_of_a_failed_step(store: Store, ids: list[LayerId], src: Path) -> None:
    (src / "obuild.spec").write_text('((from tiny) (run (shell one)) (run (shell "fail here")))')
    said, why = obuild("build", f"--store=qemu:{store.root}", "--qemu-accel=tcg", "-q", src, code=1)
    assert said == ""
    assert why.startswith("fail here\nobuild: Build step failed:")


def test_a_lack_of_memory_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    @console.guarded
    def command() -> None:
        raise MemoryError

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 1
    assert "obuild: out of memory" in capsys.readouterr().err
