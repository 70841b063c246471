"""Write small ISO images and floppies for a guest's configuration. The same files give the same bytes.

pycdlib takes all dates from the clock, so it gets one that stands still.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from obuild.errors import ProcessError, UsageError
from obuild.host import process

#: The label of the disk that cloud-init, kairos and others look for.
LABEL = "cidata"

#: Zeros after the last file: firmware that reads ahead must not reach the end of the disk.
_PADDING = bytes(150 * 2048)


def iso(files: Mapping[str, bytes], *, label: str = LABEL) -> bytes:
    """Return an ISO 9660 image with files, given by their paths. It has Joliet and Rock Ridge names."""
    image: Any = _pycdlib().PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
    folders = {PurePosixPath("."): ""}
    for folder in sorted({folder for name in files for folder in PurePosixPath(name).parents}):
        if folder not in folders:
            folders[folder] = f"{folders[folder.parent]}/D{len(folders):07}"
            image.add_directory(folders[folder], rr_name=folder.name, joliet_path=f"/{folder}")
    for number, (name, data) in enumerate(sorted(files.items())):
        path = PurePosixPath(name)
        inside = f"{folders[path.parent]}/F{number:07}.;1"
        image.add_fp(
            BytesIO(data), len(data), inside, rr_name=path.name, joliet_path=f"/{path}", file_mode=0o100444
        )
    out = BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue() + _PADDING


def floppy(path: Path, files: Mapping[str, bytes], *, label: str, work: Path) -> None:
    """Write a floppy disk image of 1.44 MB with files, using mtools. UsageError if they do not fit."""
    tree = work / "floppy"
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    env = {"MTOOLS_SKIP_CHECK": "1", "SOURCE_DATE_EPOCH": "315532800", "TZ": "UTC"}
    process.run(["mformat", "-C", "-f", "1440", "-N", "0b01d000", "-v", label, "-i", path, "::"], env=env)
    try:
        process.run(["mcopy", "-s", "-i", path, *sorted(tree.iterdir()), "::"], env=env)
    except ProcessError as error:
        raise UsageError(f"the files of the floppy {label!r} do not fit on it: {error.message}") from error


def _pycdlib() -> Any:
    import pycdlib  # late: it takes 80 ms
    from pycdlib import dates, headervd
    from pycdlib import pycdlib as main

    # 1980, in UTC; only these modules' `time` is replaced, so other threads keep the real clock
    still = SimpleNamespace(**{**vars(time), "time": lambda: 315532800.0, "localtime": time.gmtime})
    for module in (dates, headervd, main):
        setattr(module, "time", still)  # noqa: B010  # mypy does not see the attribute
    return pycdlib
