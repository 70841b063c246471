"""A step's output shows no secret, however it arrives."""

from __future__ import annotations

import pytest

from obuild.host.mask import Mask, overlap


def masked(secrets: list[bytes], pieces: list[bytes]) -> bytes:
    out = bytearray()
    with Mask(secrets, out.extend) as mask:
        for piece in pieces:
            mask(piece)
    return bytes(out)


@pytest.mark.parametrize(
    ("secrets", "text", "shown"),
    [
        ([b"hunter22"], b"it is hunter22!\n", b"it is ***!\n"),
        ([b"hunter22\n"], b"hunter22", b"***"),
        ([b"line one\nline two\n"], b"line two, line one", b"***, ***"),
        ([b"abcd", b"abcdef"], b"abcdef abcd", b"*** ***"),
        ([b"first line\nab\n"], b"first line\nab", b"***"),
        ([b"a.*b"], b"a.*b axxb", b"*** axxb"),
        ([b"\xff\x00\xfe\x01"], b"<\xff\x00\xfe\x01>", b"<***>"),
        ([b"hunter22"], b"hunter2", b"hunter2"),
        ([b"abc", b"", b"\n"], b"abc\n", b"abc\n"),
        ([], b"anything", b"anything"),
    ],
)
def test_a_secret_is_masked_wherever_the_stream_is_cut(secrets: list[bytes], text: bytes, shown: bytes) -> None:
    for cut in range(len(text) + 1):
        assert masked(secrets, [text[:cut], text[cut:]]) == shown
    assert masked(secrets, [text[at : at + 1] for at in range(len(text))]) == shown


def test_bytes_that_cannot_begin_a_secret_are_passed_on_at_once() -> None:
    out: list[bytes] = []
    with Mask([b"hunter22"], out.append) as mask:
        mask(b"hello")
        assert out == [b"hello"]


@pytest.mark.parametrize(
    ("data", "word", "length"),
    [(b"", b"mark", 0), (b"xma", b"mark", 2), (b"mark", b"mark", 0), (b"mam", b"mark", 1), (b"aaaa", b"aaab", 3)],
)
def test_the_overlap_is_the_longest_beginning_of_the_word(data: bytes, word: bytes, length: int) -> None:
    assert overlap(data, word) == length
