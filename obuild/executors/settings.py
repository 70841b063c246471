"""The user's settings for machines."""

from __future__ import annotations

from typing import NamedTuple

from obuild.errors import UsageError
from obuild.guests.profile import MOST_MEMORY, OSES, Card, arch_named

SMALLEST_MEMORY = 32 << 20
DEFAULT_MEMORY = 2 << 30
DEFAULT_BUDGET = 4 << 30

#: The longest time to wait for a guest to boot or power off, in seconds: a day.
LONGEST_BOOT = 86_400.0

VM = ("auto", "boot", "warm")


class Settings(NamedTuple):
    """Settings for machines. "" and 0 mean the value from the base image's card. `memory` is in bytes.

    `vm` is how steps get their machines: `boot` boots one for each step, `warm` continues in running and saved
    ones, `auto` is warm where the guest supports it. All saved machines together take at most `warm_budget` bytes.
    """

    accel: str = "auto"
    memory: int = 0
    cpus: int = 2
    boot_time: float = 180.0
    os: str = ""
    arch: str = ""
    vm: str = "auto"
    warm_budget: int = DEFAULT_BUDGET

    def memory_for(self, card: Card) -> int:
        """The memory of a machine for a base image with this card, in bytes."""
        return self.memory or max(DEFAULT_MEMORY, card.memory)

    def checked(self) -> Settings:
        """Return these settings. UsageError if a value is invalid."""
        if self.accel not in ("auto", "kvm", "tcg"):
            raise UsageError(f"unknown accelerator {self.accel!r}", hint="--qemu-accel auto, kvm or tcg")
        if self.memory and self.memory < SMALLEST_MEMORY:
            raise UsageError(f"--qemu-memory: a machine needs at least {SMALLEST_MEMORY >> 20}M")
        if self.memory > MOST_MEMORY:
            raise UsageError(f"--qemu-memory: no machine can have more than {MOST_MEMORY >> 40}T")
        if not 0 < self.boot_time <= LONGEST_BOOT:  # also refuses nan
            raise UsageError(f"--qemu-boot-time {self.boot_time:g}: it can be up to {LONGEST_BOOT:g} seconds")
        if self.os not in ("", *OSES):
            raise UsageError(f"unknown guest OS {self.os!r}", hint=f"--qemu-guest-os {', '.join(OSES)}")
        if self.vm not in VM:
            raise UsageError(f"--vm {self.vm}: it can be {', '.join(VM)}")
        if self.arch:
            arch_named(self.arch)
        return self
