"""A whole build: plan it, see that it can be done, then make its chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from obuild import base, process
from obuild.build import Builder
from obuild.errors import MachineError
from obuild.events import Event, Listener, Note, Output
from obuild.plan import Import, LayerId, plan
from obuild.shape import ARCHES, Settings
from obuild.spec import Run, Shell, Stage
from obuild.store import Store


def build(
    stage: Stage, *, source: Path, store: Store, settings: Settings, secrets: Mapping[str, bytes], tell: Listener
) -> LayerId:
    """Build a stage and return the id of its last layer.

    UsageError, before anything is built, for all that can be seen to be wrong; then as build.build.
    """

    def say(text: str) -> None:
        tell(Note(text))

    chain = plan(
        stage,
        source=source,
        find_base=lambda name: base.find(store, name, say=say),
        secrets=tuple(secrets),
    )
    shape = settings.shape(chain.base.card, "tcg")
    missing = [step for step in chain.steps if store.find(step.id) is None]
    if missing:
        process.require("qemu-img")
    if all(isinstance(step.action, Import) for step in missing):
        return Builder(store, None, tell).build(chain)
    from obuild import accel  # late: a cached build needs no machine
    from obuild.executors.qemu import Qemu

    process.require(ARCHES[shape.arch].binary)
    chosen = accel.choose(settings.accel, shape.arch, memo=store.state / "accel.json", note=say)
    kernel = base.kernel(store, chain.base)
    machine = replace(shape, accel=chosen, kernel=kernel)
    executor = Qemu(machine, chain.base.card.login, base.key_path(store, chain.base.card))
    return Builder(store, executor, tell, secrets).build(chain)


def healthcheck(store: Store, *, base_name: str, settings: Settings, tell: Listener) -> None:
    """Run one command on a base image, really, and remove its layer again. ObuildError if anything fails."""
    said = b""

    def listen(event: Event) -> None:
        nonlocal said
        if isinstance(event, Output):
            said += event.data
        tell(event)

    from uuid import uuid4

    from obuild import upkeep

    # no two checks are the same step, so that none is ever found in the store
    stage = Stage(base_name, (Shell(("/bin/sh", "-c")), Run(f"echo healthcheck # {uuid4()}")))
    made = build(stage, source=Path(), store=store, settings=settings, secrets={}, tell=listen)
    upkeep.delete(store, made, tell=lambda id: None)
    if b"healthcheck" not in said:
        raise MachineError("the guest ran the command but its output did not arrive")
