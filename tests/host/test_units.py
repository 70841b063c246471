"""Sizes, counts and times for people."""

from __future__ import annotations

from datetime import datetime

import pytest

from obuild.host import units


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("1.5h", 5400), ("7d", 604800), ("4w", 2419200)]
)
def test_a_duration_is_parsed(text: str, seconds: float) -> None:
    assert units.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7 days", "-7d", "7M", "1h30m", "nand"])
def test_text_that_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        units.duration(text)


def test_a_moment_is_a_duration_ago_or_a_date() -> None:
    assert units.moment("2d", 1_000_000.0) == 1_000_000.0 - 2 * 86400
    assert units.moment("2026-01-31", 0.0) == datetime(2026, 1, 31).timestamp()
    assert units.moment("2026-01-31T12:30:00+00:00", 0.0) == 1769862600.0


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "31.1.2026", "7"])
def test_text_that_is_not_a_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        units.moment(text, 0.0)


def test_counts_have_a_plural() -> None:
    assert [units.count(number, "layer") for number in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]
