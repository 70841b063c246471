"""The line that shows how far a download is."""

from __future__ import annotations

from io import StringIO

from obuild.cli.bar import Bar, line


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


def test_it_says_how_far_how_much_and_how_fast() -> None:
    assert line(0, 4 << 20, 0.0) == "[------------------------]   0%  0 B of 4.0 MiB"
    assert line(1 << 20, 4 << 20, 2048.0) == "[######------------------]  25%  1.0 MiB of 4.0 MiB  2.0 KiB/s"
    assert line(5 << 20, 4 << 20, 0.0).startswith("[########################] 100%")
    assert line(1 << 20, 0, 1024.0) == "1.0 MiB  1.0 KiB/s"


def test_it_is_drawn_in_one_line_and_is_gone_at_the_end() -> None:
    screen = Screen()
    times = iter([0.0, 0.1, 1.0])
    said: list[str] = []
    with Bar(screen, clock=lambda: next(times)) as bar:
        for done in (0, 1 << 20, 2 << 20):
            bar(done, 4 << 20)
        bar.under(said.append)("done")
    drawn = screen.getvalue().split("\r\x1b[K")
    assert drawn == ["", line(0, 4 << 20, 0.0), line(2 << 20, 4 << 20, 2.0 * (1 << 20)), ""]
    assert said == ["done"]


def test_nothing_is_drawn_where_nobody_looks() -> None:
    out = StringIO()
    with Bar(out) as bar:
        bar(1, 2)
    assert out.getvalue() == ""
