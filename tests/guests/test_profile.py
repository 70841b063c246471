"""Cards: the defaults, what is refused, and that a written card reads back."""

from __future__ import annotations

from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.guests import profile
from obuild.guests.profile import Card


@pytest.mark.parametrize(
    ("text", "size"),
    [("512M", 512 << 20), ("2G", 2 << 30), ("1.5G", 3 << 29), ("4096", 4096), (" 1k ", 1024), ("1GiB", 1 << 30)],
)
def test_sizes_are_powers_of_two(text: str, size: int) -> None:
    assert profile.parse_size(text) == size


def test_a_bare_number_is_in_the_default_unit() -> None:
    assert profile.parse_size("2", default_unit="G") == 2 << 30
    assert profile.parse_size("2M", default_unit="G") == 2 << 20


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1 2", "1e3", "inf", "."])
def test_text_that_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        profile.parse_size(text)


def test_an_image_without_a_card_has_the_default_one(tmp_path: Path) -> None:
    assert profile.read(tmp_path / "none.toml") == Card()
    assert profile.parse("", where="x") == Card()


@pytest.mark.parametrize(
    "about",
    [
        Card(),
        Card(login="debian", memory=768 << 20, key="state/ssh/x.key"),
        Card(key='/a "quoted" \\ path/é'),
        Card(login="Administrator Smith", os="windows"),
        Card(key="/home/😀/key"),
        Card(arch="s390x", firmware="kernel", cmdline='root=/dev/vda1 "rw"'),
    ],
)
def test_a_dumped_card_reads_back(tmp_path: Path, about: Card) -> None:
    path = tmp_path / "x.toml"
    path.write_text(profile.dump(about), encoding="utf-8")
    assert profile.read(path) == about


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("os =", "not a TOML file"),
        ('colour = "red"', "unknown entry 'colour'"),
        ("memory = 512", "memory must be a string"),
        ('memory = "lots"', "memory"),
        ('os = "plan9"', "os is 'plan9'"),
        ('arch = "pdp11"', "arch is 'pdp11'"),
        ('firmware = "none"', "firmware is 'none'"),
        ('cmdline = "a\\nb"', "cmdline must be one line"),
        ('login = ""', "not a login name"),
        ('login = "-oProxyCommand=x"', "not a login name"),
        ('login = "a;b"', "not a login name"),
    ],
)
def test_an_invalid_card_is_refused_with_its_path(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        profile.parse(text, where="here.toml")
    assert caught.value.message.startswith("here.toml: ")


def test_the_error_names_an_unreadable_card(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff")
    for path in (tmp_path / "x.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot read the card"):
            profile.read(path)
