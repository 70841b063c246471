"""Publish layers: export them and send the images elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from obuild.cli.bar import Bar
from obuild.cli.console import called, environment, guarded, key_password, note, open_store, put_json, say
from obuild.cli.debugging import cleaner
from obuild.cli.options import (
    CompressionOption,
    InsecureOption,
    JsonOption,
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


@app.command(cls=WithSysprep)
@guarded
@machine_options
def publish(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="ID... TARGET...",
            help="Layers, by id or tag, and targets: oci://HOST/NAME:TAG, s3://BUCKET/KEY, ami:NAME, uplosi:FILE, "
            "gs://BUCKET/NAME, az://CONTAINER/NAME, scp:HOST:PATH, file:PATH.",
        ),
    ],
    store: StoreOption = "",
    *,
    machine: Machine,
    type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="The type of image. [default: from the target's suffix]")
    ] = "",
    version: Annotated[str, typer.Option(metavar="VERSION", help="What {version} in a target stands for.")] = "",
    version_file: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Read the version from a file; after success, count up its last number there."
        ),
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what is there. (Tags of a registry always move.)")
    ] = False,
    compression: CompressionOption = "zstd",
    size: SizeOption = "",
    shrink: ShrinkOption = False,
    sysprep: SysprepOption = None,
    no_sysprep: Annotated[bool, typer.Option("--no-sysprep", help="Publish the layers as they are.")] = False,
    keep_user: Annotated[bool, typer.Option("--keep-user", help="Keep the user that obuild logs in as.")] = False,
    regions: Annotated[str, typer.Option(metavar="REGION,...", help="Copy an AMI to these regions, too.")] = "",
    label: LabelOption = [],  # noqa: B006  # typer copies it
    sbom: Annotated[
        bool, typer.Option("--sbom/--no-sbom", help="Publish lists of packages and the provenance, too.")
    ] = True,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Sign images and documents with this key, as cosign does."),
    ] = None,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Export layers, and send the images to where they are needed.

    Targets are registries, buckets, AMIs, other computers and folders.

    Copies of Linux layers are cleaned first, as by `export --sysprep`; --no-sysprep leaves that out.

    {name}, {arch} and {version} in a target are replaced. Several layers in one oci:// target become an index with
    an image for each architecture. Credentials come from where the target's own tools keep them.

    Example: obuild publish pg16 oci://registry.example/pg:16 s3://images/pg16.qcow2
    """
    from obuild.builder.provision import base_below
    from obuild.builder.sysprep import knows
    from obuild.exports import version_file as versions
    from obuild.exports.cleaning.operations import pick
    from obuild.exports.disk import Options, labels
    from obuild.exports.export import Wanted, export
    from obuild.exports.publish import Source
    from obuild.exports.publish import publish as send
    from obuild.exports.signing import load
    from obuild.exports.targets.all import kind_of
    from obuild.exports.targets.target import Published, Settings
    from obuild.store.index import resolve

    ids = [word for word in words if kind_of(word) is None]
    targets = [word for word in words if word not in ids]
    if not ids or not targets:
        raise UsageError(
            "publish needs a layer and a target", hint="obuild publish pg16 oci://registry.example/pg:16"
        )
    if version and version_file:
        raise UsageError("--version and --version-file cannot be used together")
    if no_sysprep and (sysprep is not None or keep_user):
        raise UsageError("--no-sysprep cannot be used with --sysprep or --keep-user")
    operations = () if no_sysprep else pick(sysprep or "", keep_user=keep_user)
    options = Options(compression, labels=labels(label))
    grown = parse_bytes("--size", size) if size else 0
    if version_file:
        version = versions.read(Path(version_file))
    signer = load(sign, partial(key_password, sign)) if sign else None
    opened = open_store(store)
    layers = {id: resolve(opened, id) for id in ids}
    sources = [Source(layer, called(id, layer), base_below(opened, layer).card) for id, layer in layers.items()]
    there: list[Published] = []

    def done(published: Published) -> None:
        there.append(published)
        if not as_json:
            say(published.reference)

    def make(source: Source, types: Sequence[str], folder: Path, stem: str) -> None:
        wanted = Wanted(types, folder, stem, source.card, options, size=grown, shrink=shrink)
        wanted = wanted._replace(documented=sbom)
        run = partial(export, opened, source.layer, wanted, say=bar.under(note), progress=bar)
        if operations and (sysprep is not None or knows(source.card.os)):
            cleaning = cleaner(opened, store, source.layer, machine.settings(), operations)
            run(prepare=lambda layer: cleaning.cleaned())
        else:
            note(f"{source.name} is published as it is, with its keys and logs")
            run()

    recipe = repr((options, grown, shrink, operations, sbom))
    try:
        with Bar("publishing") as bar:
            settings = Settings(opened.uploads, environment(), bar.under(note), bar, type, replace, insecure)
            settings = settings._replace(regions=[each for each in regions.split(",") if each])
            settings = settings._replace(version=version, signer=signer)
            send(opened, sources, targets, settings, make=make, recipe=recipe, done=done)
    finally:
        if as_json:
            put_json([each._asdict() for each in there])
    if version_file:
        note(f"{version_file} has {versions.count_up(Path(version_file), version)} for the next image")
