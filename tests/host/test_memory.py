"""How much memory is to spare."""

from __future__ import annotations

from pathlib import Path

import pytest

from obuild.host import memory


@pytest.mark.parametrize(
    ("host", "limit", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:  4096 kB\n", None, 4 << 20),
        ("MemAvailable: 4096 kB\n", "max\n", 4 << 20),
        ("MemAvailable: 4096 kB\n", "3145728\n", 2 << 20),
        ("MemAvailable: 4096 kB\n", "1000\n", 0),
        ("MemTotal: 9 kB\n", None, 0),
    ],
)
def test_the_host_or_the_container_is_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, limit: str | None, expected: int
) -> None:
    (tmp_path / "meminfo").write_text(host)
    (tmp_path / "memory.current").write_text("1048576\n")
    if limit:
        (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(memory, "_HOST", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available() == expected


def test_this_host_has_memory() -> None:
    assert memory.available() > 1 << 20
