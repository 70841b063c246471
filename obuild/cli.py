"""The command line: read arguments, call one function, print. The only importer of typer.

What a command needs is imported inside it: a fully cached build should cost little more than starting Python.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from obuild import ui
from obuild.errors import ObuildError, UsageError
from obuild.version import VERSION

if TYPE_CHECKING:
    from obuild.shape import Settings
    from obuild.store import Store

app = typer.Typer(
    help="Build virtual-machine images step by step, and only what changed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
base_app = typer.Typer(help="Base images: what `(from NAME)` starts from.", no_args_is_help=True)
app.add_typer(base_app, name="base")
cache_app = typer.Typer(
    help="Caches: the folders that steps share with (cache NAME …), each kept as one tar archive.",
    no_args_is_help=True,
)
app.add_typer(cache_app, name="cache")

_MACHINE = "Machine"

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="OBUILD_STORE",
        metavar="KIND:PATH",
        help="Where layers, caches and base images are kept, for example qemu:/data. Made if it is not there.",
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show every external command, as a line to paste into a shell."),
]
AccelOption = Annotated[
    str,
    typer.Option(
        "--qemu-accel",
        metavar="auto|kvm|tcg",
        rich_help_panel=_MACHINE,
        help="How guests run: KVM, or emulated (tcg). auto is KVM if it really runs a guest.",
    ),
]
MemoryOption = Annotated[
    str,
    typer.Option(
        "--qemu-memory",
        metavar="SIZE",
        rich_help_panel=_MACHINE,
        help="Memory of each machine, in GiB or as 512M. [default: 2, or what the base needs]",
    ),
]
CpusOption = Annotated[
    int,
    typer.Option(
        "--qemu-cpus", metavar="N", min=1, max=255, rich_help_panel=_MACHINE, help="CPUs of each machine."
    ),
]
BootOption = Annotated[
    float,
    typer.Option(
        "--qemu-boot-time",
        metavar="SECONDS",
        min=0.1,
        rich_help_panel=_MACHINE,
        help="How long a guest may take to boot, and to power off.",
    ),
]
OsOption = Annotated[
    str,
    typer.Option(
        "--qemu-guest-os",
        metavar="OS",
        rich_help_panel=_MACHINE,
        help="linux, windows, openbsd or freebsd. [default: as the base's card says]",
    ),
]
ArchOption = Annotated[
    str,
    typer.Option(
        "--qemu-guest-arch",
        metavar="ARCH",
        rich_help_panel=_MACHINE,
        help="[default: as the base's card says]",
    ),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A layer's id; its first digits will do.")]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

CacheArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The cache, as `(cache (NAME …))` in a spec calls it.")
]

Command = TypeVar("Command", bound=Callable[..., None])


def run() -> None:
    """Run the command line and exit."""
    _keep_only(sys.argv[1] if len(sys.argv) > 1 else "")
    app(prog_name="obuild")


def _keep_only(name: str) -> None:
    """If `name` is a command, forget the others: making their parsers costs a cached build a tenth of its time."""
    commands = [each for each in app.registered_commands if name == (each.name or _name_of(each.callback))]
    groups = [each for each in app.registered_groups if name == each.name]
    if commands or groups:
        app.registered_commands, app.registered_groups = commands, groups


def _name_of(callback: Callable[..., Any] | None) -> str:
    return callback.__name__.replace("_", "-") if callback else ""


def _guarded(command: Command) -> Command:
    """End a command with a message and an exit code, never with a traceback."""

    @functools.wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            if options.get("verbose"):
                _log_commands()
            command(*args, **options)
            sys.stdout.flush()
        except ObuildError as error:
            failed = command.__name__ == "build" and error.exit_code == 1
            ui.report(error, what="Build step failed:" if failed else "", file=str(options.get("spec") or ""))
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as error:  # `obuild log … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from error
        except OSError as error:
            ui.report(ObuildError(str(error)))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            ui.report(ObuildError("interrupted", hint="what was saved stays; the next build goes on from there"))
            raise typer.Exit(130) from error

    return guarded  # type: ignore[return-value]  # functools.wraps keeps the signature that typer reads


def _log_commands() -> None:
    import logging

    logging.basicConfig(format="obuild: [%(levelname)s] %(message)s", stream=sys.stderr)
    logging.getLogger("obuild").setLevel(logging.INFO)


def _open(store: str, *, create: bool = False) -> Store:
    from obuild.store import Store

    kind, colon, path = store.partition(":")
    if not colon or not path:
        raise UsageError(f"--store={store} is not KIND:PATH", hint="for example --store=qemu:/data")
    if kind != "qemu":
        raise UsageError(f"unknown kind of store {kind!r} in --store={store}", hint="there is: qemu:PATH")
    return Store.open(Path(path), create=create)


def _lines() -> ui.Lines:
    return ui.Lines(sys.stdout.buffer, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def _put(*lines: str) -> None:
    """Print lines, whatever bytes are in them and whatever the terminal's encoding."""
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def _put_json(value: object) -> None:
    import json
    from dataclasses import asdict

    print(json.dumps(value, indent=2, default=asdict))


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"obuild {VERSION}")
        raise typer.Exit


