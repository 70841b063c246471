"""obuild: virtual-machine images, built the way a compiler builds objects.

The entry point for programs that use it as a library. Each name is imported when it is first used:

    from pathlib import Path
    import obuild

    store = obuild.Store.open(Path("/data"))
    stage = obuild.parse(Path("hello.spec").read_bytes())
    last = obuild.Engine(Path("."), store, obuild.Settings(), print).build(stage)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obuild.builder.engine import Engine
    from obuild.builder.recorder import Recorder
    from obuild.errors import ObuildError
    from obuild.executors.settings import Settings
    from obuild.spec import parse
    from obuild.store.layers import Store

__all__ = ["Engine", "ObuildError", "Recorder", "Settings", "Store", "parse"]

_HOMES = {
    "Engine": "obuild.builder.engine",
    "ObuildError": "obuild.errors",
    "Recorder": "obuild.builder.recorder",
    "Settings": "obuild.executors.settings",
    "Store": "obuild.store.layers",
    "parse": "obuild.spec",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'obuild' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
