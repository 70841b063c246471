"""What orders need, and what workers offer."""

from __future__ import annotations

from typing import Any

import pytest

from obuild.builder.farm import needs
from obuild.executors.settings import Settings
from obuild.guests.profile import Card
from obuild.version import VERSION

OFFER = needs.offered(
    2, executor="qemu", arches=("x86_64",), systems=("linux", "windows"), kvm=False, memory=8 << 30
)


@pytest.mark.parametrize(
    ("card", "settings", "executor", "why"),
    [
        (Card(), Settings(), "qemu", ""),
        (Card(os="windows"), Settings(memory=8 << 30), "qemu", ""),
        (Card(memory=16 << 30), Settings(), "qemu", "no worker has 16384 MiB of memory"),
        (Card(memory=16 << 30), Settings(memory=1 << 30), "qemu", ""),
        (Card(arch="aarch64"), Settings(), "qemu", "no worker is for aarch64 guests"),
        (Card(), Settings(os="freebsd"), "qemu", "no worker is for freebsd guests"),
        (Card(), Settings(accel="kvm"), "qemu", "no worker has KVM"),
        (Card(memory=16 << 30), Settings(), "native", "no worker has a store that is native:…"),
    ],
)
def test_an_order_goes_to_a_worker_that_can_do_it(card: Card, settings: Settings, executor: str, why: str) -> None:
    assert needs.lacking(needs.of(card, settings, executor), [OFFER]) == why


@pytest.mark.parametrize(
    ("offers", "why"),
    [
        ([], "there is no worker"),
        ([{**OFFER, needs.FIT: 0}], ""),
        ([{}], f"this is obuild {VERSION}, and the workers run obuild nothing"),
        ([{**OFFER, "arch-x86_64": 0}], "no worker is for x86_64 guests"),
        ([{**OFFER, "kvm": 1, "memory": 1}, OFFER], "no worker has all of "),
    ],
)
def test_why_no_worker_can_do_it_is_said(offers: Any, why: str) -> None:
    wanted = needs.of(Card(), Settings(accel="kvm" if "all of" in why else "auto"), "qemu")
    found = needs.lacking(wanted, offers)
    assert found.startswith(why) if why else found == ""
