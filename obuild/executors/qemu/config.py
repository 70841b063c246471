"""How to make the machines of a base."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from obuild.executors.qemu.shape import Shape
from obuild.guests.all import GUESTS, Guest, Home
from obuild.host.process import CancelScope
from obuild.store.warm import Warm


@dataclass(frozen=True, slots=True)
class Config:
    """The machines' shape, the login and its private key, and the OS in them.

    `warm` is where they are saved, and `home` how a guest is kept warm; without these, each step boots a machine.
    `identity` is everything that a saved machine must have in common with a new one to be resumed. They all belong
    to the build's `scope`.
    """

    shape: Shape
    login: str
    key: Path
    guest: Guest = GUESTS["linux"]
    warm: Warm | None = None
    home: Home | None = None
    identity: str = ""
    scope: CancelScope = field(default_factory=CancelScope)
