"""The progress bar for downloads."""

from __future__ import annotations

from io import StringIO

from obuild.cli.bar import Bar, line


class Screen(StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_shows_percentage_bytes_and_rate() -> None:
    assert line(0, 4 << 20, 0.0) == "[------------------------]   0%  0 B of 4.0 MiB"
    assert line(1 << 20, 4 << 20, 2048.0) == "[######------------------]  25%  1.0 MiB of 4.0 MiB  2.0 KiB/s"
    assert line(5 << 20, 4 << 20, 0.0).startswith("[########################] 100%")
    assert line(1 << 20, 0, 1024.0) == "1.0 MiB  1.0 KiB/s"


def test_the_bar_is_redrawn_in_place_and_erased_at_the_end() -> None:
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


def test_nothing_is_drawn_unless_out_is_a_terminal() -> None:
    out = StringIO()
    with Bar(out) as bar:
        bar(1, 2)
    assert out.getvalue() == ""
