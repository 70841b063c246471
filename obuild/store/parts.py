"""The folders of a store, how one is created, and which names in them are obuild's.

A store is for obuild alone, but others can put files into it, and a user can name the wrong folder. So a store is
only created where there is nothing to lose; it is refused unless each of its parts is a real folder; and only what
has a name that obuild gives is swept and removed. The rest stays until `fsck --repair` moves it to lost+found/.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from obuild.errors import UsageError
from obuild.host import failpoints
from obuild.host.regular import is_folder, kind, open_fd, open_file, open_folder
from obuild.plan import keys
from obuild.plan.keys import LayerId

#: The folders of every store, in the order of creation: the last one makes it a store.
PARTS = ("result", "result-tmp", "base-image", "cache", "cache-tmp", "state", "state/locks")

#: The folders that are created when they are needed.
LATER = (
    *("downloads", "tags", "flat", "warm", "warm-tmp", "lost+found", "outbox"),
    *(
        "state/builds",
        "state/db",
        "state/failed",
        "state/manifests",
        "state/screens",
        "state/ssh",
        "state/uploads",
    ),
)

#: The folders that identify a store; its README does, too.
_SIGNS = ("result", "result-tmp", "state/locks")

ID = re.compile(keys.SHA256)
#: A draft of a layer or of a flattened copy, in result-tmp/.
DRAFT = re.compile(rf"(?:flat-)?{keys.SHA256}")
#: A copy of a cache, a scratch draft, the folder of a chain of native steps, that of a file before it is unlinked,
#: or the files of a copy that came from another host, in cache-tmp/.
COPY = re.compile(r"[0-9]+-(?:c-.+|scratch-[0-9a-f]{12}|native|spool|sources)", re.DOTALL)
#: A running machine, or a saved one that is being removed, in warm-tmp/.
MACHINE = re.compile(r"[0-9]+-.+|gone-[0-9]+", re.DOTALL)
#: A manifest of files in a layer, or what its disk holds, in state/manifests/; or one that is being written.
_MEMO = rf"{keys.SHA256}-(?:[0-9a-f]+|content)\.json"
MEMO = re.compile(rf"{_MEMO}|\.{_MEMO}\..+", re.DOTALL)
#: Where an unfinished upload goes on, in state/uploads/; or one that is being written.
UPLOAD = re.compile(rf"{keys.SHA256}|\.{keys.SHA256}\..+", re.DOTALL)
#: A tag, in tags/, with %2F for a slash; or one that is being written.
TAG = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]|%2F)*")
NEW_TAG = re.compile(r"\.[A-Za-z0-9](?:[A-Za-z0-9._:-]|%2F)*\.[A-Za-z0-9_]+")
#: A download, in downloads/: named by its digest; or an unfinished one, also named by its URL or its layer.
DOWNLOAD = re.compile(r"(?:sha256-[0-9a-f]{64}|sha512-[0-9a-f]{128})(?:\.part)?|(?:url|layer)-[0-9a-f]{64}\.part")

#: The path of the image in the folder of a layer or a draft.
IMAGE = "rootfs/image.qcow2"
#: The path of the image in the folder of a flattened copy.
FLAT_IMAGE = "image.qcow2"

_IMAGE = re.compile(rf"result/({keys.SHA256})/{re.escape(IMAGE)}|flat/({keys.SHA256})/{re.escape(FLAT_IMAGE)}")

_LABELS = {
    "CACHEDIR.TAG": "Signature: 8a477f597d28d172789f06886806bc55\n",
    "README": """This is a store of obuild: layers of virtual machines, named by the hash of what made them.
result/ holds finished layers, result-tmp/ those in the making, base-image/ the images that specs start from.
Use obuild (ls, logs, rm, prune) to look and to remove; do not edit it by hand.
""",
}
_FIRST_WORDS = b"This is a store of obuild"


def layer_image(id: LayerId) -> str:
    """The image of a layer, as a path relative to the store's root."""
    return f"result/{id}/{IMAGE}"


