"""How the machines of one base are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from obuild.executors.qemu.shape import Shape
from obuild.guests.all import GUESTS, Guest, Home
from obuild.host.process import CancelScope
from obuild.store.warm import Warm


@dataclass(frozen=True, slots=True)
class Config:
    """Their shape, who logs in, with which private key, and the OS in them.

    `warm` is where they are saved, and `home` how a guest is kept; without them each step boots one.
    `identity` is all that a machine must have in common with a saved one to go on as it. `scope` is the build that
    they belong to.
    """

    shape: Shape
    login: str
    key: Path
    guest: Guest = GUESTS["linux"]
    warm: Warm | None = None
    home: Home | None = None
    identity: str = ""
    scope: CancelScope = field(default_factory=CancelScope)
