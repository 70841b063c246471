"""Copy files out of a layer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli.console import guarded, look_at, note, put_bytes
from obuild.cli.debugging import open_layer
from obuild.cli.options import Machine, StoreOption, VerboseOption, machine_options
from obuild.errors import UsageError

if TYPE_CHECKING:
    from obuild.store.tags import Tags

app = typer.Typer()


@app.command()
@guarded
@machine_options
def cp(
    source: Annotated[str, typer.Argument(metavar="ID:PATH", help="A file or folder of a layer.")],
    dest: Annotated[
        str, typer.Argument(metavar="DEST", help="A folder, or a new name; - writes a tar archive to stdout.")
    ],
    store: StoreOption = "",
    *,
    machine: Machine,
    verbose: VerboseOption = False,
) -> None:
    """Copy a file or folder out of a layer.

    It becomes DEST, or goes into DEST if that is a folder. It appears complete or not at all. Symlinks stay
    symlinks, the files belong to you (in a tar archive, to root), and no file is setuid. For a system with
    its owners, use obuild export --type tar.

    Example: obuild cp 3f2a:/var/log/dpkg.log .
    """
    from obuild.host.tar_extract import place, unpack
    from obuild.plan.diff import listed

    settings = machine.settings()
    id, path = _parted(source, look_at(store).tags)
    if dest == "-" and sys.stdout.isatty():
        raise UsageError(
            "stdout is a terminal, not for a tar archive", hint="redirect it to a file or to: tar --list"
        )
    debugger = open_layer(store, id, settings)
    wanted = debugger.source(path)
    to = None if dest == "-" else place(dest, wanted.name)
    with debugger.packed(wanted) as archive:
        if to is None:
            _put_file(archive)
        else:
            if left_out := unpack(archive, to, root=not wanted.name, strict=wanted.strict):
                note(f"skipped devices and pipes: {listed(left_out)}")


def _parted(source: str, tags: Tags) -> tuple[str, str]:
    """Split ID:PATH. A tag may contain colons: if there are several ways to split it, the longest tag wins."""
    colons = [index for index, letter in enumerate(source) if letter == ":"]
    end = next((index for index in reversed(colons) if tags.is_there(source[:index])), min(colons, default=0))
    if not colons or end + 1 == len(source):
        raise UsageError(f"{source} is not ID:PATH", hint="for example 3f2a:/etc/passwd")
    return source[:end], source[end + 1 :]


def _put_file(path: Path) -> None:
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            put_bytes(data)
