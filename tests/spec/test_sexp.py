"""S-expressions: sexplib's results for many texts, the messages, and what holds for every text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obuild.errors import SpecError
from obuild.spec import sexp
from obuild.spec.sexp import Atom, List, Sexp

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "sexp.json").read_text(encoding="utf-8"))

budget = settings(max_examples=200, deadline=None, derandomize=True)

#: Strings as `loads` returns them: any bytes, decoded as UTF-8 where they are that.
atoms = st.one_of(
    st.text(alphabet="ab07#|;\"\\() \n\r\t'[]x", max_size=8),
    st.text(max_size=8),
    st.binary(max_size=8).map(lambda data: data.decode("utf-8", "surrogateescape")),
)
sexps = st.recursive(atoms, lambda items: st.lists(items, max_size=5).map(tuple), max_leaves=20)


def mach(text: str | bytes) -> str | None:
    """The text in sexplib's machine form, or None if it is refused."""
    try:
        return sexp.dumps(sexp.loads(text))
    except SpecError:
        return None


def error(text: str | bytes) -> SpecError:
    with pytest.raises(SpecError) as caught:
        sexp.loads(text)
    return caught.value


def test_results_are_sexplibs() -> None:
    wrong = [
        f"{case['input']!r}: got {got!r}, sexplib says {case.get('mach') or case.get('error')!r}"
        for case in VECTORS
        if (got := mach(case["input"])) != case.get("mach")
    ]
    assert not wrong, "\n".join(wrong)
    assert len(VECTORS) > 400


def test_bytes_and_text_give_the_same() -> None:
    wrong = [case["input"] for case in VECTORS if mach(case["input"].encode()) != case.get("mach")]
    assert wrong == []


# Rules that follow from sexplib's automaton and that the vectors may miss.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("007", "007"),
        ("1.10", "1.10"),
        ("nil", "nil"),
        ("'x", "'x"),
        (r"C:\Users\opam", r'"C:\\Users\\opam"'),
        ("a\vb", r'"a\011b"'),  # a vertical tab is not a blank
        ("a\fb", None),
        ("[a {b", None),
        ("([a] {b})", "([a] {b})"),
        ("##", "##"),
        ("##|", None),
        ("||#", None),
        ("#", "#"),
        ("|", "|"),
        ("(a\r\n b)", "(a b)"),
        ("(a)\r", None),
        ("(a) ; c\r\n", "(a)"),
        ("(a) ; c\rd\n", None),
        ("(a) #;b\n", "(a)"),
        ("(a) #;b", None),  # sexplib does not see where this b ends
        ("(a) #;(b)", "(a)"),
        ('(a) #;"b"', "(a)"),
        ("(a #;)", None),
        ("(#;#;a b c)", "(c)"),
        ("(#;(a #;b c) d)", "(d)"),
        ("#| |# |#", None),
        ("#|#|#", None),
        ("#||#a", "a"),
        ("#| #| |#| |# b", "b"),
        ('#| "|#" |# a', "a"),
        ('#| " |# a', None),
        (r'#| "\999" |# a', None),
        (r'"\q\ \'"', '"\\\\q\\\\ \'"'),
        (r'"\256"', None),
        (r'"\12"', None),
        (r'"\xZZ"', None),
        (r'"\x4F\079"', "OO"),
        ('"a\\\n   \tb"', "ab"),
        ('"a\\\r\n  b"', "ab"),
        ('"a\\\rb"', r'"a\rb"'),
        ('"a\rb\n"', r'"a\rb\n"'),
        (r'"\195\169"', r'"\195\169"'),
        ("é", r'"\195\169"'),
        (b"\xff", r'"\255"'),
        ("\ufeff(a)", None),
        ("\0", r'"\000"'),
        ("", None),
        ("()", "()"),
        ('""', '""'),
    ],
)
def test_rules(text: str | bytes, expected: str | None) -> None:
    assert mach(text) == expected


