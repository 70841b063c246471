"""Options that several commands share, each defined once."""

# Annotations are not kept as text here: typer would have to evaluate each one, in every cached build.

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import typer.core

from obuild.errors import UsageError

if TYPE_CHECKING:
    from obuild.executors.settings import Settings

MACHINE = "Machine"
FARM = "Farm"

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="OBUILD_STORE",
        metavar="KIND:PATH",
        show_default=False,
        help="Where layers, caches and base images are kept, for example qemu:/data. "
        "native:/data runs steps in containers instead of machines. "
        "A build creates it in a new or empty folder. [default: qemu:~/.local/share/obuild]",
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Log every external command, in a form to paste into a shell."),
]
SourceArgument = Annotated[str, typer.Argument(metavar="SOURCE", help="The folder that (copy …) copies from.")]
SpecOption = Annotated[
    str,
    typer.Option(
        "--file", "-f", metavar="SPEC", show_default=False, help="The spec. [default: SOURCE/obuild.spec]"
    ),
]
IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="A layer: its id, the first digits of its id, or a tag.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NetworkOption = Annotated[
    str, typer.Option("--network", metavar="host", help="Give the machine network access. [default: none]")
]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Talk to registries by http.")]
SignOption = Annotated[
    Path | None, typer.Option("--sign", metavar="KEY", help="Sign the layers there with this key.")
]
TrustOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust",
        metavar="PUBKEY",
        help="Take only layers that this key has signed. May be repeated: one of the keys is enough.",
    ),
]
FarmTlsOption = Annotated[
    Path | None,
    typer.Option(
        "--tls",
        envvar="OBUILD_TLS",
        metavar="FOLDER",
        rich_help_panel=FARM,
        show_default=False,
        help="The certificates for a tls:// scheduler, as `obuild key tls` makes them.",
    ),
]
FarmInsecureOption = Annotated[
    bool,
    typer.Option("--insecure", rich_help_panel=FARM, help="Use a tcp:// scheduler that is not on this computer."),
]
ReserveOption = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Before each step, prune the store if less than SIZE is free on its disk."),
]
MaxSizeOption = Annotated[
    str, typer.Option(metavar="SIZE", help="Before each step, prune the store if it takes more than SIZE.")
]
RemoteArgument = Annotated[
    str,
    typer.Argument(
        metavar="REMOTE", help="Where layers are shared: oci://HOST/REPOSITORY, s3://BUCKET/PREFIX or dir:PATH."
    ),
]
UserOption = Annotated[
    str,
    typer.Option("--user", "-u", metavar="UID[:GID]|NAME", help="The user. [default: that of the layer's step]"),
]


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine options, as given on the command line."""

    qemu_accel: Annotated[
        str,
        typer.Option(
            metavar="auto|kvm|tcg",
            rich_help_panel=MACHINE,
            help="How guests run: under KVM, or emulated (tcg). auto is KVM if a test guest runs under it.",
        ),
    ] = "auto"
    qemu_memory: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=MACHINE,
            help="Memory of each machine, in GiB or like 512M. [default: 2, or what the base needs]",
        ),
    ] = ""
    qemu_cpus: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=255, rich_help_panel=MACHINE, help="CPUs of each machine."),
    ] = 2
    qemu_boot_time: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            rich_help_panel=MACHINE,
            help="How long a guest may take to boot, and how long to power off.",
        ),
    ] = 180.0
    qemu_guest_os: Annotated[
        str,
        typer.Option(
            metavar="OS",
            rich_help_panel=MACHINE,
            help="linux; experimental: windows, openbsd, freebsd. [default: from the base's card]",
        ),
    ] = ""
    qemu_guest_arch: Annotated[
        str,
        typer.Option(
            metavar="ARCH",
            rich_help_panel=MACHINE,
            help="The guest's architecture. [default: from the base's card]",
        ),
    ] = ""

    def settings(self, *, vm: str = "auto", warm_budget: str = "4G") -> "Settings":
        """Return the settings. UsageError if a value is invalid."""
        from obuild.executors.settings import Settings

        size = parse_bytes("--qemu-memory", self.qemu_memory, default_unit="G") if self.qemu_memory else 0
        if self.qemu_memory and not size:
            raise UsageError(f"--qemu-memory {self.qemu_memory}: it must be greater than 0")
        return Settings(
            accel=self.qemu_accel,
            memory=size,
            cpus=self.qemu_cpus,
            boot_time=self.qemu_boot_time,
            os=self.qemu_guest_os,
            arch=self.qemu_guest_arch,
            vm=vm,
            warm_budget=parse_bytes("--warm-budget", warm_budget),
        ).checked()


Command = TypeVar("Command", bound=Callable[..., None])


def machine_options(command: Command) -> Command:
    """Give a command with a parameter `machine: Machine` an option for each field of Machine."""
    fields = inspect.signature(Machine, eval_str=True).parameters
    taken = inspect.signature(command, eval_str=True).parameters.values()
    expanded = [
        each.replace(kind=each.KEYWORD_ONLY)
        for parameter in taken
        for each in (fields.values() if parameter.annotation is Machine else (parameter,))
    ]

    @functools.wraps(command)
    def collected(**options: Any) -> None:
        machine = Machine(**{name: options.pop(name) for name in fields})
        command(machine=machine, **options)

    collected.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]  # typer reads it
    return collected  # type: ignore[return-value]


SysprepOption = Annotated[
    str | None,
    typer.Option(
        "--sysprep",
        metavar="[=LIST]",
        show_default=False,
        help="Clean a copy of the layer in a machine and export that. LIST picks operations, like "
        "-ssh-hostkeys,+zero; docs/exports.md has them.",
    ),
]


CompressionOption = Annotated[
    str, typer.Option(metavar="zstd|zlib|none", help="How qcow2 images are compressed, also in containers.")
]
SizeOption = Annotated[
    str, typer.Option(metavar="SIZE", help="Grow the disk, its last partition and the ext file system there.")
]
ShrinkOption = Annotated[
    bool, typer.Option("--shrink", help="Make the disk as small as its files allow, and 64 MiB.")
]
LabelOption = Annotated[
    list[str],
    typer.Option(
        metavar="KEY=VALUE",
        help="A label of a container image, such as instancetype.kubevirt.io/default-instancetype=u1.medium. "
        "May be repeated.",
    ),
]


class WithSysprep(typer.core.TyperCommand):
    """A command whose option --sysprep may stand alone; a value comes after an equals sign only."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        plain = ["--sysprep=" if arg == "--sysprep" else arg for arg in args[:end]]
        return super().parse_args(ctx, plain + args[end:])


def in_remote(words: list[str], command: str, *, least: int = 1) -> tuple[list[str], str]:
    """The names of layers, and the remote that follows them. UsageError if there are too few, or no remote."""
    from obuild.remotes.all import is_remote

    if not is_remote(words[-1]) or len(words) <= least:
        hint = f"obuild {command} pg16 oci://registry.example/team/layers"
        raise UsageError(f"{command} needs {'a layer and ' if least else ''}a remote, in this order", hint=hint)
    return words[:-1], words[-1]


def parse_bytes(option: str, text: str, *, default_unit: str = "") -> int:
    """Return the value of an option in bytes. UsageError, with the option's name, if it is no size."""
    from obuild.guests.profile import parse_size

    try:
        return parse_size(text, default_unit=default_unit)
    except ValueError as error:
        what = "a number of GiB, or a size" if default_unit == "G" else "a number of bytes, or a size"
        raise UsageError(f"{option}: {error}", hint=f"{what} like 512M or 1.5G") from error
