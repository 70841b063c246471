"""Tags on the command line. No guest boots."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.cli.commands import cp
from obuild.plan.steps import Chain
from obuild.store.layers import Store
from tests.support import odd
from tests.support.layers import make_all

ChainMaker = Callable[[str], Chain]


class Program:
    """The program, on a store with a chain of three layers."""

    def __init__(self, store: Store, ids: list[str], spec: Path) -> None:
        self.store = store
        self.ids = ids
        self.spec = spec

    def __call__(self, *args: str, code: int = 0) -> str:
        """Run a command; return its stdout and stderr."""
        ended, out, err = odd.run([*args, f"--store=qemu:{self.store.root}"])
        assert "Traceback" not in err
        assert ended == code, out + err
        return out + err


@pytest.fixture
def obuild(store: Store, chain: ChainMaker, tmp_path: Path) -> Program:
    ids = make_all(store, chain("(run (shell one)) (run (shell two))"))
    (tmp_path / "test.spec").write_text("((from tiny) (run (shell one)))")
    return Program(store, [str(id) for id in ids], tmp_path / "test.spec")


def test_tags_are_set_listed_moved_and_removed(obuild: Program) -> None:
    root, one, two = obuild.ids
    assert obuild("tag", two[:10], "web", "team/web:1.2") == ""
    assert obuild("tag", "add", "web", "nightly") == ""
    assert [line.split()[:2] for line in obuild("tag", "ls").splitlines()] == [
        ["nightly", two[:12]],
        ["team/web:1.2", two[:12]],
        ["web", two[:12]],
    ]
    obuild("tag", one, "web")
    listed = json.loads(obuild("tag", "ls", "--json"))
    assert {tag["name"]: tag["id"] for tag in listed} == {"nightly": two, "team/web:1.2": two, "web": one}
    assert "[nightly, team/web:1.2]" in obuild("ls")
    assert "tags    web" in obuild("inspect", "web")
    assert obuild("logs", "web") == obuild("logs", one)
    assert "there is no tag nosuch" in obuild("tag", "rm", "web", "nosuch", code=2)
    obuild("tag", "rm", "nightly", "team/web:1.2")
    assert [tag["name"] for tag in json.loads(obuild("tag", "ls", "--json"))] == ["web"]
    assert root[:12] in obuild("ls")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("3f2a:/etc/passwd", ("3f2a", "/etc/passwd")),
        ("3f2a:/a:/b", ("3f2a", "/a:/b")),
        ("web:/x", ("web", "/x")),
        ("web:1.2:/x", ("web:1.2", "/x")),
        ("team/web:1.2:x:y", ("team/web:1.2", "x:y")),
        ("web:1.3:/x", ("web", "1.3:/x")),
    ],
)
def test_cp_takes_the_longest_tag_before_the_path(obuild: Program, source: str, parts: tuple[str, str]) -> None:
    for name in ("web", "web:1.2", "team/web:1.2"):
        obuild.store.tag(obuild.store.ids()[0], name)
    assert cp._parted(source, obuild.store.tags) == parts


@pytest.mark.parametrize("source", ["", "x", ":", "x:", "web:"])
def test_a_source_without_a_path_is_refused(obuild: Program, source: str) -> None:
    assert "is not ID:PATH" in obuild("cp", source, ".", code=2)


def test_options_of_tag_may_come_anywhere(obuild: Program) -> None:
    for args in (("tag", "-v0"), ("tag", "STORE", obuild.ids[0], "web"), ("tag", obuild.ids[0], "STORE", "web2")):
        ended, _, err = odd.run(arg.replace("STORE", f"--store=qemu:{obuild.store.root}") for arg in args)
        assert (ended, "No such option" in err) == ((2, True) if args[1] == "-v0" else (0, False))
    ended, out, _ = odd.run(["tag", f"--store=qemu:{obuild.store.root}", "ls"])
    assert (ended, out.count("\n")) == (0, 2)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["web", "x"], "no layer has the id or the tag 'web'"),
        (["ROOT", ".."], "'..' is not a valid tag"),
        (["ROOT", "cafe"], "looks like an id"),
        (["ROOT", "web", "deadbeef"], "looks like an id"),
        (["f" * 64, "web"], "no layer has the id"),
        (["ROOT"], "NAME..."),
    ],
)
def test_an_invalid_tag_or_layer_sets_no_tag(obuild: Program, args: list[str], said: str) -> None:
    assert said in obuild("tag", *(obuild.ids[0] if arg == "ROOT" else arg for arg in args), code=2)
    assert obuild("tag", "ls") == ""


def test_removing_a_tagged_layer_fails_and_names_the_tag(obuild: Program) -> None:
    root, _, two = obuild.ids
    obuild("tag", two, "web")
    said = obuild("rm", root, code=1)
    assert f"the tag web ({two[:12]}) would lose its layer" in said
    assert "obuild tag rm web" in said
    assert len(obuild.store.ids()) == 3
    assert "Removed 0 items" in obuild("clean")
    assert "tagged web" in obuild("prune", "--keep-bytes=0", "--dry-run")
    assert "in use or tagged" in obuild("prune", "--keep-bytes=0", code=1)
    assert len(obuild.store.ids()) == 3
    obuild("rm", "web", "--force")
    assert obuild.store.ids() == [*filter(obuild.store.find, obuild.store.ids())]
    assert len(obuild.store.ids()) == 2
    assert obuild("tag", "ls") == ""


def test_a_build_checks_tag_names_first_and_tags_its_result(obuild: Program, tmp_path: Path) -> None:
    argv = ("build", "--qemu-accel=tcg", "-f", str(obuild.spec), str(tmp_path))
    assert "looks like an id" in obuild(*argv, "-t", "web", "--tag", "f00", code=2)
    assert obuild("tag", "ls") == ""
    told = obuild(*argv, "-t", "web", "--tag", "web:1").splitlines()
    assert told[-3:] == ["tagged web", "tagged web:1", f'Got: "{obuild.ids[1]}"']
    assert [str(tag.id) for tag in obuild.store.tags.all()] == [obuild.ids[1]] * 2
