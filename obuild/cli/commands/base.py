"""Base images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text
from obuild.cli.bar import Bar
from obuild.cli.console import guarded, look_at, open_store, put, say
from obuild.cli.options import StoreOption, VerboseOption, parse_bytes
from obuild.errors import ObuildError, UsageError

if TYPE_CHECKING:
    from obuild.bases.catalog import Found

#: What `base ls` says of recipes that none of obuild's developers has made.
UNTRIED = "; not tested yet"

app = typer.Typer(
    help="Make, add, list and remove base images.\n\n`(from NAME)` starts from one.", no_args_is_help=True
)


@app.command("make")
@guarded
def base_make(
    recipe: Annotated[
        str,
        typer.Argument(metavar="NAME|FILE.toml", help="The recipe; `obuild base ls` lists those of obuild."),
    ],
    store: StoreOption = "",
    profile: Annotated[str, typer.Option(metavar="P", help="Apply [profile.P] of the recipe.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a variable of the recipe. May be repeated."),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the image in specs. [default: the recipe's name]")
    ] = "",
    if_changed: Annotated[
        bool,
        typer.Option("--if-changed", help="Make an existing image again if its recipe or inputs have changed."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Make an existing image again.")] = False,
    trust_first: Annotated[
        bool,
        typer.Option(
            "--trust-first", help="Accept downloads without a known digest, and record the digests in NAME.lock."
        ),
    ] = False,
    locked: Annotated[
        bool,
        typer.Option(
            "--locked", help="Use only pinned inputs, packages of NAME.lock among them; refuse a recipe without."
        ),
    ] = False,
    lock: Annotated[
        bool,
        typer.Option("--lock", help="Make the image (again), record its packages in NAME.lock, and keep them."),
    ] = False,
    print_: Annotated[
        bool, typer.Option("--print", help="Only print the merged recipe and the digest of all inputs.")
    ] = False,
    seed: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Only write the seed that the guest would get, as FOLDER/NAME-seed.iso."
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show the guest's screen by VNC on 127.0.0.1 while it runs."),
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a base image from its recipe, unattended."""
    from obuild.bases import catalog, making, record
    from obuild.bases.sources import Choices

    values = dict(_assignment(each) for each in set_ or ())
    choices = Choices(profile, values) if profile or values else None
    if print_ or seed:
        from obuild.bases import inputs, kind
        from obuild.bases import recipe as recipes

        merged = recipes.load(making.recipe_path(recipe), choices)
        if print_:
            put(f"{recipes.show(merged)}\n# sha256:{kind.digest(merged)}")
        for path in inputs.write_seeds(open_store(store, create=True), merged, seed) if seed else ():
            put(f"wrote {path}")
        return
    if trust_first and locked:
        raise UsageError("--trust-first and --locked exclude each other")
    if lock and locked:
        raise UsageError("--lock and --locked exclude each other")
    with Bar(f"making {name or Path(recipe).stem}") as bar:
        path, made = making.make(
            open_store(store, create=True),
            recipe,
            say=bar.under(say),
            name=name,
            choices=choices,
            again="yes" if force or lock else "changed" if if_changed else "no",
            trust=trust_first,
            locked=locked,
            lock=lock,
            progress=bar,
            watch=watch,
        )
    if made:
        put(f"made {path}")
        for line in catalog.measured(path):
            put(line)
    elif if_changed:
        same = "and its recipe has not changed" if record.read(path) else "and was not made here; see --force"
        put(f"{path.stem} exists already, {same}")
    else:
        put(f"{path.stem} exists already; --if-changed or --force makes it again")


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {text} is not KEY=VALUE", hint="for example --set release=trixie")
    return key, value


