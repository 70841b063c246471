"""Is it still the same? What changes when something is another one."""

from __future__ import annotations

from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Another one each time the host boots."""
    return BOOT_ID.read_text().strip()
