"""Install a system onto an empty disk: what the kinds "installer" and "windows" share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from obuild.bases import disk_layout, key_slot, media, unattended
from obuild.bases.kind import Making, Recipe
from obuild.bases.unattended import Ends, Verdict
from obuild.errors import MachineError
from obuild.executors.qemu import devices, machine, ssh
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.devices import Bus
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Kernel, Nvram, Shape
from obuild.guests.profile import NVRAM, Card
from obuild.host import qemu_img

#: How long the installed system may take to answer SSH, in seconds. The first boot is slow.
PROOF_TIME = 900.0


def install(
    recipe: Recipe,
    out: Path,
    making: Making,
    *,
    work: Path,
    read: list[tuple[Path, Bus]],
    kernel: Kernel | None = None,
    memory: int,
    timeout: float,
    judge: Callable[[Machine, str], Verdict],
    ends: Ends = "poweroff",
    reboots: int = 0,
    press: int = 0,
    tpm: bool = False,
    verify: bool = True,
) -> Card:
    """Run an installer from the media `read`, or from `kernel`, and make the image at `out` from its disk.

    Returns the card of the image.

    UEFI's variables are laid beside `out`. With `tpm`, the machine has a TPM, whose content is not kept. With
    `verify`, the installed system must answer SSH. For the other options, see `unattended.run`. MachineError or
    UsageError if the installation failed.
    """
    disk = work / "disk.qcow2"
    shape = unattended.shape_of(recipe.card, making, memory=memory, boot_time=PROOF_TIME)
    shape = shape._replace(nvram=_new_nvram(shape, work), tpm=work / "tpm" if tpm else None)
    qemu_img.create_empty(disk, size=recipe.size)
    installer = shape._replace(kernel=kernel)
    unattended.run(
        recipe.name,
        installer,
        disk,
        making,
        extra=media.argv(installer, read),
        timeout=timeout,
        ends=ends,
        reboots=reboots,
        press=press,
        screen=True,
        judge=judge,
    )
    disk_layout.check_installed(recipe, disk, work)
    if verify:
        proof = shape._replace(nvram=shape.nvram._replace(kept=False) if shape.nvram else None)
        _prove_ssh(recipe.name, proof, disk, making, login=recipe.card.login)
    if shape.nvram:
        shape.nvram.file.replace(out.with_suffix(NVRAM))
    card = key_slot.clear(recipe.name, disk, recipe.card, making)
    unattended.pack(recipe.name, disk, out, making)
    return card


def _new_nvram(shape: Shape, work: Path) -> Nvram | None:
    """Create a variable store for a machine with UEFI: the installer writes there what to boot."""
    uefi = ARCHES[shape.arch].uefi
    if shape.firmware != "uefi" or uefi is None:
        return None
    file = work / "nvram"
    qemu_img.copy(Path(uefi[1]), file)
    file.chmod(0o644)
    return Nvram(file, kept=True)


def _prove_ssh(name: str, shape: Shape, disk: Path, making: Making, *, login: str) -> None:
    """Boot the installed system and log in by SSH with the store's key. MachineError if that fails.

    It boots on an overlay that is thrown away, so the image does not change.
    """
    overlay = disk.with_name("proof.qcow2")
    qemu_img.create_overlay(overlay, disk.name)
    picture = making.store.screens / f"{name}.png"
    more = devices.screen(shape.arch)
    making.say(f"{name}: booting the installed system to check that SSH answers")
    with machine.start(shape, overlay, making.scope, network=False, extra=more) as running:
        try:
            with ssh.connect(running, login=login, key=making.key):
                pass
        except MachineError as error:
            shown = unattended.pictured(running, picture)
            raise MachineError(
                f"{name}: cannot log in to the installed system: {error.message}{shown}",
                hint='does the installer give @public_key@ to that user? verify = "none" does not try',
            ) from error
    overlay.unlink()
