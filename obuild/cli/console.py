"""What every command has in common: its options, how it opens the store, how it prints, how it ends."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from obuild.cli import text as ui
from obuild.errors import ObuildError, OutputError, UsageError
from obuild.host import streams
from obuild.host.regular import NotAFile

if TYPE_CHECKING:
    from obuild.executors.qemu.shape import Settings
    from obuild.store.layers import Store

MACHINE = "Machine"

#: The largest spec or secret that is read, in bytes.
LARGEST = 64 << 20

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="OBUILD_STORE",
        metavar="KIND:PATH",
        help="Where layers, caches and base images are kept, for example qemu:/data. "
        "A build makes it, in a new or an empty folder.",
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
        rich_help_panel=MACHINE,
        help="How guests run: KVM, or emulated (tcg). auto is KVM if it really runs a guest.",
    ),
]
MemoryOption = Annotated[
    str,
    typer.Option(
        "--qemu-memory",
        metavar="SIZE",
        rich_help_panel=MACHINE,
        help="Memory of each machine, in GiB or as 512M. [default: 2, or what the base needs]",
    ),
]
CpusOption = Annotated[
    int,
    typer.Option(
        "--qemu-cpus", metavar="N", min=1, max=255, rich_help_panel=MACHINE, help="CPUs of each machine."
    ),
]
BootOption = Annotated[
    float,
    typer.Option(
        "--qemu-boot-time",
        metavar="SECONDS",
        min=0.1,
        rich_help_panel=MACHINE,
        help="How long a guest may take to boot, and to power off.",
    ),
]
OsOption = Annotated[
    str,
    typer.Option(
        "--qemu-guest-os",
        metavar="OS",
        rich_help_panel=MACHINE,
        help="linux, windows, openbsd or freebsd. [default: as the base's card says]",
    ),
]
ArchOption = Annotated[
    str,
    typer.Option(
        "--qemu-guest-arch",
        metavar="ARCH",
        rich_help_panel=MACHINE,
        help="[default: as the base's card says]",
    ),
]
VmOption = Annotated[
    str,
    typer.Option(
        "--vm",
        metavar="auto|warm|boot",
        rich_help_panel=MACHINE,
        help="Whether machines last from step to step, and are saved and resumed (warm), or each step boots one. "
        "auto is warm for guests that can.",
    ),
]
BudgetOption = Annotated[
    str,
    typer.Option(
        "--warm-budget",
        metavar="SIZE",
        rich_help_panel=MACHINE,
        help="What all saved machines of the store may take on disk; 0 saves none.",
    ),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A layer's id; its first digits will do.")]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

Command = TypeVar("Command", bound=Callable[..., None])


def guarded(command: Command) -> Command:
    """End a command with a message and an exit code, never with a traceback."""

    @functools.wraps(command)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            if options.get("verbose"):
                log_commands()
            command(*args, **options)
            sys.stdout.flush()
        except OutputError as error:
            streams.forget_output()
            ui.report(error)
            raise typer.Exit(error.exit_code) from error
        except ObuildError as error:
            failed = command.__name__ == "build" and error.exit_code == 1
            ui.report(error, what="Build step failed:" if failed else "", file=str(options.get("spec") or ""))
            raise typer.Exit(error.exit_code) from error
        except BrokenPipeError as error:  # `obuild log … | head`
            streams.forget_output()
            raise typer.Exit(1) from error
        except NotAFile as error:
            hint = "`obuild fsck` tells what of the store is damaged, and `--repair` puts it right"
            ui.report(ObuildError(f"{error.filename}: {error.strerror}", hint=hint))
            raise typer.Exit(1) from error
        except OSError as error:
            ui.report(ObuildError(_words(error)))
            raise typer.Exit(2 if error.errno == errno.ENAMETOOLONG else 1) from error
        except KeyboardInterrupt as error:
            saved = "what was saved stays; the next build goes on from there"
            ui.report(ObuildError("interrupted", hint=saved if command.__name__ == "build" else ""))
            raise typer.Exit(130) from error

    return guarded  # type: ignore[return-value]  # functools.wraps keeps the signature that typer reads


def _words(error: OSError) -> str:
    """What an error of the system's says, without its number."""
    if error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror


def log_commands() -> None:
    import logging

    logging.basicConfig(format="obuild: [%(levelname)s] %(message)s", stream=sys.stderr)
    logging.getLogger("obuild").setLevel(logging.INFO)


def open_store(store: str, *, create: bool = False, sweep: bool = True) -> Store:
    from obuild.store.layers import Store

    kind, colon, path = store.partition(":")
    if not colon or not path:
        raise UsageError(f"--store={store} is not KIND:PATH", hint="for example --store=qemu:/data")
    if kind != "qemu":
        raise UsageError(f"unknown kind of store {kind!r} in --store={store}", hint="there is: qemu:PATH")
    return Store.open(Path(path), create=create, sweep=sweep)


def parse_bytes(option: str, text: str, *, default_unit: str = "") -> int:
    """What an option says in bytes. UsageError, with the option's name, if it is no size."""
    from obuild.guests.profile import parse_size

    try:
        return parse_size(text, default_unit=default_unit)
    except ValueError as error:
        what = "a number of GiB, or a size" if default_unit == "G" else "a number of bytes, or a size"
        raise UsageError(f"{option}: {error}", hint=f"{what} like 512M or 1.5G") from error


def lines() -> ui.Lines:
    return ui.Lines(sys.stdout.buffer, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)


def machine_settings(
    accel: str,
    memory: str,
    cpus: int,
    boot_time: float,
    guest_os: str,
    arch: str,
    vm: str = "auto",
    budget: str = "4G",
) -> Settings:
    """What the machine options say. UsageError for what no machine can be."""
    from obuild.executors.qemu.shape import Settings

    size = parse_bytes("--qemu-memory", memory, default_unit="G") if memory else 0
    if memory and not size:
        raise UsageError(f"--qemu-memory {memory}: a machine needs some")
    most = parse_bytes("--warm-budget", budget)
    return Settings(accel, size, cpus, boot_time, guest_os, arch, vm, most).checked()


def put(*lines: str) -> None:
    """Print lines, whatever bytes are in them and whatever the terminal's encoding."""
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def put_json(value: object) -> None:
    import json
    from dataclasses import asdict

    print(json.dumps(value, indent=2, default=asdict))


def read_spec(path: Path) -> bytes:
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not a spec", hint="-f takes the spec file")
    return read_file(path, f"the spec {path}")


def read_file(path: Path, name: str) -> bytes:
    """What is in a file that the user has named. UsageError if it cannot be read, or is endless."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error
    if len(data) > LARGEST:
        raise UsageError(f"{name} is larger than {LARGEST >> 20} MiB")
    return data


def say(text: str) -> None:
    """Tell at once."""
    put(text)
    sys.stdout.flush()
