"""The language: what is accepted, the messages for what is not, and how specs are printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obuild import spec
from obuild.errors import SpecError
from obuild.spec import (
    Cache,
    Comment,
    Copy,
    Env,
    Op,
    Run,
    Secret,
    Shell,
    Stage,
    UnixUser,
    User,
    WindowsUser,
    Workdir,
    reformat,
)
from tests.support.manual import examples

HERE = Path(__file__).parents[1]
VECTORS = json.loads((HERE / "vectors" / "spec.json").read_text(encoding="utf-8"))
ACCEPTED = [case["spec"] for case in VECTORS if case["accepted"]]

budget = settings(max_examples=100, deadline=None, derandomize=True)


def accepts(text: str) -> bool:
    try:
        spec.parse(text)
    except SpecError:
        return False
    return True


def op(text: str) -> Op:
    """The one op of a spec."""
    return spec.parse(f"((from base)\n {text})").ops[0]


def error(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        spec.parse(text)
    return caught.value


def test_accepts_what_obuilder_accepts() -> None:
    wrong = [case["spec"] for case in VECTORS if accepts(case["spec"]) != case["accepted"]]
    assert not wrong, "\n\n".join(wrong)
    assert len(VECTORS) > 150


def test_every_error_has_a_position_and_a_hint() -> None:
    for case in VECTORS:
        if not case["accepted"]:
            caught = error(case["spec"])
            assert caught.line, case["spec"]
            assert caught.column, case["spec"]
            assert caught.hint, caught.message


def test_the_printed_spec_parses_to_the_same_stage() -> None:
    for text in ACCEPTED:
        stage = spec.parse(text)
        assert spec.parse(spec.format(stage)) == stage, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(run (shell true))", Run("true")),
        ('(run (shell "a\\nb") (network) (cache))', Run("a\nb")),
        ("(run (network host x) (shell a))", Run("a", network=("host", "x"))),
        (
            "(run (cache (c (target /c)) (d (buildkit_options ((a b) (c d))) (target /d))) (shell a))",
            Run("a", (Cache("c", "/c"), Cache("d", "/d", (("a", "b"), ("c", "d"))))),
        ),
        (
            "(run (secrets (s (target /s))) (shell a))",
            Run("a", secrets=(Secret("s", "/s"),)),
        ),
        ("(copy (src a b) (dst c/))", Copy(("a", "b"), "c/")),
        ("(copy (exclude x y) (dst c) (src) (from context))", Copy((), "c", ("x", "y"))),
        ("(env A 'b)", Env("A", "'b")),
        ("(workdir /a)", Workdir("/a")),
        ("(user (uid 0x1F) (gid -0b1_0))", User(UnixUser(31, -2))),
        ("(user (name me))", User(WindowsUser("me"))),
        ("(shell)", Shell(())),
        ("(shell /bin/sh -c)", Shell(("/bin/sh", "-c"))),
        ("(comment nil)", Comment("nil")),
        # A capitalized name is allowed, but then the fields need a list of their own.
        ("(Comment a)", Comment("a")),
        ("(Workdir a)", Workdir("a")),
        ("(Shell a b)", Shell(("a", "b"))),
        ("(Run ((shell a)))", Run("a")),
        ("(Copy ((src a) (dst b)))", Copy(("a",), "b")),
        ("(User ((uid 1) (gid 2)))", User(UnixUser(1, 2))),
        ("(Env (A B))", Env("A", "B")),
    ],
)
def test_ops(text: str, expected: Op) -> None:
    assert op(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-0", 0),
        ("+5", 5),
        ("007", 7),
        ("1_000_", 1000),
        ("0o17", 15),
        ("0u10", 10),
        ("0XfF", 255),
        ("0B11", 3),
        (str(2**62 - 1), 2**62 - 1),
        (str(-(2**62)), -(2**62)),
        (str(2**62), None),
        (str(-(2**62) - 1), None),
        (hex(2**62), -(2**62)),
        (hex(2**63 - 1), -1),
        (hex(2**63), None),
        ("0u" + str(2**63 - 1), -1),
        ("-" + hex(2**63 - 1), 1),
        ("0" * 5000 + "1", 1),
        ("1" * 5000, None),
        ("", None),
        ("_1", None),
        ("0x", None),
        ("0x_1", None),
        ("0b2", None),
        ("1.0", None),
        ("--1", None),
        (" 1", None),
        ("٣", None),
    ],
)
def test_numbers_are_read_as_ocaml_reads_them(text: str, value: int | None) -> None:
    source = f'((from b) (user (uid "{text}") (gid 0)))'
    assert accepts(source) == (value is not None)
    if value is not None:
        assert spec.parse(source).ops == (User(UnixUser(value, 0)),)


@pytest.mark.parametrize(
    "text",
    [
        "(Run (shell a))",
        "(Run ((shell a)) ())",
        "(Run x)",
        "(User (name a))",
        "(Env A B)",
        "(RUN (shell a))",
        "(run ((shell a)))",
        "(run (shell a) ())",
        "(run (shell a) (shell a))",
        "(run (cache (c (target /c))) (cache) (shell a))",
        "(run (cache (c (id d) (target /c))) (shell a))",
        "(run (cache ((c) (target /c))) (shell a))",
        "(run (cache (c (target /c) (buildkit_options (a b)))) (shell a))",
        "(run (cache (c (target /c) (buildkit_options))) (shell a))",
        "(run (cache (c (target /c) (buildkit_options x))) (shell a))",
        "(run (secrets (s)) (shell a))",
        "(run (network (host)) (shell a))",
        "(copy (src a))",
        "(copy (dst a))",
        "(copy (src a) (dst))",
        "(copy (src a) (dst b) (from))",
        "(copy (src a) (dst b) (from build x))",
        "(copy (src a) (dst b) (from Context))",
        "(user)",
        "(user (uid 1))",
        "(user (uid 1) (gid 1) (name a))",
        "(user (gid 1) (uid 1))",
        "(user (name (a)))",
        "(env (A) b)",
        "(comment)",
        "(comment a b)",
        "(shell (a))",
        "comment",
        "()",
        "((run (shell a)))",
    ],
)
def test_refuses_what_obuilder_refuses(text: str) -> None:
    assert not accepts(f"((from base) {text})")


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "hint"),
    [
        ("", 0, 0, "the text is empty or has only comments", "((from debian-12)"),
        ("()", 1, 1, "the spec is an empty list", "a spec looks like"),
        ("x", 1, 1, 'the spec is the word "x", not a list', "a spec looks like"),
        (
            "(from base)",
            1,
            2,
            'a spec is a list of lists, but this one starts with the word "from"',
            "put one more pair of parentheses around the whole",
        ),
        (
            "(from base)\n(run (shell a))",
            2,
            1,
            "a second s-expression where the text should end",
            "put parentheses around the whole",
        ),
        (
            "((build a ((from b))))",
            1,
            1,
            "(from …) is missing",
            "after the builds, name the base image, as in (from debian-12)",
        ),
        (
            "((run (shell a))\n (from b))",
            1,
            2,
            "(run(shell a)) comes before (from …)",
            "begin with (from debian-12); only (build …) may come before it",
        ),
        ("((from))", 1, 2, "from takes one name, but has none", "write (from debian-12)"),
        (
            "((from a b))",
            1,
            2,
            "from takes one name, but has 2",
            "write (from debian-12); put a word with spaces in quotes",
        ),
        ("((build a b) (from c))", 1, 11, "a build takes a list, not b", "write (build NAME"),
        ("((build ((from c))) (from c))", 1, 2, "build takes a name and one list", "write (build NAME"),
        ("((from a)\n (from b))", 2, 2, "a second (from …)", "a stage has one base"),
        (
            "((from a)\n (build b ((from c))))",
            2,
            2,
            "build comes after (from …)",
            "move every (build …) before (from …)",
        ),
        ("((from a)\n run)", 2, 2, "expected an op, but found run", "write one like (run (shell"),
        (
            "((from a)\n ((run (shell x))))",
            2,
            2,
            "expected an op, but found ((run(shell x)))",
            "write one like",
        ),
        ("((from a) (rum (shell x)))", 1, 11, 'unknown op "rum"', 'did you mean "run"?'),
        ("((from a) (RUN (shell x)))", 1, 11, 'unknown op "RUN"', 'did you mean "run"?'),
        ("((from a) (Run (shell x)))", 1, 11, 'unknown op "Run"', 'did you mean "run"?'),
        (
            "((from a) (frob x))",
            1,
            11,
            'unknown op "frob"',
            "the ops are run, copy, env, workdir, user, shell and comment",
        ),
        (
            "((from a) (network host))",
            1,
            11,
            'unknown op "network"',
            "network is a field of run: write it inside (run …)",
        ),
        (
            "((from a) (run make all))",
            1,
            16,
            "run: expected a field, but found make",
            'run takes shell, cache, network and secrets, as in (run (shell "make install"))',
        ),
        ("((from a) (run (shel x)))", 1, 16, 'run: unknown field "shel"', 'did you mean "shell"?'),
        (
            "((from a) (run (foo x)))",
            1,
            16,
            'run: unknown field "foo"',
            'run takes shell, cache, network and secrets, as in (run (shell "make install"))',
        ),
        ("((from a) (run))", 1, 11, "run: shell is missing", 'add (shell "make install")'),
        (
            "((from a) (run (shell make all)))",
            1,
            16,
            "run: shell takes one value, not 2",
            "put a value with spaces in quotes",
        ),
        (
            "((from a)\n (run (shell x)\n  (shell y)))",
            3,
            3,
            "run: shell is given twice",
            "the first is at line 2, column 7; keep one of them",
        ),
        (
            "((from a) (run (secrets tok) (shell x)))",
            1,
            25,
            'secrets: "tok" has no target',
            "write (secrets (tok (target /run/secrets/tok)))",
        ),
        (
            '((from a) (run (cache ("é b")) (shell x)))',
            1,
            23,
            'cache: "é b" has no target',
            r'write (cache ("\195\169 b" (target /path)))',
        ),
        (
            "((from a) (run (cache ()) (shell x)))",
            1,
            23,
            "cache: expected a name, but found ()",
            "write (cache (NAME (target /path)))",
        ),
        (
            "((from a) (copy (src (b)) (dst c)))",
            1,
            22,
            "copy: src: expected a word, but found the list (b)",
            "par",
        ),
        ("((from a) (copy (src b)))", 1, 11, "copy: dst is missing", "add (dst /src/)"),
        (
            "((from a) (copy (from dev) (src b) (dst c)))",
            1,
            23,
            "copy: cannot copy from dev",
            "write (from (build dev)), or leave it out to copy from the context",
        ),
        (
            "((from a)\n (copy (from (build dev)) (src b) (dst c)))",
            2,
            2,
            'copy: there is no build "dev" before this stage',
            "put (build dev (…)) before (from a)",
        ),
        (
            "((build tools ((from b))) (from a)\n (copy (from (build tool)) (src b) (dst c)))",
            2,
            2,
            'copy: there is no build "tool" before this stage',
            'did you mean "tools"?',
        ),
        (
            "((build x ((from b))) (build y ((from b))) (from a)\n(copy (from (build dev)) (src b) (dst c)))",
            2,
            1,
            'copy: there is no build "dev" before this stage',
            'it can copy from "x" and "y"',
        ),
        (
            "((from a) (env A b c))",
            1,
            11,
            "env takes a name and a value, but has 3",
            "write (env NAME value); put",
        ),
        ("((from a) (workdir))", 1, 11, "workdir takes one path, but has none", "write (workdir /src)"),
        (
            "((from a) (user opam))",
            1,
            11,
            "user takes a uid and a gid, or a name",
            "write (user (uid 1000) (gid 1000)), in this order; for Windows, (user (name NAME))",
        ),
        (
            "((from a) (user (uid me) (gid 0)))",
            1,
            22,
            'user: uid takes a whole number, not "me"',
            "write (user (uid 1000) (gid 1000))",
        ),
    ],
)
def test_messages(text: str, line: int, column: int, message: str, hint: str) -> None:
    caught = error(text)
    assert (caught.line, caught.column, caught.message) == (line, column, message)
    assert hint in caught.hint


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("((build a ((from x))) (build b ((from x) {a})) (from x))", True),
        ("((build b ((from x) {a})) (build a ((from x))) (from x))", False),
        ("((build a ((from x) {a})) (from x))", False),
        ("((build a ((from x))) (build a ((from x) {a})) (from x) {a})", True),
        ("((build a ((from x))) (build b ((build c ((from x) {a})) (from x))) (from x))", True),
        ("((build b ((build a ((from x))) (from x) {a})) (from x))", True),
        ("((build b ((build a ((from x))) (from x))) (from x) {a})", False),
    ],
)
def test_scope_of_builds(text: str, accepted: bool) -> None:
    assert accepts(text.format(a="(copy (from (build a)) (src x) (dst y))")) == accepted


def test_check_looks_at_a_stage_made_by_hand() -> None:
    copy = Copy(("a",), "b", origin="dev")
    spec.check(Stage("x", (copy,), (("dev", Stage("y")),)))
    with pytest.raises(SpecError, match='no build "dev"'):
        spec.check(Stage("x", (copy,)))


def test_builds_nested_too_deeply_are_refused() -> None:
    deep = 100_000
    text = "((build a " * deep + "((from b))" + ")(from b))" * deep
    assert error(text).message == "the builds are nested too deeply"


def test_ops_have_positions_that_do_not_count_in_comparisons() -> None:
    first, second = spec.parse("((from base)\n (env A b)\n   (env A b))").ops
    assert (first.line, first.column) == (2, 2)
    assert (second.line, second.column) == (3, 4)
    assert first == second == Env("A", "b")
    assert hash(first) == hash(second)
    assert repr(first) == "Env(name='A', value='b')"


def test_the_layout_is_obuilders() -> None:
    text = """\