@app.command()
@_guarded
def build(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The folder that (copy …) takes files from.")],
    store: StoreOption,
    spec: Annotated[str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to build.")],
    secret: Annotated[
        list[str] | None, typer.Option(metavar="ID:FILE", help="A value for (secrets ID). May be repeated.")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", metavar="N", min=1, help="How many independent stages to build at once.")
    ] = 1,
    qemu_accel: AccelOption = "auto",
    qemu_memory: MemoryOption = "",
    qemu_cpus: CpusOption = 2,
    qemu_boot_time: BootOption = 180.0,
    qemu_guest_os: OsOption = "",
    qemu_guest_arch: ArchOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Build a spec: find the layers that are there, make those that are not.

    Example: obuild build --store=qemu:/data -f hello.spec .
    """
    from obuild import engine
    from obuild.events import Done
    from obuild.spec import parse

    stage = parse(_read_spec(Path(spec)))
    settings = _settings(qemu_accel, qemu_memory, qemu_cpus, qemu_boot_time, qemu_guest_os, qemu_guest_arch)
    if not Path(source).is_dir():
        raise UsageError(f"there is no source directory {source}")
    tell = _lines()
    opened = _open(store, create=True)
    values = _secrets(secret or [])
    tell(Done(engine.Engine(Path(source), opened, settings, tell, values, jobs).build(stage)))


@app.command()
@_guarded
def plan(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The folder that (copy …) takes files from.")],
    store: StoreOption,
    spec: Annotated[str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to look at.")],
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="ID[:FILE]", help="As for build; the file is not read. May be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a build would do, and why; build nothing.

    Each step is `cached`, or a `build` would make it. For a step that is not there, it says in what it differs
    from the nearest layer that is.

    Example: obuild plan --store=qemu:/data -f hello.spec .
    """
    from obuild.forecast import forecast
    from obuild.spec import parse

    stage = parse(_read_spec(Path(spec)))
    if not Path(source).is_dir():
        raise UsageError(f"there is no source directory {source}")
    names = [item.partition(":")[0] for item in secret or []]
    if "" in names:
        raise UsageError("--secret takes an ID, or ID:FILE")
    steps = forecast(stage, source=Path(source), store=_open(store), secrets=names)
    if as_json:
        _put_json(steps)
    else:
        _put(*ui.outlook(steps))


def _read_spec(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory, not a spec", hint="-f takes the spec file") from None
    except OSError as error:
        raise UsageError(f"cannot read the spec {path}: {error.strerror}") from error


def _settings(accel: str, memory: str, cpus: int, boot_time: float, guest_os: str, arch: str) -> Settings:
    from obuild.card import parse_size
    from obuild.shape import Settings

    try:
        size = parse_size(memory, default_unit="G") if memory else 0
    except ValueError as error:
        raise UsageError(f"--qemu-memory: {error}", hint="a number of GiB, or a size like 512M") from error
    return Settings(accel, size, cpus, boot_time, guest_os, arch).checked()


def _secrets(given: list[str]) -> dict[str, bytes]:
    found = {}
    for item in given:
        name, colon, path = item.partition(":")
        if not colon or not name:
            raise UsageError(f"--secret {item} is not ID:FILE")
        try:
            found[name] = Path(path).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the file of the secret {name!r}: {path}: {error.strerror}") from error
    return found


@app.command()
@_guarded
def healthcheck(
    store: StoreOption,
    base: Annotated[str, typer.Option(metavar="NAME", help="The base image to try.")] = "micro",
    qemu_accel: AccelOption = "auto",
    qemu_memory: MemoryOption = "",
    qemu_cpus: CpusOption = 2,
    qemu_boot_time: BootOption = 180.0,
    qemu_guest_os: OsOption = "",
    qemu_guest_arch: ArchOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Boot a guest, run a command in it, shut it down: does everything work here?"""
    from obuild import engine

    settings = _settings(qemu_accel, qemu_memory, qemu_cpus, qemu_boot_time, qemu_guest_os, qemu_guest_arch)
    engine.healthcheck(_open(store, create=True), base_name=base, settings=settings, tell=_lines())
    print("Healthcheck passed")


@app.command()
@_guarded
def log(id: IdArgument, store: StoreOption) -> None:
    """Print what a step printed when its layer was made, or has printed so far."""
    opened = _open(store)
    path = opened.log_path(opened.resolve(id, drafts=True))
    try:
        with path.open("rb") as file:
            while data := file.read(1 << 20):
                sys.stdout.buffer.write(data)
    except FileNotFoundError:
        raise UsageError(f"{id} has no log") from None
    sys.stdout.buffer.flush()


@app.command("ls")
@_guarded
def list_layers(store: StoreOption) -> None:
    """List the layers: id, age, how long it took, size on disk, and the op that made it."""
    from obuild.index import Index

    with Index(_open(store)) as index:
        rows = index.rows()
    for row in rows:
        shown = ui.one_line(row.op, 60)
        print(f"{row.id[:12]}  {ui.ago(row.created):>7}  {row.seconds:7.1f} s  {ui.size(row.size):>10}  {shown}")


@app.command()
@_guarded
def explain(id: IdArgument, store: StoreOption, as_json: JsonOption = False) -> None:
    """Tell all about a layer: what made it, what it stands on, what stands on it, when, how big.

    Its key is everything that its id is the hash of. Sizes are on disk.

    Example: obuild explain --store=qemu:/data 3f2a
    """
    from obuild.describe import describe

    opened = _open(store)
    layer = describe(opened, opened.resolve(id))
    if as_json:
        _put_json(layer)
    else:
        _put(*ui.description(layer))


@app.command()
@_guarded
def delete(id: IdArgument, store: StoreOption) -> None:
    """Remove a layer, and all layers that were built on it."""
    from obuild import upkeep

    opened = _open(store)
    _stayed(upkeep.delete(opened, opened.resolve(id), tell=lambda gone: print(f"Removing {gone}")))


@app.command()
@_guarded
def clean(store: StoreOption) -> None:
    """Remove all layers. Base images and caches stay."""
    from obuild import upkeep

    gone: list[str] = []

    def tell(id: str) -> None:
        gone.append(id)
        print(f"Removing {id}")

    stayed = upkeep.clean(_open(store), tell=tell)
    print(f"Removed {len(gone)} {'item' if len(gone) == 1 else 'items'}")
    _stayed(stayed)


def _stayed(ids: list[Any]) -> None:
    if ids:
        raise ObuildError(
            f"{len(ids)} {'layer is' if len(ids) == 1 else 'layers are'} in use and stayed: "
            + ", ".join(id[:12] for id in ids),
            hint="a build is running on them; try again when it has ended",
        )


@app.command()
@_guarded
def dockerfile(
    spec: Annotated[str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to convert.")],
    buildkit: Annotated[bool, typer.Option("--buildkit", help="Use BuildKit's syntax: caches, secrets.")] = False,
    escape: Annotated[str, typer.Option(metavar="unix|windows", help="How lines are continued.")] = "unix",
) -> None:
    """Print a spec as a Dockerfile."""
    from obuild import dockerfile as convert
    from obuild.spec import parse

    if escape not in ("unix", "windows"):
        raise UsageError(f"--escape {escape}: it can be unix or windows")
    text = convert.dockerfile(
        parse(_read_spec(Path(spec))), buildkit=buildkit, escape="windows" if escape == "windows" else "unix"
    )
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")


@app.command()
@_guarded
def fmt(
    spec: Annotated[
        str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to format; - is standard input.")
    ] = "-",
    check: Annotated[
        bool, typer.Option("--check", help="Print nothing; exit with 1 if the spec would change.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", "-w", help="Rewrite the file instead of printing.")] = False,
) -> None:
    """Print a spec in its one layout, as OBuilder prints it, with its comments.

    It means the same as before: every step keeps its id.

    Example: obuild fmt --write -f hello.spec
    """
    from obuild import fmt

    if write and (check or spec == "-"):
        raise UsageError(
            "--write cannot be had " + ("with --check" if check else "for standard input: add -f SPEC")
        )
    text = sys.stdin.buffer.read() if spec == "-" else _read_spec(Path(spec))
    done = fmt.tidy(text)
    if check and done != text:
        name = "standard input" if spec == "-" else spec
        raise ObuildError(f"{name} would change", hint=f"obuild fmt --write -f {spec}" if spec != "-" else "")
    if write and done != text:
        fmt.rewrite(Path(spec), done)
    if not check and not write:
        sys.stdout.buffer.write(done)


@base_app.command("make")
@_guarded
def base_make(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe; `obuild base ls` shows them.")],
    store: StoreOption,
    force: Annotated[bool, typer.Option("--force", help="Make it again if it is there.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a base image from its recipe, unattended."""
    from obuild import base

    opened = _open(store, create=True)
    if not force and base.image_path(opened, name):
        print(f"{name} is there already; --force makes it again")
        return
    print(f"made {base.make(opened, name, say=_say, again=force)}")


@base_app.command("add")
@_guarded
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
    from obuild import base, card
    from obuild.shape import arch_named

    fields = {"os": os_name, "arch": arch_named(arch), "login": login, "memory": memory}
    boot = [path for path in (kernel, initrd) if path]
    if initrd and not kernel:
        raise UsageError("--initrd is of use only with --kernel")
    if kernel:
        fields |= {"firmware": "kernel", "cmdline": cmdline}
    about = card.from_strings(fields, where="obuild base add")
    added = base.add(_open(store, create=True), file, name, about=about, key=key, boot=boot, force=force)
    print(f"added {added}")


@base_app.command("ls")
@_guarded
def base_list(store: StoreOption) -> None:
    """List the base images in the store, and the recipes that more can be made from."""
    from obuild import base, recipe

    there = base.listing(_open(store, create=True))
    for found in there:
        print(f"{found.name:20}  {ui.size(found.size):>10}  {found.card.os} {found.card.arch}")
    for name in recipe.names():
        if name not in {found.name for found in there}:
            print(f"{name:20}  {'-':>10}  can be made: obuild base make {name}")


@base_app.command("rm")
@_guarded
def base_remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The base image.")], store: StoreOption
) -> None:
    """Remove a base image. Layers that were built on it stay."""
    from obuild import base

    base.remove(_open(store), name)


@cache_app.command("ls")
@_guarded
def cache_list(store: StoreOption, as_json: JsonOption = False) -> None:
    """List the caches: size, when a step last changed it, and name.

    Example: obuild cache ls --store=qemu:/data
    """
    from obuild import caches

    there = caches.listing(_open(store))
    if as_json:
        _put_json(there)
    else:
        _put(*(f"{ui.size(cache.size):>10}  {ui.ago(cache.changed):>7}  {ui.word(cache.name)}" for cache in there))


@cache_app.command("rm")
@_guarded
def cache_remove(name: CacheArgument, store: StoreOption) -> None:
    """Remove a cache. The next step that wants it begins with an empty one.

    Example: obuild cache rm --store=qemu:/data apt-archives
    """
    from obuild import caches

    caches.remove(_open(store), name)


@cache_app.command("export")
@_guarded
def cache_export(
    name: CacheArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the tar archive.")],
    store: StoreOption,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
) -> None:
    """Copy a cache into a tar archive, for another store or to look at.

    It holds what guests have put there: look before you unpack it.

    Example: obuild cache export --store=qemu:/data apt-archives apt.tar
    """
    from obuild import caches

    caches.export(_open(store), name, file, force=force)


@cache_app.command("import")
@_guarded
def cache_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A tar archive, not compressed.")],
    name: CacheArgument,
    store: StoreOption,
) -> None:
    """Make a tar archive the content of a cache, in place of what is in it.

    Example: obuild cache import --store=qemu:/data apt.tar apt-archives
    """
    from obuild import caches

    caches.put(_open(store, create=True), file, name)


def _say(text: str) -> None:
    print(text, flush=True)