def test_an_escape_gives_the_same_string_as_the_letter() -> None:
    assert sexp.loads(r'"\195\169"') == sexp.loads("é") == sexp.loads(b"\xc3\xa9") == "é"


def test_every_byte_survives() -> None:
    data = bytes(range(256)) + "é".encode()
    atom = data.decode("utf-8", "surrogateescape")
    assert sexp.loads(sexp.dumps(atom)) == atom
    assert atom.encode("utf-8", "surrogateescape") == data


def test_parse_gives_positions() -> None:
    node = sexp.parse('; one\n(a\n  "b\nc" #| x\n|# (d))')
    assert node == List(
        (Atom("a", 2, 2), Atom("b\nc", 3, 3), List((Atom("d", 5, 5),), 5, 4)),
        2,
        1,
    )


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "hint"),
    [
        ("", 0, 0, "the text is empty or has only comments", "such as ((from"),
        ("; nothing\n", 0, 0, "the text is empty or has only comments", "such as ((from"),
        ("(a\n (b)", 1, 1, "this ( is never closed", "add a ) where its list ends"),
        ("((a\n (b", 2, 2, "this ( is never closed", "3 closing parentheses are missing"),
        ("((a)\n (b (c)\n (d))\n", 1, 1, "this ( is never closed", "line 2, column 2 may lack its )"),
        ("(a))", 1, 4, "this ) closes nothing", "the first ends at line 1, column 3"),
        (") a", 1, 1, "this ) closes nothing", "remove it"),
        ("((a)\n (b)))\n(c)", 2, 6, "this ) closes nothing", "line 2, column 5"),
        ("(a)\n(b)", 2, 1, "a second s-expression where the text should end", "line 1, column 3; look"),
        ('(a\n "b)', 2, 2, "this quoted string is never closed", 'end it with a "'),
        ("(a\n #| b)", 2, 2, "this #| comment is never closed", "end it with |#"),
        ("(a #;)", 1, 4, "#; with nothing after it to comment out", "remove it"),
        ("(a)\n#;b", 2, 3, "the last word is commented out by #;", "end the file with a newline"),
        ("(a b#|c)", 1, 5, '"#|" in the middle of a word', "put the word in quotes"),
        ('(a\n "x\\400")', 2, 4, "\\400 is not an escape", "up to 255"),
        ("(a\rb)", 1, 3, "a carriage return without a newline", "end lines with LF or CR LF"),
        ("(a \ud800)", 0, 0, "character 4 is half of a surrogate pair, not text", ""),
    ],
)
def test_messages(text: str, line: int, column: int, message: str, hint: str) -> None:
    caught = error(text)
    assert (caught.line, caught.column, caught.message) == (line, column, message)
    assert hint in caught.hint


@pytest.mark.parametrize(
    "style", ["((build b\n ((from c)))\n (from a)\n (run (x)\n", "((from a)\n(run (x)\n(b))\n"]
)
def test_no_list_is_suspected_if_the_indentation_says_nothing(style: str) -> None:
    assert "may lack" not in error(style).hint


def test_deep_nesting_is_no_problem() -> None:
    deep = 100_000
    text = "(" * deep + ")" * deep
    assert sexp.dumps(sexp.loads(text)) == text
    assert error("(" * deep).column == deep
    assert error("#|" * deep).column == 1
    assert mach("#;(" * deep + ")" * deep + "a") == "a"
    assert error("(" + "(" * deep + ")" * deep).column == 1


@budget
@given(sexps)
def test_reads_what_it_writes(value: Sexp) -> None:
    assert sexp.loads(sexp.dumps(value)) == value


@budget
@given(sexps)
def test_writes_one_line_of_ascii(value: Sexp) -> None:
    assert all(" " <= char <= "~" for char in sexp.dumps(value))


@budget
@given(st.one_of(st.text(max_size=30), st.binary(max_size=30), st.text(alphabet='()#|;"\\a0x \n\r', max_size=30)))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    written = mach(text)
    assert written is None or mach(written) == written
