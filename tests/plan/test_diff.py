"""Describing keys: what differs, how much, and one key for people."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obuild import spec
from obuild.guests.profile import Card
from obuild.plan import diff
from obuild.plan.keys import Fields, fields
from obuild.plan.planner import plan
from obuild.plan.steps import Base
from obuild.spec import sexp
from obuild.spec.sexp import Sexp

BASE = Base("b", Path("/nowhere"), "d" * 64, (1, 2, 3), Card())
LONG = "apt-get update && apt-get install -y --no-install-recommends build-essential {} git curl ca-certificates"


def key(ops: str, source: Path = Path()) -> Fields:
    """The key of the last step."""
    stage = spec.parse(f"((from b) {ops})".encode())
    chain = plan(stage, source=source, bases={"b": BASE}, secrets=("s", "t")).chain()
    return fields(chain.steps[-1].key)


def differ(old: str, new: str) -> list[str]:
    return diff.differences(key(old), key(new))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("(run (shell x))", "(run (shell x))", []),
        ("(run (shell make))", '(run (shell "make all"))', ["the command changed: make → make all"]),
        ('(run (shell ""))', '(run (shell " x"))', ['the command changed: "" → " x"']),
        ('(run (shell "a\\nb"))', '(run (shell "a\\nc"))', ["the command changed: a\\nb → a\\nc"]),
        (
            f'(run (shell "{LONG.format("gcc")}"))',
            f'(run (shell "{LONG.format("tcc")}"))',
            ["the command changed: …build-essential gcc git curl ca-… → …build-essential tcc git curl ca-…"],
        ),
        ("(env CC gcc) (run (shell x))", "(env CC tcc) (run (shell x))", ["env CC: gcc → tcc"]),
        ("(run (shell x))", '(env CC "") (run (shell x))', ['env CC added: ""']),
        ("(env CC gcc) (run (shell x))", "(run (shell x))", ["env CC removed; it was gcc"]),
        ("(run (shell x))", "(run (network host) (shell x))", ["the network changed: none → host"]),
        ("(run (shell x))", "(workdir /w) (run (shell x))", ["the workdir changed: / → /w"]),
        ("(run (shell x))", "(user (uid 1) (gid 2)) (run (shell x))", ["the user changed: 0:0 → 1:2"]),
        ("(run (shell x))", "(shell sh -c) (run (shell x))", ["the shell changed: bash -c → sh -c"]),
        (
            "(run (secrets (s (target /s))) (shell x))",
            "(run (secrets (s (target /r)) (t (target /t))) (shell y))",
            ["the command changed: x → y", "secret s: /s → /r", "secret t added: /t"],
        ),
        (
            "(run (secrets (s (target /s)) (t (target /t))) (shell x))",
            "(run (secrets (t (target /t)) (s (target /s))) (shell x))",
            ["secret: the order changed"],
        ),
        ("(run (shell x)) (run (shell y))", "(run (shell z)) (run (shell y))", ["parent changed"]),
    ],
)
def test_commands(old: str, new: str, words: list[str]) -> None:
    assert differ(old, new) == words


def files(*entries: str) -> Fields:
    """The key of a copy: entries are `KIND PATH MODE CONTENT`."""
    return {"copy": "/d", "files": tuple(tuple(entry.split(" ")) for entry in entries)}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (["file a.c 644 1"], ["file a.c 644 2"], ["file a.c changed"]),
        (["file a 644 1"], ["file a 755 1"], ["file a changed its mode: 644 → 755"]),
        (["file a 644 1"], ["file a 755 2"], ["file a changed, and its mode: 644 → 755"]),
        (["file a 644 1"], [], ["file a removed"]),
        ([], ["file a 644 1", "file b 644 1"], ["2 files added: a, b"]),
        (
            [],
            [f"file {name} 644 1" for name in "abcdefg"] + ["dir x 755 "],
            ["7 files added: a, b, c, d, e, …", "folder x added"],
        ),
        (["symlink l 777 a"], ["symlink l 777 b"], ["symlink l changed: a → b"]),
        (["symlink l 777 a"], ["file l 644 1"], ["file l was a symlink"]),
        (
            ["file a 644 1", "file b 644 2"],
            ["file b 644 2", "file a 644 1"],
            ["the files are the same in another order"],
        ),
        (["file \udcff 644 1"], ["file \udcff 644 2"], ['file "\\255" changed']),
    ],
)
def test_copies(old: list[str], new: list[str], words: list[str]) -> None:
    assert diff.differences(files(*old), files(*new)) == words


def test_bases_and_unknown_fields() -> None:
    old: Fields = {"executor": "qemu", "base": "sha256:" + "a" * 64, "gone": "1"}
    new: Fields = {"executor": "native", "base": "sha256:" + "b" * 64, "new": ("x", ("y",))}
    assert diff.differences(old, new) == [
        "the executor changed: qemu → native",
        "the content of the base image changed: sha256:aaaaaaaaaaaa → sha256:bbbbbbbbbbbb",
        'new changed: "" → (x(y))',
        'gone changed: 1 → ""',
    ]


def test_only_steps_of_one_kind_are_alike(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    run, copy = key("(run (shell x))"), key("(copy (src f) (dst /))", tmp_path)
    assert diff.alike(run, {**run, "new": "field"})
    assert not diff.alike(run, copy)
    assert not diff.alike(key(""), copy)


@pytest.mark.parametrize(
    ("new", "near", "far"),
    [
        ('(run (shell "make all"))', '(run (shell "make test"))', '(run (shell "apt-get update"))'),
        ("(env A 1) (run (shell x))", "(env A 1) (run (shell y))", "(workdir /w) (run (shell y))"),
        (
            "(env A 1) (env B 2) (env C 3) (run (shell x))",
            "(env A 1) (env B 2) (run (shell x))",
            "(env A 1) (run (shell x))",
        ),
        ("(run (shell x)) (run (shell y))", "(run (shell y))", "(run (shell x)) (run (shell z))"),
    ],
)
def test_the_nearer_one(new: str, near: str, far: str) -> None:
    assert diff.distance(key(near), key(new)) < diff.distance(key(far), key(new))


def test_a_key_for_people(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("f")
    (tmp_path / "f").chmod(0o644)
    (tmp_path / "l").symlink_to("f")
    shown = diff.describe(key('(env A "b c") (workdir /w) (run (secrets (s (target /s))) (shell "a\\n b\\027"))'))
    assert shown[2:] == [
        ("workdir", ["/w"]),
        ("user", ["0:0"]),
        ("env", ["A=b c"]),
        ("run", ["bash -c", "  a", "   b\\027"]),
        ("network", ["none"]),
        ("secrets", ["s at /s"]),
    ]
    copy = dict(diff.describe(key("(copy (src f l) (dst /d/))", tmp_path)))
    assert copy["files"] == [" 644 file    f  252f10c83610", " 777 symlink l → f"]


def test_a_key_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert diff.summary(key('(run (shell "a b"))')) == '(run (shell "a b"))'
    assert diff.summary(key("(copy (src f) (dst /d/))", tmp_path)) == "(copy … (dst /d))"
    assert diff.summary(key("")) == f"(from …@sha256:{'d' * 64})"
    assert diff.summary({"format": "9", "mystery": ()}) == "(mystery)"


sexps = st.recursive(st.text(max_size=5), lambda items: st.lists(items, max_size=4).map(tuple), max_leaves=10)
names = st.sampled_from(["parent", "base", "run", "env", "secrets", "files", "copy", "user", "new"])
keys = st.dictionaries(names, sexps, max_size=5)


def names_of(*keys: dict[str, Sexp]) -> set[str]:
    return {name for key in keys for name in key}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(keys, keys)
def test_the_differences_of_any_two_keys_are_single_lines(old: dict[str, Sexp], new: dict[str, Sexp]) -> None:
    words = diff.differences(old, new)
    assert all(line.isprintable() for line in words)
    assert diff.distance(old, new) >= 0
    assert diff.distance(old, old) == 0
    assert diff.summary(new).isprintable()
    for _, lines in diff.describe(new):
        assert all(line.isprintable() for line in lines)
    if all(old.get(name, ()) == new.get(name, ()) for name in names_of(old, new)):
        assert words == []
    else:
        assert words


def test_a_key_reads_back() -> None:
    assert fields(sexp.dumps((("format", "1"), ("run", ("a", "b"))))) == {"format": "1", "run": ("a", "b")}
