"""Small ISO images that give a guest its configuration. The same files give the same bytes.

pycdlib writes them. It dates everything by the clock, so it gets a clock here that stands still.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from io import BytesIO
from types import SimpleNamespace
from typing import Any

#: What cloud-init and its kin look for: a disk with this label.
LABEL = "cidata"

#: Zeros behind the last file: firmware that reads ahead must not meet the end of the disk.
_PADDING = bytes(150 * 2048)


def iso(files: Mapping[str, bytes], *, label: str = LABEL) -> bytes:
    """An ISO 9660 image with these files at its top, with Joliet and Rock Ridge names."""
    image: Any = _pycdlib().PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
    for number, (name, data) in enumerate(sorted(files.items())):
        image.add_fp(
            BytesIO(data), len(data), f"/F{number:07}.;1", rr_name=name, joliet_path=f"/{name}", file_mode=0o100444
        )
    out = BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue() + _PADDING


def _pycdlib() -> Any:
    import pycdlib  # late: it takes 80 ms
    from pycdlib import dates, headervd
    from pycdlib import pycdlib as main

    # 1980, in UTC: the modules' own names for `time`, so nobody else's clock stops
    still = SimpleNamespace(**{**vars(time), "time": lambda: 315532800.0, "localtime": time.gmtime})
    for module in (dates, headervd, main):
        setattr(module, "time", still)  # noqa: B010  # mypy knows that they have none
    return pycdlib
