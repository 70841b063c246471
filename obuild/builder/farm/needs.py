"""What an order needs of a worker, and what a worker offers, as Dask's resources: numbers by name.

A task goes only to a worker that has enough of each. Most of them stand for yes or no; there are as many as slots,
so that they never run out. Memory does: it is counted in MiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from obuild.executors.settings import Settings
from obuild.guests.profile import Card
from obuild.version import VERSION

#: Whether the worker can work at the moment: 0 while its disk is full, for example.
FIT = "fit"

Resources = dict[str, float]


def of(card: Card, settings: Settings, executor: str) -> Resources:
    """What steps on a base with this card need."""
    needs: Resources = {
        FIT: 1,
        f"obuild-{VERSION}": 1,
        f"executor-{executor}": 1,
        f"arch-{settings.arch or card.arch}": 1,
        f"os-{settings.os or card.os}": 1,
    }
    if settings.accel == "kvm":
        needs["kvm"] = 1
    if executor != "native":
        needs["memory"] = settings.memory_for(card) >> 20
    return needs


def offered(
    slots: int, *, executor: str, arches: Iterable[str], systems: Iterable[str], kvm: bool, memory: int
) -> Resources:
    """What a worker has. `memory` is in bytes."""
    names = [FIT, f"obuild-{VERSION}", f"executor-{executor}"]
    names += [f"arch-{arch}" for arch in arches] + [f"os-{os}" for os in systems] + ["kvm"] * kvm
    return {**dict.fromkeys(names, float(slots)), "memory": memory >> 20}


def lacking(needs: Resources, workers: Iterable[Mapping[str, float]]) -> str:
    """Why none of these workers could ever do it, in words; "" if one could, when it is fit and free."""
    offers = list(workers)
    if not offers:
        return "there is no worker"
    lasting = {name: count for name, count in needs.items() if name != FIT}
    if any(all(offer.get(name, 0) >= count for name, count in lasting.items()) for offer in offers):
        return ""
    for name, count in lasting.items():
        if not any(offer.get(name, 0) >= count for offer in offers):
            return _words(name, count, offers)
    return "no worker has all of " + ", ".join(sorted(lasting))


def _words(name: str, count: float, offers: list[Mapping[str, float]]) -> str:
    kind, _, value = name.partition("-")
    if kind == "obuild":
        names = {name for offer in offers for name in offer}
        others = sorted(name.partition("-")[2] for name in names if name.startswith("obuild-"))
        return f"this is obuild {value}, and the workers run obuild {', '.join(others) or 'nothing'}"
    if kind == "memory":
        return f"no worker has {count:.0f} MiB of memory"
    if kind == "kvm":
        return "no worker has KVM"
    if kind == "executor":
        return f"no worker has a store that is {value}:…"
    return f"no worker is for {value} guests"
