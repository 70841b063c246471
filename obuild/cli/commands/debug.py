"""Look into layers, each time with a machine that is thrown away afterwards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli.console import (
    AccelOption,
    ArchOption,
    BootOption,
    CpusOption,
    IdArgument,
    MemoryOption,
    OsOption,
    StoreOption,
    VerboseOption,
    guarded,
    machine_settings,
    open_store,
)
from obuild.errors import UsageError

if TYPE_CHECKING:
    from obuild.builder.debug import Debugger
    from obuild.executors.qemu.shape import Settings

app = typer.Typer()

NetworkOption = Annotated[
    str, typer.Option("--network", metavar="host", help="What the machine may reach. [default: nothing]")
]
UserOption = Annotated[
    str,
    typer.Option("--user", "-u", metavar="UID[:GID]|NAME", help="Who to be. [default: as the layer's own step]"),
]


@app.command()
@guarded
def shell(
    id: IdArgument,
    store: StoreOption,
    network: NetworkOption = "",
    user: UserOption = "",
    qemu_accel: AccelOption = "auto",
    qemu_memory: MemoryOption = "",
    qemu_cpus: CpusOption = 2,
    qemu_boot_time: BootOption = 180.0,
    qemu_guest_os: OsOption = "",
    qemu_guest_arch: ArchOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Open a shell in a layer, where its own command was run. What you change there is thrown away.

    It ends with the shell's exit status. `~.` at the start of a line leaves a machine that hangs.

    Example: obuild shell --store=qemu:/data 3f2a
    """
    settings = machine_settings(qemu_accel, qemu_memory, qemu_cpus, qemu_boot_time, qemu_guest_os, qemu_guest_arch)
    open_network = _is_open(network)
    debugger = _debugger(store, id, settings)
    if sys.stdin.isatty():
        _note(f"a machine starts on layer {debugger.layer[:12]}; what you change in it is thrown away")
    raise typer.Exit(debugger.shell(network=open_network, user=user))


@app.command()
@guarded
def run(
    id: IdArgument,
    argv: Annotated[list[str], typer.Argument(metavar="CMD...", help="A program and its arguments, after `--`.")],
    store: StoreOption,
    network: NetworkOption = "",
    user: UserOption = "",
    qemu_accel: AccelOption = "auto",
    qemu_memory: MemoryOption = "",
    qemu_cpus: CpusOption = 2,
    qemu_boot_time: BootOption = 180.0,
    qemu_guest_os: OsOption = "",
    qemu_guest_arch: ArchOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Run a program in a layer, where its own command was run, and end with its exit status. Nothing is kept.

    Example: obuild run --store=qemu:/data 3f2a -- ls -l
    """
    settings = machine_settings(qemu_accel, qemu_memory, qemu_cpus, qemu_boot_time, qemu_guest_os, qemu_guest_arch)
    open_network = _is_open(network)
    debugger = _debugger(store, id, settings)
    raise typer.Exit(debugger.run(tuple(argv), _put, network=open_network, user=user))


@app.command()
@guarded
def cp(
    source: Annotated[str, typer.Argument(metavar="ID:PATH", help="A file or folder of a layer.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="A folder, or a new name; - for a tar archive.")],
    store: StoreOption,
    qemu_accel: AccelOption = "auto",
    qemu_memory: MemoryOption = "",
    qemu_cpus: CpusOption = 2,
    qemu_boot_time: BootOption = 180.0,
    qemu_guest_os: OsOption = "",
    qemu_guest_arch: ArchOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Copy a file or folder out of a layer.

    It becomes DEST, or goes into it if that is a folder; it appears whole, or not at all. Symlinks stay symlinks,
    the files are yours, and no program among them is setuid.

    Example: obuild cp --store=qemu:/data 3f2a:/var/log/dpkg.log .
    """
    from obuild.host.tar_extract import place, unpack
    from obuild.plan.diff import listed

    settings = machine_settings(qemu_accel, qemu_memory, qemu_cpus, qemu_boot_time, qemu_guest_os, qemu_guest_arch)
    id, colon, path = source.partition(":")
    if not colon or not path:
        raise UsageError(f"{source} is not ID:PATH", hint="for example 3f2a:/etc/passwd")
    if dest == "-" and sys.stdout.isatty():
        raise UsageError("a tar archive is nothing for a terminal", hint="send it to a file, or to: tar --list")
    debugger = _debugger(store, id, settings)
    wanted = debugger.source(path)
    to = None if dest == "-" else place(dest, wanted.name)
    with debugger.packed(wanted) as archive:
        if to is None:
            _put_file(archive)
        else:
            if left_out := unpack(archive, to, root=not wanted.name, strict=wanted.strict):
                _note(f"left out, for they are devices or pipes: {listed(left_out)}")


def _debugger(store: str, id: str, settings: Settings) -> Debugger:
    from obuild.builder.debug import Debugger
    from obuild.builder.provision import Machines
    from obuild.store.index import resolve

    opened = open_store(store)
    layer = resolve(opened, id, drafts=True)
    if opened.find(layer) is None:
        raise UsageError(
            f"{layer[:12]} is a step that is being made", hint=f"obuild log {layer[:12]} shows how far it is"
        )
    return Debugger(opened, Machines(opened, settings, _note), layer)


def _is_open(network: str) -> bool:
    if network not in ("", "none", "host"):
        raise UsageError(f"--network {network}: it can be host, or none")
    return network == "host"


def _note(text: str) -> None:
    print(f"obuild: {text}", file=sys.stderr, flush=True)


def _put(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _put_file(path: Path) -> None:
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            _put(data)
