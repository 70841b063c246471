"""Text for a terminal's lines: nothing in it controls the terminal."""

from __future__ import annotations

import pytest

from obuild.host import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("é 漢", "é 漢"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[10;10Hmoved", "moved"),
        ("\x9b2Jone character", "one character"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x1bPq payload\x1b\\after", "after"),
        ("\x1b]0;never ended", ""),
        ("\x1b(0set\x1bc", "set"),
        ("at the end \x1b[", "at the end "),
        ("at the end \x1b", "at the end "),
        ("10%\r20%\r30%", "30%"),
        ("whole\r", "whole"),
        ("ab\b\bxy", "xy"),
        ("\b\bx", "x"),
        ("a\tb", "a       b"),
        ("bell\x07 null\0", "bell\ufffd null\ufffd"),
        ("right-to-left \u202e", "right-to-left \ufffd"),
        ("no\xa0break", "no break"),
        ("byte \udcff", "byte \ufffd"),
    ],
)
def test_a_line_is_what_a_terminal_would_show_in_the_end(text: str, shown: str) -> None:
    assert printable.line(text) == shown
    assert shown.isprintable()


def test_output_is_split_at_newlines_alone() -> None:
    assert printable.lines(b"a\nb\x0bc\r\n\xff") == ["a", "b\ufffdc", "\ufffd"]
    assert printable.lines(b"a\n") == ["a"]
    assert printable.lines(b"") == []


def test_a_line_with_many_backspaces_takes_no_time() -> None:
    assert printable.line("ab\b" * 50_000 + "\b" * 50_000) == ""
