"""What this host can do: each capability of obuild, and what it lacks. Nothing is changed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from obuild import version
from obuild.bases.scratch import ext4
from obuild.executors.all import EXECUTORS
from obuild.exports.all import FORMATS
from obuild.exports.iso import medium
from obuild.host import process, resize, units
from obuild.host.capability import Capability, checked, programs

#: What a first base image and a few steps take on disk, in bytes.
ROOM = 4 << 30

#: The Python packages of obuild's extras, and what they are for.
EXTRAS = {
    "farm": (("distributed",), "building on other hosts"),
    "publish": (("boto3", "httpx", "obstore"), "publishing to registries, buckets and clouds"),
    "remote": (("boto3", "httpx"), "sharing layers with other hosts"),
}


def examine(store: Path) -> Iterator[Capability]:
    """Look at what each capability needs. `store` is where the store is or will be."""
    yield from EXECUTORS["qemu"].capabilities()
    yield _room(store)
    yield _clock()
    yield checked("base images from packages", _packages)
    for name, executor in EXECUTORS.items():
        if name != "qemu":
            yield from executor.capabilities()
    yield checked("disks of another size", partial(programs, *resize.PROGRAMS))
    for name, format in FORMATS.items():
        if format.programs:
            yield checked(f"export --type {name}", partial(programs, *format.programs))
    yield checked("export --type iso", partial(programs, *medium.PROGRAMS))
    for extra, (packages, purpose) in EXTRAS.items():
        yield _extra(extra, packages, purpose)


def _room(store: Path) -> Capability:
    there = next(path for path in (store, *store.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    mend = "" if free >= ROOM else f"a first base image and its steps take some {units.size(ROOM)}"
    return Capability("disk space", free >= ROOM, f"{units.size(free)} free for {store}", mend)


def _clock() -> Capability:
    """Certificates are not valid yet by a clock that is behind. obuild's own files must be of the past."""
    right = time.time() >= Path(version.__file__).stat().st_mtime
    mend = "" if right else "it is behind the time at which obuild was installed: set it"
    return Capability("clock", right, time.strftime("%Y-%m-%d %H:%M:%S"), mend)


def _packages() -> str:
    found = programs("mmdebstrap", "qemu-img", *ext4.PROGRAMS)
    if os.geteuid() != 0:
        process.require("newuidmap")
        process.run(["unshare", "--user", "--map-root-user", "true"])
    return found


def _extra(extra: str, packages: tuple[str, ...], purpose: str) -> Capability:
    missing = [package for package in packages if find_spec(package) is None]
    mend = f"pip install 'obuild[{extra}]'" if missing else ""
    said = f"no Python package {', '.join(missing)}" if missing else ", ".join(packages)
    return Capability(purpose, not missing, said, mend)
