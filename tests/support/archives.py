"""Archives as a hostile guest packs them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

Entry = tuple[str, bytes, str]


FILE, LINK, SYMLINK, FOLDER, FIFO = (
    tarfile.REGTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)


def packed(*entries: Entry, form: int = tarfile.GNU_FORMAT) -> bytes:
    """An archive of (name, type, target of the link)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, kind, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, link, 0o4777
            info.size = 4 if kind == FILE else 0
            archive.addfile(info, io.BytesIO(b"evil"))
    return out.getvalue()


def tricks(outside: Path) -> dict[str, bytes]:
    """Archives that try to write to, or read from, a folder outside the cache."""
    up = "../" * 12
    return {
        "dots": packed((f"{up}{outside}/new", FILE, "")),
        "dots-inside": packed((f"a/{up}{outside}/new", FILE, "")),
        "absolute": packed((f"{outside}/new", FILE, "")),
        "through-symlink": packed(("s", SYMLINK, str(outside)), ("s/new", FILE, "")),
        "through-relative-symlink": packed(("s", SYMLINK, f"{up}{outside}"), ("s/new", FILE, "")),
        "over-symlink": packed(("s", SYMLINK, f"{outside}/there"), ("s", FILE, "")),
        "symlink-then-folder": packed(("s", SYMLINK, str(outside)), ("s", FOLDER, ""), ("s/new", FILE, "")),
        "symlink-chain": packed(("a", SYMLINK, "b"), ("b", SYMLINK, str(outside)), ("a/new", FILE, "")),
        "symlink-by-steps": packed(
            *(("a", FOLDER, ""), ("a/up", SYMLINK, "../..")),
            *(("b", SYMLINK, f"a/up/{up}{outside}"), ("b/new", FILE, "")),
        ),
        "the-folder-itself": packed((".", SYMLINK, str(outside)), ("new", FILE, "")),
        "hard-link": packed(("h", LINK, f"{outside}/there"), ("h", FILE, "")),
        "hard-link-by-dots": packed(("h", LINK, f"{up}{outside}/there"), ("h", FILE, "")),
        "hard-link-through-symlink": packed(("s", SYMLINK, str(outside)), ("h", LINK, "s/there"), ("h", FILE, "")),
        "hard-link-to-symlink": packed(("s", SYMLINK, f"{outside}/there"), ("h", LINK, "s"), ("h", FILE, "")),
        "pax": packed((f"{outside}/new{'n' * 120}", FILE, ""), form=tarfile.PAX_FORMAT),
        "long": packed((f"{up}{outside}/{'n' * 120}", FILE, "")),
        "fifo": packed((f"{outside}/new", FIFO, "")),
        "newline": packed((f"a\n{outside}/new", FILE, "")),
        "rubbish": os.urandom(5000),
        "cut-off": packed(("a", FILE, ""))[:700],
        "nothing": b"",
    }


def seen(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, with contents."""
    return {
        str(path): os.fsencode(path.readlink())
        if path.is_symlink()
        else (path.is_file() and path.read_bytes()) or b""
        for path in folder.rglob("*")
    }
