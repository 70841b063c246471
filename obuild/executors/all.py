"""The kinds of executor, by the name before the store's path: `qemu:/data`."""

from __future__ import annotations

from obuild.executors.protocol import Kind
from obuild.executors.qemu import provision

EXECUTORS: dict[str, Kind] = {"qemu": provision}
