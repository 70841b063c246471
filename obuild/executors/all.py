"""The kinds of executor, by the name before the store's path: `qemu:/data`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obuild.executors.native import provision as native
from obuild.executors.qemu import provision as qemu

if TYPE_CHECKING:
    from obuild.executors.protocol import Kind

EXECUTORS: dict[str, Kind] = {"qemu": qemu, "native": native}