@app.command("add")
@guarded
def base_add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bootable disk image, qcow2 or raw.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the image in specs: (from NAME).")],
    store: StoreOption = "",
    login: Annotated[
        str, typer.Option(metavar="USER", help="The user to log in as by SSH: root, or an administrator.")
    ] = "root",
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The private key to log in with. [default: the store's]"),
    ] = None,
    os_name: Annotated[str, typer.Option("--os", metavar="OS", help="The guest's operating system.")] = "linux",
    arch: Annotated[str, typer.Option(metavar="ARCH", help="The guest's architecture.")] = "x86_64",
    memory: Annotated[str, typer.Option(metavar="SIZE", help="The least memory it boots with.")] = "256M",
    kernel: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A Linux kernel for QEMU to load. [default: the disk's boot loader]"),
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The initial RAM disk for that kernel.")
    ] = None,
    cmdline: Annotated[
        str, typer.Option(metavar="TEXT", help="Command line for that kernel; the console is added.")
    ] = "root=/dev/vda1 rw",
    uefi: Annotated[bool, typer.Option("--uefi", help="Boot the disk by UEFI instead of a BIOS.")] = False,
    size: Annotated[
        str, typer.Option(metavar="SIZE", help="Grow the disk and its last file system, for example to 40G.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing image of that name.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Add a disk image made elsewhere as a base. It must start an SSH server when it boots."""
    from obuild.bases import catalog
    from obuild.guests import profile

    fields = {"os": os_name, "arch": profile.arch_named(arch), "login": login, "memory": memory}
    boot = [path for path in (kernel, initrd) if path]
    if initrd and not kernel:
        raise UsageError("--initrd needs --kernel")
    if kernel and uefi:
        raise UsageError("--kernel and --uefi exclude each other")
    if uefi:
        fields["firmware"] = "uefi"
    if kernel:
        fields |= {"firmware": "kernel", "cmdline": cmdline}
    about = profile.from_strings(fields, where="obuild base add")
    grown = parse_bytes("--size", size) if size else 0
    opened = open_store(store, create=True)
    with Bar(f"adding {name}"):
        added = catalog.add(opened, file, name, about=about, key=key, boot=boot, size=grown, force=force)
    put(f"added {added}")


@app.command("resize")
@guarded
def base_resize(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A base image.")],
    size: Annotated[str, typer.Argument(metavar="SIZE", help="The new size of its disk, for example 40G.")],
    store: StoreOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Grow the disk of a base image, without a boot.

    Its last partition and the file system there grow, too. Builds on it have new layers then; those that are there
    stay. ext4 needs no root; xfs and btrfs do.
    """
    from obuild.bases.resizing import resize_base

    grown = parse_bytes("SIZE", size)
    opened = open_store(store)
    with Bar(f"growing {name}"):
        resized = resize_base(opened, name, grown)
    put(f"resized {resized}")


@app.command("ls")
@guarded
def base_list(store: StoreOption = "") -> None:
    """List the base images in the store, and the recipes for more."""
    from obuild.bases import catalog, sources

    there = catalog.listing(look_at(store))
    rows = [_made_row(found) for found in there]
    for name in sources.names():
        if name not in {found.name for found in there}:
            rows.append(_recipe_row(name))
    if not rows:
        return
    rows.insert(0, ("NAME", "KIND", "ARCH", "SIZE", "MADE", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        put("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())


def _made_row(found: Found) -> tuple[str, ...]:
    from obuild.bases import catalog

    made = found.made
    if made is None:
        kind, when, note = "added", "", ""
    else:
        kind, when = made.kind, text.date(made.when)
        chosen = [f"--profile {made.profile}"] if made.profile else []
        chosen += [f"--set {key}={value}" for key, value in made.values.items()]
        note = " ".join([f"from {made.recipe}", *chosen])
        note += "" if made.tried else UNTRIED
        if catalog.stale(found.path):
            note += "; stale: --if-changed makes it again"
    return found.name, kind, found.card.arch, text.size(found.size), when, note


def _recipe_row(name: str) -> tuple[str, ...]:
    from obuild.bases import making, recipe

    try:
        plan = recipe.load(making.recipe_path(name))
    except UsageError as error:
        return name, "?", "?", "-", "-", f"cannot read its recipe: {error.message}"
    return name, plan.kind, plan.card.arch, "-", "-", f"can be made{'' if plan.tried else UNTRIED}"


@app.command("verify")
@guarded
def base_verify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The base image.")],
    store: StoreOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Make a base image again, and compare the two.

    The contents of the two disks must be the same. The first is kept.
    """
    from obuild.bases import verify

    with Bar(f"making {name} again") as bar:
        before, now = verify.again(open_store(store), name, say=bar.under(say))
    if before != now:
        raise ObuildError(
            f"{name} is sha256:{before}, but made again it is sha256:{now}",
            hint="its recipe takes something from this host or this day, or the archive has other packages",
        )
    put(f"{name} is the same made again: sha256:{before}")


@app.command("rm")
@guarded
def base_remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The base image.")], store: StoreOption = ""
) -> None:
    """Remove a base image. Layers that were built on it stay."""
    from obuild.bases import catalog

    catalog.remove(open_store(store), name)
