"""Base images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from obuild.cli import text
from obuild.cli.console import guarded, open_store, put, say
from obuild.cli.options import StoreOption, VerboseOption
from obuild.errors import UsageError

app = typer.Typer(help="Base images: what `(from NAME)` starts from.", no_args_is_help=True)


@app.command("make")
@guarded
def base_make(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe; `obuild base ls` shows them.")],
    store: StoreOption,
    force: Annotated[bool, typer.Option("--force", help="Make it again if it is there.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a base image from its recipe, unattended."""
    from obuild.bases import catalog

    opened = open_store(store, create=True)
    if not force and catalog.image_path(opened, name):
        put(f"{name} is there already; --force makes it again")
        return
    put(f"made {catalog.make(opened, name, say=say, again=force)}")


@app.command("add")
@guarded
def base_add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bootable disk image, qcow2 or raw.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What specs call it: (from NAME).")],
    store: StoreOption,
    login: Annotated[
        str, typer.Option(metavar="USER", help="Who SSH logs in as; root, or an administrator.")
    ] = "root",
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The private key that USER is logged in with. [default: the store's]"),
    ] = None,
    os_name: Annotated[str, typer.Option("--os", metavar="OS", help="The guest's system.")] = "linux",
    arch: Annotated[str, typer.Option(metavar="ARCH", help="The guest's architecture.")] = "x86_64",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="The least memory it boots with.")] = "256M",
    kernel: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A Linux kernel for QEMU to load. [default: the disk boots by itself]"),
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The initial RAM disk for that kernel.")
    ] = None,
    cmdline: Annotated[
        str, typer.Option(metavar="TEXT", help="For that kernel, besides its console.")
    ] = "root=/dev/vda1 rw",
    force: Annotated[bool, typer.Option("--force", help="Replace an image of that name.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Take a disk image made elsewhere as a base. Its SSH server must start by itself."""
    from obuild.bases import catalog
    from obuild.guests import profile

    fields = {"os": os_name, "arch": profile.arch_named(arch), "login": login, "memory": memory}
    boot = [path for path in (kernel, initrd) if path]
    if initrd and not kernel:
        raise UsageError("--initrd is of use only with --kernel")
    if kernel:
        fields |= {"firmware": "kernel", "cmdline": cmdline}
    about = profile.from_strings(fields, where="obuild base add")
    added = catalog.add(open_store(store, create=True), file, name, about=about, key=key, boot=boot, force=force)
    put(f"added {added}")


@app.command("ls")
@guarded
def base_list(store: StoreOption) -> None:
    """List the base images in the store, and the recipes that more can be made from."""
    from obuild.bases import catalog, recipe

    there = catalog.listing(open_store(store))
    for found in there:
        put(f"{found.name:20}  {text.size(found.size):>10}  {found.card.os} {found.card.arch}")
    for name in recipe.names():
        if name not in {found.name for found in there}:
            put(f"{name:20}  {'-':>10}  can be made: obuild base make {name}")


@app.command("rm")
@guarded
def base_remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The base image.")], store: StoreOption
) -> None:
    """Remove a base image. Layers that were built on it stay."""
    from obuild.bases import catalog

    catalog.remove(open_store(store), name)
