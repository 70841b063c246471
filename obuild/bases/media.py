"""Give an installer its answer files: on a CD, a disk or a floppy, or in its initrd."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from obuild.bases import cloud_config, seed
from obuild.bases.kind import File
from obuild.bases.scratch import cpio
from obuild.bases.sources import Sources, substitute
from obuild.bases.table import Table
from obuild.errors import UsageError, words
from obuild.executors.qemu import devices
from obuild.executors.qemu.devices import Bus
from obuild.executors.qemu.shape import Shape

#: Stands for the store's login key in every text that a recipe gives to an installer.
KEY = "@public_key@"

#: The most that the files of a seed may have in all, in bytes: they are kept in memory.
MOST = 64 << 20

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,16}")
_BUSES: tuple[Bus, ...] = ("disk", "cdrom", "floppy")


@dataclass(frozen=True, slots=True)
class Seed:
    """A medium, with its files sorted by path. A floppy is FAT, a CD and a disk are ISO 9660."""

    label: str
    bus: Bus
    files: tuple[tuple[str, bytes], ...]


def parse(table: Table, sources: Sources, arch: str, *, ends: str) -> Seed:
    """Read one [[KIND.seed]]. UsageError for a mistake."""
    table.only("label", "as", "folder", "files")
    label = table.match("label", _LABEL, hint="letters, digits, - and _; 16 at most", default=seed.LABEL)
    bus = next(bus for bus in _BUSES if bus == table.choice("as", _BUSES, default="disk"))
    if bus == "floppy" and (why := devices.floppy_drive(arch)):
        raise table.error("as", why, hint='as = "disk" or "cdrom"')
    if bus == "floppy" and len(label) > 11:
        raise table.error("label", f"label is {label!r}", hint="a floppy's has 11 characters at most")
    files = dict(_folder(table, sources)) if "folder" in table else {}
    texts = table.table("files")
    for name in texts:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts or str(path) != name:
            raise texts.error(name, f"{name!r} is not the path of a file on the medium")
        files[name] = texts.text(name).encode()
    if not files:
        raise table.error("files", "a seed needs files", hint='folder = "..." or a table [KIND.seed.files]')
    if sum(map(len, files.values())) > MOST:
        raise table.error("folder", f"the files of a seed may have {MOST >> 20} MiB in all")
    if label.lower() == seed.LABEL:
        key = "user-data" if "user-data" in texts else "folder"
        _check_user_data(texts if "user-data" in texts else table, key, files, ends)
    return Seed(label, bus, tuple(sorted(files.items())))


def _folder(table: Table, sources: Sources) -> list[tuple[str, bytes]]:
    """Read all files in a folder beside the recipe; variables are replaced in text files."""
    root = table.origin["folder"][0].folder / table.text("folder")
    if not root.is_dir():
        raise table.error("folder", f"folder: there is no folder {root}")
    found = []
    sources.files.append(root)
    for path in sorted(root.rglob("*")):
        sources.files.append(path)
        if not path.is_file():
            continue
        try:
            data = path.read_bytes() if path.stat().st_size <= MOST else bytes(MOST + 1)
            text = substitute(data.decode(), sources.variables)
            data = text.encode()
        except UnicodeDecodeError:
            pass
        except KeyError as error:
            raise table.error("folder", f"{path}: @{error.args[0]}@ is not a variable of this recipe") from None
        except OSError as error:
            raise table.error("folder", f"cannot read {path}: {words(error)}") from error
        found.append((path.relative_to(root).as_posix(), data))
    return found


def _check_user_data(table: Table, key: str, files: Mapping[str, bytes], ends: str) -> None:
    """UsageError for a cloud-config with which the installer would not end as the recipe says."""
    text = files.get("user-data", b"").decode(errors="replace").replace(KEY, "key")
    if not text.startswith("#cloud-config"):
        return
    install = cloud_config.check_mapping(table, key, text).get("install")
    if not isinstance(install, dict):
        return
    flag, other = ("poweroff", "reboot") if ends == "poweroff" else ("reboot", "poweroff")
    if install.get(flag, True) is not True:
        hint = f"write {flag}: true, or leave it out"
        raise table.error(
            key, f"user-data: install.{flag} is {install[flag]!r}: the installer would never end", hint=hint
        )
    if install.get(other, False) is not False:
        hint = f'leave it out, or write ends = "{other}" under [installer]'
        raise table.error(
            key, f"user-data: install.{other} is {install[other]!r}, and ends is {ends!r}", hint=hint
        )


def write(seeds: tuple[Seed, ...], public_key: str, work: Path) -> list[tuple[Path, Bus]]:
    """Write the media into the folder `work`."""
    made: list[tuple[Path, Bus]] = []
    for number, each in enumerate(seeds, 1):
        path = work / f"seed{number}.{'img' if each.bus == 'floppy' else 'iso'}"
        files = {name: with_key(data, public_key) for name, data in each.files}
        if each.bus == "floppy":
            folder = work / f"seed{number}"
            folder.mkdir()
            seed.floppy(path, files, label=each.label, work=folder)
        else:
            path.write_bytes(seed.iso(files, label=each.label))
        made.append((path, each.bus))
    return made


def argv(shape: Shape, media: list[tuple[Path, Bus]]) -> devices.Argv:
    """Return QEMU's options for the media of a machine. It may boot the first of them, if that is a CD.

    CDs come first: the number of a CD is its place. OVMF enables IDE only on its way to a boot loader, so a kernel
    that QEMU loads under UEFI finds no IDE drives (PIIX's IDETIM is 0).
    """
    ide = shape.firmware != "uefi" or shape.kernel is None
    ordered = sorted(media, key=lambda each: each[1] != "cdrom")
    line: devices.Argv = [*devices.GIVE_UP] if shape.arch == "x86_64" else []
    for number, (path, bus) in enumerate(ordered, 1):
        line += devices.medium(shape.arch, number, path, bus, boot=bus == "cdrom" and path == media[0][0], ide=ide)
    return line


def with_key(data: bytes, public_key: str) -> bytes:
    """Put the store's key in the place of @public_key@."""
    return data.replace(KEY.encode(), public_key.strip().encode())


def add_to_initrd(initrd: Path, files: tuple[File, ...], public_key: str) -> None:
    """Append an archive with files to an initrd. The kernel unpacks it over the first one."""
    read = {file.path: (file.mode, with_key(file.text.encode(), public_key)) for file in files}
    data = gzip.compress(cpio.archive(read), mtime=0)
    with initrd.open("r+b") as file:
        end = file.seek(0, 2)
        file.write(bytes(-end % 4) + data)


def check_cdroms(table: Table, number: int) -> None:
    """UsageError if there are more CDs than drives."""
    if number > devices.MOST_CDROMS:
        raise UsageError(
            f"{table.where}: a machine has {devices.MOST_CDROMS} CD drives, and the recipe needs {number}"
        )