((build tools
        ((from base)
         (run (shell "make tools"))))
 (from base)
 (comment "two words")
 (run (cache (a (target /data)) (b (target /srv)))
      (network host)
      (secrets (a (target /run/secrets/a)))
      (shell "a very long command which does not fit in a line of eighty characters, ever"))
 (copy (src a b) (dst c) (exclude .git _build))
 (copy (from (build tools))
       (src /home/opam/src/_build/install/default/bin/tools)
       (dst /usr/local/bin/))
 (run (shell  "a\\
             \\n  b\\
             \\n"))
 (env E "\\195\\169")
 (shell)
 (user (uid 1) (gid 2))
 (user (name me))
)"""
    assert spec.format(spec.parse(text)) == text


def test_a_copy_that_fills_the_line_is_broken() -> None:
    fits = Copy(("a" * 59,), "b")
    assert len(spec.format_op(fits)) == 80
    assert "\n" not in spec.format_op(fits)
    assert spec.format_op(fits, column=1).splitlines()[1] == " " * 7 + "(dst b))"


def test_format_op_starts_at_the_given_column() -> None:
    run = Run("a\nb", network=("host",))
    heading = "WORKDIR: "
    assert heading + spec.format_op(run, column=len(heading)) == (
        'WORKDIR: (run (network host)\n              (shell  "a\\\n                     \\nb"))'
    )
    assert spec.format_op(Run("true")) == "(run (shell true))"


words = st.text(alphabet="ab/. \n\\\"é'#|;()", max_size=6)
many = st.lists(words, max_size=3).map(tuple)
options = st.lists(st.tuples(words, words), max_size=2).map(tuple)
ops = st.one_of(
    st.builds(
        Run,
        words,
        st.lists(st.builds(Cache, words, words, options), max_size=2).map(tuple),
        many,
        st.lists(st.builds(Secret, words, words, options), max_size=2).map(tuple),
    ),
    st.builds(Copy, many, words, many, st.sampled_from([None, "dev"])),
    st.builds(Env, words, words),
    st.builds(Workdir, words),
    st.builds(User, st.builds(UnixUser, st.integers(-9, 9999), st.integers(-9, 9999))),
    st.builds(User, st.builds(WindowsUser, words)),
    st.builds(Shell, many),
    st.builds(Comment, words),
)
stages = st.builds(
    Stage,
    words,
    st.lists(ops, max_size=4).map(tuple),
    st.builds(lambda base: (("dev", Stage(base)),), words),
)


@budget
@given(stages)
def test_any_stage_parses_back(stage: Stage) -> None:
    assert spec.parse(spec.format(stage)) == stage


@budget
@given(st.text(alphabet="() abfromrunshellcopysrcdstenv1", max_size=60))
def test_any_text_is_accepted_or_refused(text: str) -> None:
    accepts(f"((from a) {text})")


def test_the_examples_in_the_manual_are_specs() -> None:
    assert len(examples()) > 8
    for each in examples():
        spec.parse(each.spec)


def test_a_byte_order_mark_is_not_part_of_a_spec() -> None:
    plain = '((from b) (run (shell "\ufeffx")))'
    marked = "\ufeff" + plain
    assert spec.parse(marked) == spec.parse(marked.encode()) == spec.parse(plain)
    (run,) = spec.parse(marked).ops
    assert (run.line, run.column) == (1, 11)
    assert reformat.tidy(marked.encode()) == reformat.tidy(plain.encode())
    with pytest.raises(SpecError):
        spec.parse("\ufeff" + marked)
