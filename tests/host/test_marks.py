"""Marks: where a command's output ends in a stream, and its exit status."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from obuild.host.marks import MarkReader, new_mark

MARK = b"obuild-12345 "


def read(pieces: Sequence[bytes]) -> tuple[bytes, int | None]:
    """The output and the status that a reader finds in a stream that arrives in pieces."""
    passed = bytearray()
    reader = MarkReader(MARK, passed.extend)
    for piece in pieces:
        reader.feed(piece)
    return bytes(passed), reader.status


@pytest.mark.parametrize(
    ("stream", "output", "status"),
    [
        (MARK + b"0\n", b"", 0),
        (b"text\n" + MARK + b"3\n", b"text\n", 3),
        (b"no newline" + MARK + b"255\n", b"no newline", 255),
        (b"obuild-obuild-12345" + MARK + b"0\n", b"obuild-obuild-12345", 0),
        (b"\0\xff\n" * 50 + MARK + b"1\nlater", b"\0\xff\n" * 50, 1),
        (MARK + b"garbage\n", b"", 255),
        (MARK + b"-1\n", b"", 255),
    ],
)
def test_everything_before_the_mark_is_output_however_it_arrives(
    stream: bytes, output: bytes, status: int
) -> None:
    end = stream.index(b"\n", stream.index(MARK)) + 1
    for cut in range(end):
        assert read([stream[:cut], stream[cut:]]) == (output, status)
    assert read([stream[at : at + 1] for at in range(end)]) == (output, status)


def test_bytes_after_the_mark_are_dropped() -> None:
    assert read([b"text" + MARK + b"3\n", b"later", MARK + b"4\n"]) == (b"text", 3)


def test_output_is_passed_on_as_early_as_is_safe() -> None:
    assert read([b"hello", b" world obuild-1"]) == (b"hello world ", None)


def test_a_mark_without_an_end_does_not_hold_the_stream_up() -> None:
    assert read([MARK + b"not a number"])[1] == 255


def test_flush_passes_on_what_is_held_back() -> None:
    passed = bytearray()
    reader = MarkReader(MARK, passed.extend)
    reader.feed(b"text obuild-")
    reader.flush()
    assert bytes(passed) == b"text obuild-"


def test_each_mark_is_one_unique_word() -> None:
    marks = {new_mark() for _ in range(100)}
    assert len(marks) == 100
    assert all(mark.removeprefix("obuild-").isalnum() for mark in marks)
