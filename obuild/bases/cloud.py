"""Make a base image from a distribution's cloud image: boot it once, so that cloud-init sets it up.

The guest writes to an overlay, which has the size from the recipe; the result is packed into the base image.
docs/recipes.md says what is left in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from obuild.bases import (
    cloud_config,
    cloud_verdict,
    disk_layout,
    first_boot,
    key_slot,
    remote,
    seed,
    unattended,
    work_folder,
)
from obuild.bases.kind import Making, Recipe, digest
from obuild.bases.remote import Remote
from obuild.bases.sources import Sources
from obuild.bases.table import Table
from obuild.bases.unattended import Verdict
from obuild.errors import UsageError
from obuild.executors.qemu import devices, machine
from obuild.guests.profile import Card
from obuild.host import qemu_img

#: DHCP for every network card: the MAC address and the slot may differ in later machines.
NETWORK = """\
version: 2
ethernets:
  any:
    match: {name: "e*"}
    dhcp4: true
"""

#: The default of `timeout`. An emulated CPU needs hours to install many packages.
TIMEOUT = "4h"

#: The least memory of a machine while the image is made, in bytes.
_MEMORY = 2 << 30

#: How many lines of the console may follow a report there: a system says more when it powers off.
_REPORT_LINES = 500

#: How many lines of cloud-init's output an error shows.
_LINES = 30


@dataclass(frozen=True, slots=True)
class Options:
    """The table [cloud]. `timeout` is in seconds."""

    image: Remote
    user_data: str
    meta_data: str
    network_config: str
    timeout: float


def parse(table: Table, sources: Sources, card: Card) -> Options:
    """See `Kind.parse`."""
    texts = ("user-data", "meta-data", "network-config")
    table.only("image", *texts, *(f"{key}-file" for key in texts), "timeout")
    if card.os not in ("linux", *first_boot.LINES) or card.firmware != "bios":
        raise UsageError(
            f"{table.where}: a cloud image runs Linux, FreeBSD or OpenBSD, and boots by BIOS",
            hint='firmware = "bios"',
        )
    user, meta, network = (_text(table, sources, key) for key in texts)
    if user and card.os != "linux":
        _check_script(table, *user)
    elif user:
        cloud_config.check_user_data(table, *user)
    for named in (meta, network):
        if named:
            cloud_config.check_mapping(table, *named)
    return Options(
        image=remote.parse(table.table("image"), sources),
        user_data=user[1] if user else "#cloud-config\n" if card.os == "linux" else "#!/bin/sh\n",
        meta_data=meta[1] if meta else "",
        network_config=network[1] if network else NETWORK if card.os == "linux" else "",
        timeout=table.duration("timeout", default=TIMEOUT),
    )


def _check_script(table: Table, key: str, text: str) -> None:
    if not text.startswith("#!"):
        raise table.error(
            key, f"{key} must be a script for this system", hint="begin it with #!/bin/sh; see docs/recipes.md"
        )


def _text(table: Table, sources: Sources, key: str) -> tuple[str, str] | None:
    """Return a text from the recipe or from a file, with its key; None if there is neither."""
    file = f"{key}-file"
    if key in table and file in table:
        raise table.error(file, f"there are both {key} and {file}; remove one")
    if file in table:
        return file, sources.text(table, file)
    return (key, table.text(key)) if key in table else None


def unpinned(recipe: Recipe) -> str:
    """See `Kind.unpinned`."""
    options: Options = recipe.options
    return remote.unpinned(options.image)


def seeds(recipe: Recipe, public_key: str, folder: Path) -> tuple[Path, ...]:
    """See `Kind.seeds`."""
    path = folder / "seed.iso"
    path.write_bytes(seed.iso(seed_files(recipe, public_key)))
    return (path,)


def make(recipe: Recipe, out: Path, making: Making) -> Card:
    """See `Kind.make`."""
    options: Options = recipe.options
    unattended.check_host(recipe.card)
    with work_folder.folder_in(out.parent) as work:
        source = qemu_img.inspect(unattended.fetched(options.image, work / "image", making))
        disk_layout.check(source, recipe, work)
        disk = work / "disk.qcow2"
        qemu_img.create_grown(disk, source, size=recipe.size)
        (medium,) = seeds(recipe, making.public_key, work)
        _boot(recipe, disk, medium, making)
        card = key_slot.clear(recipe.name, disk, recipe.card, making)
        unattended.pack(recipe.name, disk, out, making)
    return card


def seed_files(recipe: Recipe, public_key: str) -> dict[str, bytes]:
    """Return the files on the seed: the user's texts, byte for byte, and our vendor-data; or our own user-data."""
    options: Options = recipe.options
    meta = options.meta_data or f"instance-id: obuild-{digest(recipe)[:16]}\nlocal-hostname: {recipe.name}\n"
    card = recipe.card
    texts = {"user-data": options.user_data, "meta-data": meta, "network-config": options.network_config}
    if card.os == "linux":
        texts["vendor-data"] = cloud_verdict.vendor_data(card.login, public_key)
    else:
        texts["user-data"] = first_boot.user_data(card.os, card.login, public_key, options.user_data)
    return {name: text.encode() for name, text in texts.items() if text}


def _boot(recipe: Recipe, disk: Path, medium: Path, making: Making) -> None:
    """Run the guest until it powers off by itself. MachineError unless cloud-init reports success."""
    options: Options = recipe.options
    arch = recipe.card.arch
    notes: tuple[str, ...] = ()

    def judge(running: machine.Machine, problem: str) -> Verdict:
        nonlocal notes
        if recipe.card.os != "linux":
            return Verdict(problem or first_boot.problem(running.console(_REPORT_LINES)))
        told = cloud_verdict.read(running.reported(), recipe.card.login)
        notes = told.notes
        why = problem or "; ".join(told.problems)
        if not why and not told.told:
            why = "the guest powered off before cloud-init was done"
        lines = [machine.printable(line) for line in told.output.splitlines() if line.strip()][-_LINES:]
        return Verdict(why, ["cloud-init's output ends with:", *lines] if lines else [])

    making.say(f"{recipe.name}: booting; cloud-init sets the guest up")
    unattended.run(
        recipe.name,
        unattended.shape_of(recipe.card, making, memory=_MEMORY, boot_time=options.timeout),
        disk,
        making,
        extra=[*devices.reporting(arch, cloud_verdict.PORT), *devices.medium(arch, 1, medium, "disk")],
        timeout=options.timeout,
        judge=judge,
    )
    for note in notes:
        making.say(f"{recipe.name}: cloud-init says: {note}")
