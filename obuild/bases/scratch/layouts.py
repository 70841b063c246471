"""How the disk of an image from scratch is laid out: one module for each layout, and a row here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from obuild.bases.kind import File, Recipe
from obuild.bases.scratch import gpt_uki, gpt_uki_verity, mbr_grub


class Layout(Protocol):
    """A module that makes a disk bootable whose root is in place (see `root_partition`)."""

    #: The values of `firmware` in the card that can boot such a disk. The first is the usual one.
    FIRMWARES: tuple[str, ...]

    #: Packages that the image needs besides those of the recipe.
    PACKAGES: tuple[str, ...]

    #: The files that `take` and `finish` write, in the folder where the image is made.
    TAKEN: tuple[str, ...]

    def check_host(self, recipe: Recipe) -> None:
        """UsageError if the disk cannot be made here, or what makes it is not installed."""
        ...

    def root_size(self, size: int) -> int:
        """The size of the root partition on a disk of `size`, both in bytes."""
        ...

    def files(self, recipe: Recipe) -> tuple[File, ...]:
        """Files that the boot loader needs in the root."""
        ...

    def take(self, recipe: Recipe) -> str:
        """Lines of shell that take files out of "$root" into {here}. They run before the recipe's script."""
        ...

    def finish(self, recipe: Recipe) -> str:
        """Lines of shell that run when the root is complete: {here}/bare, without what is mounted on it."""
        ...

    def make_bootable(self, recipe: Recipe, disk: Path, work: Path) -> None:
        """Write everything outside the root partition of the raw `disk`. The root stays as it is.

        `work` has what the hook has taken out of the root.
        """
        ...

    def beside(self, recipe: Recipe, work: Path) -> Mapping[str, Path]:
        """Files that belong beside the image, by suffix. They are made in `work`, after `make_bootable`."""
        ...


LAYOUTS: dict[str, Layout] = {
    "mbr-grub": mbr_grub,
    "gpt-uki": gpt_uki,
    "gpt-uki-verity": gpt_uki_verity,
}


def of(recipe: Recipe) -> Layout:
    """Return the layout of a recipe of the kind `scratch`."""
    return LAYOUTS[recipe.options.layout]
