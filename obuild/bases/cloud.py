"""Make a base image from a distribution's cloud image: boot it once, so that cloud-init sets it up.

The guest writes to an overlay, which has the size from the recipe; the result is packed into the base image.
docs/recipes.md says what is left in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from obuild.bases import cloud_config, cloud_verdict, disk_layout, remote, seed, unattended, work_folder
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
    if card.os != "linux" or card.firmware != "bios":
        raise UsageError(f"{table.where}: a cloud image runs Linux and boots by BIOS", hint='firmware = "bios"')
    user, meta, network = (_text(table, sources, key) for key in texts)
    if user:
        cloud_config.check_user_data(table, *user)
    for named in (meta, network):
        if named:
            cloud_config.check_mapping(table, *named)
    return Options(
        image=remote.parse(table.table("image"), sources),
        user_data=user[1] if user else "#cloud-config\n",
        meta_data=meta[1] if meta else "",
        network_config=network[1] if network else NETWORK,
        timeout=table.duration("timeout", default=TIMEOUT),
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


def make(recipe: Recipe, out: Path, making: Making) -> Card:
    """See `Kind.make`."""
    options: Options = recipe.options
    unattended.check_host(recipe.card)
    with work_folder.folder_in(out.parent) as work:
        source = qemu_img.inspect(unattended.fetched(options.image, work / "image", making))
        disk_layout.check(source, recipe, work)
        disk, medium = work / "disk.qcow2", work / "seed.iso"
        qemu_img.create_grown(disk, source, size=recipe.size)
        medium.write_bytes(seed.iso(seed_files(recipe, making.public_key)))
        _boot(recipe, disk, medium, making)
        unattended.pack(recipe.name, disk, out, making)
    return recipe.card


def seed_files(recipe: Recipe, public_key: str) -> dict[str, bytes]:
    """Return the files on the seed: the user's texts, byte for byte, and our vendor-data."""
    options: Options = recipe.options
    meta = options.meta_data or f"instance-id: obuild-{digest(recipe)[:16]}\nlocal-hostname: {recipe.name}\n"
    texts = {
        "user-data": options.user_data,
        "meta-data": meta,
        "network-config": options.network_config,
        "vendor-data": cloud_verdict.vendor_data(recipe.card.login, public_key),
    }
    return {name: text.encode() for name, text in texts.items()}


def _boot(recipe: Recipe, disk: Path, medium: Path, making: Making) -> None:
    """Run the guest until it powers off by itself. MachineError unless cloud-init reports success."""
    options: Options = recipe.options
    arch = recipe.card.arch
    notes: tuple[str, ...] = ()

    def judge(running: machine.Machine, problem: str) -> Verdict:
        nonlocal notes
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
