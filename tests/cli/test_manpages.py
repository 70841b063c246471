"""The manual pages: what is in them, that groff takes them, and that a wheel installs them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

from obuild.cli import described, main, manpages
from tests.support.program import ROOT


@cache
def pages() -> dict[str, str]:
    return manpages.pages()


def shown(name: str) -> str:
    """A page as `man` shows it, without bold and underlines. Warnings of groff are errors."""
    argv = ["groff", "-man", "-ww", "-Tutf8", "-P-c", "-P-bou", "-rLL=300n"]
    done = subprocess.run(argv, input=pages()[name], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return " ".join(done.stdout.split())


def test_every_command_has_a_page() -> None:
    assert set(pages()) == {"obuild.1"} | {f"obuild-{name}.1" for name in main.COMMANDS}


def test_groff_takes_all_pages_without_a_warning() -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z"], input="".join(pages().values()), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_has_the_usage_and_every_option() -> None:
    page = shown("obuild-build.1")
    assert "obuild-build - build a spec: make the layers that are not in the store yet" in page
    assert "SYNOPSIS obuild build [OPTIONS] SOURCE" in page
    assert "-t, --tag NAME Tag the result, which keeps it. May be repeated." in page
    assert "--qemu-cpus N CPUs of each machine. [default: 2]" in page
    assert "EXAMPLES obuild build -t hello ." in page
    assert "2, an error was found before anything was built" in page


def test_the_page_of_a_group_has_its_commands() -> None:
    page = shown("obuild-tag.1")
    assert "obuild tag add [OPTIONS] ID NAME... obuild tag ls [OPTIONS] obuild tag rm [OPTIONS] NAME..." in page
    assert "Example: obuild tag rm web" in page


def test_the_first_page_lists_the_commands_and_the_environment() -> None:
    page = shown("obuild.1")
    for name in main.COMMANDS:
        assert f"obuild-{name}(1)" in page
    for entries in described.entries().values():
        for option in (option for entry in entries for command in entry.commands for option in command.options):
            assert option.environment in ("", *manpages.ENVIRONMENT)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (".so /etc/passwd", "\\&.so /etc/passwd"),
        ("'tis", "\\&\\(aqtis"),
        ("a\\b", "a\\eb"),
        ("call `rm -r` first", "call \\fBrm \\-r\\fR first"),
        ("a ` alone", "a \\(ga alone"),
        ("(copy …)", "(copy \\[u2026])"),
    ],
)
def test_text_stays_text(text: str, written: str) -> None:
    assert manpages._text(text) == written


def test_a_wheel_has_the_pages(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name.rpartition("/")[2] for name in archive.namelist() if "/data/share/man/man1/" in name}
    assert found == set(pages())
