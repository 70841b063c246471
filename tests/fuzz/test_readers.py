"""No input makes a reader fall over: errors are ObuildErrors, and nothing is slow because it is deep or long."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from obuild import spec
from obuild.errors import SpecError
from tests.fuzz.targets import TARGETS, TOKENS, resealed, tried

budget = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def mutated(corpus: list[bytes]) -> st.SearchStrategy[bytes]:
    """An input of the corpus with a few places replaced, by something that is likely to do harm or by anything."""
    piece = st.sampled_from(TOKENS) | st.binary(max_size=8)
    edit = st.tuples(st.integers(0, 3000), st.integers(0, 40), piece)

    def apply(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for at, length, new in edits:
            at %= len(data) + 1
            data = data[:at] + new + data[at + length :]
        return data

    return st.builds(apply, st.sampled_from(corpus), st.lists(edit, min_size=1, max_size=4))


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused(name: str) -> None:
    @budget
    @given(st.lists(st.sampled_from(TOKENS) | st.binary(max_size=20), max_size=12).map(b"".join))
    def check(data: bytes) -> None:
        tried(name, data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_anything_near_to_a_good_input_is_read_or_refused(name: str) -> None:
    @budget
    @given(mutated(TARGETS[name][1]))
    def check(data: bytes) -> None:
        tried(name, data)
        if name == "archives":
            tried(name, resealed(data))

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_taken(name: str) -> None:
    assert any(tried(name, data) for data in TARGETS[name][1])


DEEP, LONG = 100_000, 10_000


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("specs", b"(" * DEEP),
        ("specs", b")" * DEEP),
        ("specs", b"(" * DEEP + b")" * DEEP),
        ("atoms", b"(" * DEEP + b")" * DEEP),
        ("specs", b"((from a) (run (shell " + b"(" * DEEP + b")" * DEEP + b")))"),
        ("specs", b"((from a) (shell " + b"a " * LONG + b"))"),
        ("specs", b"((from a) #;" + b"(" * DEEP + b")" * DEEP + b")"),
        ("specs", b"((from a) " + b"#;(" * LONG + b")" * LONG + b")"),
        ("specs", b"((from a) " + b"#;" * LONG + b"a " * LONG + b")"),
        ("specs", b"((from a) " + b"#||#" * LONG + b")"),
        ("specs", b"#|" * DEEP + b"|#" * DEEP + b"((from a))"),
        ("specs", b"#|" * DEEP),
        ("specs", b'((from "' + b"\\x41" * DEEP + b'"))'),
        ("specs", b'((from "' + b"\\" * (2 * DEEP) + b'"))'),
        ("specs", b"((from " + b"\\" * DEEP + b"))"),
        ("specs", b"((from " + b"\xff" * DEEP + b"))"),
        ("specs", b"((from a) (user (uid " + b"1" * DEEP + b") (gid 0)))"),
        ("specs", b"((build a " * LONG + b"((from a))" + b") (from a))" * LONG),
        ("keys", b"((format 1) (run " + b"(" * DEEP + b")" * DEEP + b"))"),
        ("keys", b"((run a b) (x " + b"(a" * LONG + b")" * LONG + b"))"),
        ("keys", b"((files " + b"(file a 1 b)" * LONG + b"))"),
        ("keys", b'((run (sh "' + b"a" * DEEP + b'")))'),
        ("cards", b"a = " + b"[" * DEEP),
        ("cards", b"a = " + b"1" * LONG),
        ("cards", b'memory = "' + b"9" * LONG + b'"'),
        ("recipes", b"a = " + b"{a=" * DEEP),
        ("recipes", b"a = " + b"1" * LONG),
        ("memos", b'{"a":' * DEEP),
        ("memos", b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"),
        ("marks", b"obuild-1 " + b"1" * DEEP + b"\n"),
    ],
    ids=range(30),
)
def test_deep_and_long_inputs_are_read_or_refused(name: str, data: bytes) -> None:
    tried(name, data)


def nested(depth: int) -> bytes:
    return b"((build a\n" * depth + b"((from a))" + b") (from a))" * depth


def test_builds_inside_builds_end_somewhere_and_that_is_far_from_where_any_reader_would() -> None:
    assert tried("specs", nested(100))
    with pytest.raises(SpecError, match="nested too deeply") as caught:
        spec.parse(nested(101))
    assert caught.value.line == 102
