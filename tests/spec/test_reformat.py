"""Reformatting specs: the layout, the comments, and what holds for every spec."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obuild import spec
from obuild.errors import SpecError, UsageError
from obuild.spec import reformat, sexp
from obuild.spec.annotate import annotate
from tests.support.manual import example

HERE = Path(__file__).parents[1]
VECTORS = json.loads((HERE / "vectors" / "spec.json").read_text(encoding="utf-8"))
ACCEPTED = [case["spec"] for case in VECTORS if case["accepted"]]

budget = settings(max_examples=300, deadline=None, derandomize=True)


def tidy(text: str) -> str:
    return reformat.tidy(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def test_a_spec_without_comments_is_printed_as_by_obuilder() -> None:
    wrong = [
        text
        for text in ACCEPTED
        if not annotate(text).remarks and tidy(text) != spec.format(spec.parse(text)) + "\n"
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("((from a))", "((from a)\n)\n"),
        ("((from a)(run(shell b)))", "((from a)\n (run (shell b))\n)\n"),
        # before, on the line of, and after ops
        (
            "; head\n((from a) ; one\n\n ; two\n (workdir /b) ; three\n ; four\n) ; five\n; six",
            "; head\n((from a) ; one\n ; two\n (workdir /b) ; three\n ; four\n) ; five\n; six\n",
        ),
        ("((from a) #;(run (shell b)) (workdir /c))", "((from a) #;(run (shell b))\n (workdir /c)\n)\n"),
        ("((from a)\n #;(run (shell b)) ; no\n (env c d))", "((from a)\n #;(run (shell b)) ; no\n (env c d)\n)\n"),
        ("((from a) #| b\n   c |#\n (env c d))", "((from a) #| b\n   c |#\n (env c d)\n)\n"),
        ("((from a) #| b\r\n c |# ; d\r\n)", "((from a) #| b\n c |# ; d\n)\n"),
        # comments before the first op go before the parenthesis
        ("( ; head\n (from a))", "; head\n((from a)\n)\n"),
        # in an op: at its fields, if it has any
        (
            "((from a)\n (run ; why\n  (network host) ; open\n  ; what\n  (shell b)))",
            "((from a)\n (run ; why\n      (network host) ; open\n      ; what\n      (shell b))\n)\n",
        ),
        ("((from a) (run (shell b) ; c\n))", "((from a)\n (run (shell b)) ; c\n)\n"),
        ("((from a) (run (shell b) ; c\n) ; d\n)", "((from a)\n ; c\n (run (shell b)) ; d\n)\n"),
        ("((from a) (run (shell b)\n ; c\n))", "((from a)\n ; c\n (run (shell b))\n)\n"),
        ("((from a) (run (shell ; c\n b)))", "((from a)\n (run ; c\n      (shell b))\n)\n"),
        # comments move with their fields
        (
            "((from a) (run (shell b) ; c\n ; d\n (network host)))",
            "((from a)\n (run ; d\n      (network host)\n      (shell b)) ; c\n)\n",
        ),
        ("((from a) (run (network) ; c\n (shell b)))", "((from a)\n ; c\n (run (shell b))\n)\n"),
        (
            "((from a) (copy (src b) ; c\n (dst d)))",
            "((from a)\n (copy (src b) ; c\n       (dst d))\n)\n",
        ),
        ("((from a) (Run ((shell b) ; c\n)))", "((from a)\n (run (shell b)) ; c\n)\n"),
        ("((from a) (Run ((shell b) #| c |#) ; d\n))", "((from a)\n (run (shell b)) #| c |# ; d\n)\n"),
        ("((from a) (env ; c\n d e))", "((from a)\n ; c\n (env d e)\n)\n"),
        # the closing parentheses of a build that ends in a comment go on a line of their own
        (
            "((build b ; c\n ((from d) ; e\n)) (from a))",
            "((build b\n        ; c\n        ((from d) ; e\n        ))\n (from a)\n)\n",
        ),
        (
            "((build b (; c\n (from d)\n ; e\n) ; f\n) (from a))",
            "((build b\n        ; c\n        ((from d)\n         ; e\n         ; f\n        ))\n (from a)\n)\n",
        ),
    ],
)
def test_comments_stay_in_their_place(text: str, expected: str) -> None:
    assert tidy(text) == expected
    assert tidy(expected) == expected


def test_the_example_in_the_manual_is_right() -> None:
    shown = example("One layout").spec
    assert tidy(shown) == shown


def test_an_invalid_spec_is_refused_with_the_position() -> None:
    with pytest.raises(SpecError) as caught:
        tidy("((from a)\n (rnu (shell b)))")
    assert (caught.value.line, caught.value.column) == (2, 2)


def nested(deep: int) -> str:
    return "((build x " * deep + "((from a))" + ") (from a))" * deep


def test_nested_builds_are_printed() -> None:
    assert tidy(nested(100)).count("(build x\n") == 100


@pytest.mark.parametrize("deep", [310, 400, 480, 2000])
def test_deep_nesting_is_no_problem(deep: int) -> None:
    with contextlib.suppress(SpecError):
        tidy(nested(deep))


# -- any spec, with comments anywhere

words = st.sampled_from(["a", "b c", 'q"', "l1\nl2", "x" * 50, "é", ""])
atoms = words.map(sexp.quote)
runs = st.lists(
    st.sampled_from(["(network host)", "(network)", "(cache (c (target /c)))", "(secrets)"]),
    unique_by=lambda text: text[:4],
)


def listed(*parts: str) -> str:
    return f"( {' '.join(parts)} )"


ops = st.one_of(
    st.tuples(runs, atoms, st.booleans()).map(
        lambda run: (
            listed("run", *run[0], f"(shell {run[1]})")
            if run[2]
            else f"(run (shell {run[1]}) {' '.join(run[0])} )"
        )
    ),
    st.tuples(atoms, atoms).map(lambda pair: f"(env {pair[0]} {pair[1]})"),
    st.tuples(st.lists(atoms, max_size=3), atoms).map(
        lambda copy: f"(copy (dst {copy[1]}) (src {' '.join(copy[0])}))"
    ),
    st.just("(copy (from context) (src a) (dst b))"),
    st.just("(Run ((shell x) (network host)))"),
    st.just("(Env (a b))"),
    st.just("(user (uid 1) (gid 2))"),
)
stages = st.recursive(
    st.lists(ops, max_size=4).map(lambda some: f"((from a) {' '.join(some)} )"),
    lambda inner: st.tuples(st.lists(inner, max_size=2), st.lists(ops, max_size=3)).map(
        lambda both: f"({' '.join(f'(build b {child})' for child in both[0])} (from a) {' '.join(both[1])} )"
    ),
    max_leaves=4,
)
blanks = st.sampled_from([" ", "\n", "\n\n  ", "\r\n"])
remarks = st.sampled_from(
    [
        "; c\n",
        ";;\r\n",
        "#| d |#",
        "#| d\n ; e |#",
        "#;(f ; g\n h)",
        "#; i ",
        '#;"j"',
        "#;#;k l ",
        "#| \r\n |#",
        "; m  \n",
    ]
)
trivia = st.lists(st.one_of(blanks, remarks), max_size=3).map("".join)


@st.composite
def commented(draw: st.DrawFn) -> str:
    """A spec with comments between any two of its words and parentheses."""
    text = draw(stages)
    node = annotate(text)
    cuts = sorted({0, len(text), *(at for span in node._spans.values() for at in span)})
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    return "".join(f" {draw(trivia)} {piece}" for piece in pieces) + f" {draw(trivia)}\n"


def said(text: str) -> list[str]:
    """The text of each comment as printed."""
    return sorted(remark.text.replace("\r\n", "\n") for remark in annotate(text).remarks)


@budget
@given(commented())
def test_the_output_parses_to_the_same_stage_and_is_stable(text: str) -> None:
    done = tidy(text)
    assert spec.parse(done) == spec.parse(text)
    assert said(done) == said(text)
    assert tidy(done) == done


def test_a_file_is_rewritten_with_its_mode_and_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    reformat.rewrite(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spec").write_text("old")

    def fail(fd: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        reformat.rewrite(tmp_path / "spec", b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("spec", "old")]


def test_a_named_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="is not a regular file"):
        reformat.rewrite(tmp_path / "fifo", b"new")
    assert (tmp_path / "fifo").is_fifo()
