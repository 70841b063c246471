"""Which QEMU may keep machines warm, with programs that only print a version."""

from __future__ import annotations

from pathlib import Path

import pytest

from obuild.executors.qemu import versions
from obuild.host.regular import read_text


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program on PATH that counts how often it is called."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin" / "qemu"


def install(qemu: Path, said: str) -> None:
    qemu.unlink(missing_ok=True)
    qemu.write_text(f"#!/bin/sh\necho asked >>{qemu.parent.parent}/asked\necho '{said}'\n")
    qemu.chmod(0o755)


def asked(qemu: Path) -> int:
    return len((qemu.parent.parent / "asked").read_text().splitlines())


def why(qemu: Path) -> str:
    return versions.untried("qemu", memo=qemu.parent.parent / "memo.json")


@pytest.mark.parametrize(
    ("said", "tried", "reason"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", ((7, 2), (7, 2)), ""),
        ("QEMU emulator version 7.10.0", ((7, 2), (8, 0)), ""),
        (
            "QEMU emulator version 10.0.2",
            ((7, 2), (9, 2)),
            "this is QEMU 10.0, and they were tested with 7.2 to 9.2",
        ),
        ("QEMU emulator version 6.2.0", ((7, 2), (7, 2)), "this is QEMU 6.2, and they were tested with 7.2"),
        ("something else", ((7, 2), (7, 2)), "qemu does not report its version"),
    ],
)
def test_only_versions_in_the_tested_range_are_accepted(
    qemu: Path, said: str, tried: object, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "TRIED", tried)
    install(qemu, said)
    assert why(qemu) == reason


def test_a_qemu_is_asked_once_until_it_is_replaced(qemu: Path) -> None:
    install(qemu, "QEMU emulator version 7.2.0")
    assert [why(qemu), why(qemu)] == ["", ""]
    assert asked(qemu) == 1
    install(qemu, "QEMU emulator version 99.9.9")
    assert "99.9" in why(qemu)
    assert asked(qemu) == 2


@pytest.mark.parametrize("memo", ["", "[]", "{", '{"key": 1}', '{"key": null, "said": []}'])
def test_an_invalid_memo_is_replaced(qemu: Path, memo: str) -> None:
    install(qemu, "QEMU emulator version 7.2.0")
    path = qemu.parent.parent / "memo.json"
    path.write_text(memo)
    assert why(qemu) == ""
    assert "7.2.0" in read_text(path)
