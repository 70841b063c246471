"""Export a layer as images for other programs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from obuild.cli.bar import Bar
from obuild.cli.console import called, guarded, key_password, note, open_store, put
from obuild.cli.debugging import cleaner
from obuild.cli.options import (
    CompressionOption,
    IdArgument,
    LabelOption,
    Machine,
    ShrinkOption,
    SizeOption,
    StoreOption,
    SysprepOption,
    VerboseOption,
    WithSysprep,
    machine_options,
    parse_bytes,
)
from obuild.errors import UsageError

app = typer.Typer()


@app.command("export", cls=WithSysprep)
@guarded
@machine_options
def export_layer(
    id: IdArgument,
    types: Annotated[
        list[str],
        typer.Option(
            "--type",
            metavar="TYPE",
            help="raw, raw.gz, raw.xz, raw.zst, qcow2, vmdk, vmdk-sparse, ova, vhd, vhd-dynamic, vhdx, vdi, "
            "iso, installer-iso, containerdisk, oci-archive, tar, tar.gz, tar.xz, tar.zst, dir or "
            "squashfs. May be repeated.",
        ),
    ] = [],  # noqa: B006  # typer copies it
    store: StoreOption = "",
    *,
    machine: Machine,
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder for the images; made if needed.")
    ] = Path(),
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What the images are called. [default: the tag, or the short id]")
    ] = "",
    version: Annotated[str, typer.Option(metavar="VERSION", help="Put after the name: NAME-VERSION.qcow2.")] = "",
    compression: CompressionOption = "zstd",
    cpus: Annotated[int, typer.Option(metavar="N", min=1, help="The CPUs of the machine in an ova.")] = 1,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The memory of the machine in an ova. [default: that of its base]")
    ] = "",
    size: SizeOption = "",
    shrink: ShrinkOption = False,
    sysprep: SysprepOption = None,
    keep_user: Annotated[
        bool, typer.Option("--keep-user", help="With --sysprep, keep the user that obuild logs in as.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --sysprep, only list what would go.")] = False,
    persist: Annotated[
        str, typer.Option(metavar="LABEL", help="A live iso keeps its changes on the partition with this label.")
    ] = "",
    disk: Annotated[
        str,
        typer.Option(
            metavar="DISK",
            help="What an installer-iso writes to: smallest, largest, a serial number or a name like sda. "
            "[default: the only disk, or it asks]",
        ),
    ] = "",
    unattended: Annotated[
        bool, typer.Option("--unattended", help="An installer-iso writes without asking anybody.")
    ] = False,
    label: LabelOption = [],  # noqa: B006  # typer copies it
    sbom: Annotated[
        bool,
        typer.Option(
            "--sbom/--no-sbom", help="Write NAME.cdx.json, NAME.spdx.json and NAME.provenance.json, too."
        ),
    ] = True,
    checksums: Annotated[
        bool,
        typer.Option(
            "--checksums/--no-checksums",
            help="Write SHA256SUMS. To read a large empty disk for that takes longer than to write it.",
        ),
    ] = True,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Sign every file with this private key, as cosign does: FILE.sig."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace images that exist already.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Write the disk of a layer as images that other programs boot.

    The same layer gives the same bytes, unless it is cleaned. Their checksums are in FOLDER/SHA256SUMS. The
    password of an encrypted key is COSIGN_PASSWORD, or is asked for.

    Example: obuild export pg16 --type qcow2 --type vmdk -o images
    """
    from obuild.builder.provision import base_below
    from obuild.exports.cleaning.operations import pick
    from obuild.exports.disk import Options, labels
    from obuild.exports.export import Wanted, export
    from obuild.exports.signing import load
    from obuild.store.index import resolve

    signer = load(sign, partial(key_password, sign)) if sign else None
    opened = open_store(store)
    layer = resolve(opened, id)
    stem = name or called(id, layer).replace("/", "-").replace(":", "-")
    stem = f"{stem}-{version}" if version else stem
    card = base_below(opened, layer).card
    if memory:
        card = replace(card, memory=parse_bytes("--memory", memory))
    options = Options(compression, cpus, persist, disk, unattended, labels(label))
    wanted = Wanted(types, out, stem, card, options, force, parse_bytes("--size", size) if size else 0, shrink)
    wanted = wanted._replace(documented=sbom, signer=signer, summed=checksums)
    if sysprep is None and (keep_user or dry_run):
        raise UsageError(f"--{'keep-user' if keep_user else 'dry-run'} needs --sysprep")
    with Bar("exporting") as bar:
        run = partial(export, opened, layer, wanted, say=bar.under(note), progress=bar)
        if sysprep is None:
            images = run()
        else:
            cleaning = cleaner(opened, store, layer, machine.settings(), pick(sysprep, keep_user=keep_user))
            if dry_run:
                put(*(f"{operation}: {what}" for operation, what in cleaning.listed()))
                return
            images = run(prepare=lambda layer: cleaning.cleaned())
    put(*map(str, images))