def flat_image(id: LayerId) -> str:
    """The image of a layer's flattened copy, as a path relative to the store's root."""
    return f"flat/{id}/{FLAT_IMAGE}"


def whose_image(name: str) -> tuple[LayerId, bool] | None:
    """The layer for the path of an image, relative to the store's root, and whether it is a flattened copy."""
    found = _IMAGE.fullmatch(name)
    return (LayerId(found[1] or found[2]), found[2] is not None) if found else None


def seen_from_image(name: str) -> str:
    """Make a path relative to the store's root relative to the folder of a layer's or a draft's image."""
    return f"../../../{name}"


def is_store(root: Path) -> bool:
    """Whether a folder is a store, even if damaged."""
    return all(os.path.lexists(root / sign) for sign in _SIGNS) or _is_labelled(root)


def begin(root: Path) -> None:
    """Check that a store may be created at `root`. UsageError if there is anything else in it.

    It may be an empty folder, one with base images that a user has put there, or a store whose creation was
    killed: some of its parts, with nothing in them.
    """
    try:
        others = [name for name in sorted(os.listdir(root)) if not _is_beginning(root, name)]
    except FileNotFoundError:
        return
    if others and not is_store(root):  # check again: another process may just have made it
        shown = ", ".join(name if name.isprintable() else ascii(name) for name in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UsageError(
            f"{root} is not a store, and not empty: it contains {shown}{more}",
            hint=f"name a new or an empty folder, for example --store=qemu:{root / 'store'}",
        )


def check(root: Path) -> list[str]:
    """The parts that a store lacks. UsageError if one is a symlink (we would work elsewhere) or not a folder."""
    missing = []
    for part in (*PARTS, *LATER):
        path = root / part
        if is_folder(path):
            continue
        if os.path.lexists(path):
            hint = "move it away: obuild makes the folder again"
            if path.is_symlink():
                hint = "to have a store on another disk, move all of it there, and make a symlink to it"
            raise UsageError(f"{path} is {kind(path)} but must be a folder", hint=hint)
        if part in PARTS:
            missing.append(part)
    return missing


def make(root: Path) -> None:
    """Create the parts that a store lacks. After a crash at any point it can be repeated.

    The files that tell people and backup programs that this is a store never replace anything.
    """
    for part in check(root):
        (root / part).mkdir(parents=True, exist_ok=True)
        failpoints.reach("store.making")
    for name, text in _LABELS.items():
        with suppress(OSError):  # they are only informative
            _label(root / name, text)


def entries(folder: Path, name: re.Pattern[str]) -> list[Path]:
    """The folders with matching names in a part. Symlinks do not count."""
    fd = open_folder(folder)
    try:
        with os.scandir(fd) as found:
            return [folder / each.name for each in found if name.fullmatch(each.name) and _is_real(each)]
    finally:
        os.close(fd)


def _is_real(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # it was just removed
        return entry.is_dir(follow_symlinks=False)
    return False


def _is_beginning(root: Path, name: str) -> bool:
    """Whether an entry is an empty part, or one with base images, or belongs to a new file system."""
    if name in ("base-image", "lost+found"):
        return is_folder(root / name)
    if name not in PARTS or not is_folder(root / name):
        return False
    return all(
        f"{name}/{inner}" in PARTS and not os.listdir(root / name / inner) for inner in os.listdir(root / name)
    )


def _is_labelled(root: Path) -> bool:
    try:
        with open_file(root / "README") as file:
            return file.read(len(_FIRST_WORDS)) == _FIRST_WORDS
    except OSError:
        return False


def _label(path: Path, text: str) -> None:
    """Write a file, unless a non-empty one exists."""
    fd = open_fd(path, os.O_WRONLY | os.O_CREAT)
    try:
        if not os.fstat(fd).st_size:
            os.write(fd, text.encode())
    finally:
        os.close(fd)
