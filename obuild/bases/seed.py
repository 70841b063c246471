"""Small ISO images and floppies that give a guest its configuration. The same files give the same bytes.

pycdlib writes them. It dates everything by the clock, so it gets a clock here that stands still.
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

#: What cloud-init and its kin look for: a disk with this label.
LABEL = "cidata"

#: Zeros behind the last file: firmware that reads ahead must not meet the end of the disk.
_PADDING = bytes(150 * 2048)


def iso(files: Mapping[str, bytes], *, label: str = LABEL) -> bytes:
    """An ISO 9660 image with these files, FOLDER/NAME for one in a folder, with Joliet and Rock Ridge names."""
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
    """A floppy disk of 1.44 MB with these files at `path`; it needs mtools. UsageError if they do not fit."""
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

    # 1980, in UTC: the modules' own names for `time`, so nobody else's clock stops
    still = SimpleNamespace(**{**vars(time), "time": lambda: 315532800.0, "localtime": time.gmtime})
    for module in (dates, headervd, main):
        setattr(module, "time", still)  # noqa: B010  # mypy knows that they have none
    return pycdlib
