"""Which machine a step gets, and how it ends, with machines that only record what happens to them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from obuild.errors import MachineError, ObuildError
from obuild.events import Note, PhaseEnded, PhaseStarted
from obuild.executors.qemu.argv import Memory
from obuild.executors.qemu.boots import Boots
from obuild.executors.qemu.config import Config
from obuild.executors.qemu.provision import chain as open_chain
from obuild.executors.qemu.session import Session
from obuild.executors.qemu.shape import Shape
from obuild.executors.qemu.warm_chain import WarmChain
from obuild.guests.all import GUESTS, LACKING
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain, Step
from obuild.store.layers import Draft, Store
from obuild.store.warm import State, Warm
from tests.support.fakes import Heard

SHAPE = Shape(warm=True)

#: What happens with a guest without a saved machine, and with one.
BOOTED = ["boot to be saved, closed", "settle", "freeze", "save with its disk", "end"]
RESUMED = ["resume", "go on as it is, closed"]
SEALED = ["freeze", "seal", "save"]


@dataclass
class World:
    """The behaviour of machines. `seen` records what happened, and `heard` what the user was told."""

    seen: list[str] = field(default_factory=list)
    heard: Heard = field(default_factory=Heard)
    running: int = 0
    lacks: str = ""
    broken: str = ""
    boots: list[str] = field(default_factory=list)  # the answer to each freeze: "", or why a boot is needed
    knows: bool = True  # whether the guest gets its network without a boot
    heavy: bool = False
    not_resumed: list[Exception | None] = field(default_factory=list)
    not_saved: Exception | None = None
    stuck: dict[str, str] = field(default_factory=dict)  # what fails the next time, and with which message

    @property
    def notes(self) -> list[str]:
        return [note.text for note in self.heard.of(Note)]

    @property
    def phases(self) -> list[str]:
        """Return the phases that have ended, in order; each phase that began must have ended."""
        ended = [phase.phase for phase in self.heard.of(PhaseEnded)]
        assert sorted(ended) == sorted(phase.phase for phase in self.heard.of(PhaseStarted))
        return list(ended)

    def may_fail(self, what: str) -> None:
        if why := self.stuck.pop(what, ""):
            raise MachineError(why)

    @contextmanager
    def run(self, how: str) -> Iterator[FakeMachine]:
        """Make a machine."""
        self.seen.append(how)
        self.running += 1
        try:
            yield FakeMachine(self)
        finally:
            self.running -= 1
            self.seen.append("end")


@dataclass
class FakeMachine:
    """A running machine."""

    world: World

    @property
    def qmp(self) -> FakeMachine:
        return self

    def execute(self, command: str) -> None:
        assert command == "cont"

    def power_off(self) -> None:
        self.world.seen.append("power off")


@dataclass
class FakeLive:
    """A machine that can be kept warm."""

    machine: FakeMachine
    folder: Path
    file: Path | None
    shell: object = None
    layer: LayerId | None = None
    heavy: bool = False
    saves: bool = True

    @property
    def world(self) -> World:
        return self.machine.world

    def freeze(self) -> str:
        self.world.seen.append("freeze")
        self.world.may_fail("freeze")
        return self.world.boots.pop(0) if self.world.boots else ""

    def seal(self, draft: Draft) -> None:
        self.world.seen.append("seal")
        self.layer = draft.id

    def save(self, made: Path, disk: Path | None = None) -> None:
        self.world.seen.append("save with its disk" if disk else "save")
        made.mkdir()
        (made / "ram").write_text("memory")
        if self.world.not_saved:
            raise self.world.not_saved
        (made / "device").write_text("devices")
        if disk:
            (made / "disk.qcow2").write_bytes(disk.read_bytes())
        self.heavy = self.world.heavy

    def stands_on(self, draft: Draft) -> bool:
        return self.layer is not None and self.layer == draft.parent

    def go_on(self, draft: Draft | None, *, network: bool) -> bool:
        self.world.seen.append(f"go on {'on' if draft else 'as it is'}, {'open' if network else 'closed'}")
        if draft:
            draft.lay()
            self.world.may_fail("go on")
        self.layer = None
        return self.world.knows


@dataclass
class FakeConnection:
    """An SSH connection."""

    world: World

    def run(self, command: str, script: Callable[[str], bytes], output: Callable[[bytes], object]) -> int:
        assert script("MARK") == b"start MARK"
        self.world.seen.append("settle")
        output(f"{self.world.lacks or self.world.broken}\n".encode())
        return LACKING if self.world.lacks else 1 if self.world.broken else 0


class FakeHome:
    """The scripts of a guest."""

    def start(self, mark: str) -> bytes:
        return f"start {mark}".encode()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    @contextmanager
    def start(
        shape: Shape, image: Path, scope: CancelScope, *, network: bool, memory: Memory | None = None
    ) -> Iterator[FakeMachine]:
        assert (shape, image.exists()) == (SHAPE, True)
        assert memory in (None, Memory())
        how = "to be saved" if memory else "for one step"
        with world.run(f"boot {how}, {'open' if network else 'closed'}") as machine:
            yield machine

    @contextmanager
    def resumed(state: State, shape: Shape, draft: Draft, folder: Path, scope: CancelScope) -> Iterator[FakeLive]:
        assert (shape, folder.is_dir(), state.ram.read_text()) == (SHAPE, True, "memory")
        draft.lay()
        with world.run("resume") as machine:
            if error := world.not_resumed.pop(0) if world.not_resumed else None:
                raise error
            yield FakeLive(machine, folder, folder / "ram")

    @contextmanager
    def connect(machine: FakeMachine, *, login: str, key: Path) -> Iterator[FakeConnection]:
        assert (login, key) == ("debian", Path("/key"))
        yield FakeConnection(world)

    lay = Draft.lay

    def lay_anew(draft: Draft) -> None:
        with draft.image.open("rb") if draft.image.exists() else nullcontext() as before:
            lay(draft)  # what was there may be another machine's disk
            assert not before or not os.path.samestat(os.fstat(before.fileno()), draft.image.stat())

    monkeypatch.setattr(Draft, "lay", lay_anew)
    monkeypatch.setattr("obuild.executors.qemu.warm_chain.Lasting", FakeLive)
    monkeypatch.setattr("obuild.executors.qemu.snapshot.resumed", resumed)
    monkeypatch.setattr("obuild.executors.qemu.machine.start", start)
    monkeypatch.setattr("obuild.executors.qemu.ssh.connect", connect)
    return world


@dataclass
class Build:
    """Builds of one chain of steps on a base."""

    store: Store
    world: World
    steps: Sequence[Step]
    budget: int = 1 << 30
    scope: CancelScope = field(default_factory=CancelScope)

    def machines(self) -> AbstractContextManager[Boots | WarmChain]:
        warm = Warm(self.store, self.budget)
        config = Config(SHAPE, "debian", Path("/key"), GUESTS["linux"], warm, FakeHome(), "a machine", self.scope)
        return open_chain(config)

    def step(
        self,
        machines: Boots | WarmChain,
        number: int,
        act: Callable[[Session], object] = lambda session: None,
        *,
        network: bool = False,
    ) -> None:
        """Make a step as a build does; `act` is what happens in it."""
        step = self.steps[number]
        assert step.parent
        with (
            self.store.use(step.parent),
            self.store.claim(step.id),
            self.store.draft(step) as draft,
            machines.open(draft, network=network, tell=self.world.heard.tell.of_op(number, step.id)) as session,
        ):
            act(session)

    def all(self, *numbers: int) -> list[str]:
        """Make these steps in their own machines; return what happened."""
        self.world.seen.clear()
        with self.machines() as machines:
            for number in numbers:
                self.step(machines, number)
        return list(self.world.seen)

    def saved(self) -> list[int]:
        """Return the steps that have a state; 0 is the base."""
        return sorted(number for number, step in enumerate(self.steps) if step.id in self.store.states.ids())

    def clean(self) -> bool:
        """Return whether no machine is left."""
        states = self.store.states
        return not states.unfinished() and not any(self.store.result_tmp.iterdir())


@pytest.fixture
def build(store: Store, world: World, chain: Callable[[str], Chain]) -> Iterator[Build]:
    steps = chain("".join(f"(run (shell s{number}))" for number in range(4))).steps
    with store.claim(steps[0].id), store.draft(steps[0]) as draft:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", draft.image, "1M"], check=True)
    build = Build(store, world, steps)
    yield build
    assert build.clean()
    assert world.running == 0


def secret(session: Session) -> None:
    session.secret = True


def fail(session: Session) -> None:
    raise ObuildError("the step fails")


# -- the usual way


def test_a_machine_boots_once_is_saved_and_continues(build: Build) -> None:
    assert build.all(1, 2, 3) == [
        *(*BOOTED, *RESUMED, *SEALED),
        *("go on on, closed", *SEALED),
        *("go on on, closed", *SEALED, "end"),
    ]
    assert build.saved() == [0, 1, 2, 3]
    assert build.world.notes == []


def test_slow_phases_are_reported_with_their_step(build: Build) -> None:
    build.all(1, 2)
    first = ["waiting", "booting", "saving", "resuming", "sealing", "saving"]
    assert build.world.phases == [*first, "resuming", "sealing", "saving"]
    places = build.world.heard.at(PhaseEnded)
    assert {place.op for place in places[: len(first)]} == {1}
    assert {place.op for place in places[len(first) :]} == {2}


def test_a_phase_ends_even_if_it_fails(build: Build) -> None:
    build.world.not_saved = OSError("no room")
    build.world.not_resumed = [MachineError("it is bad")]
    with pytest.raises(ObuildError, match="the step fails"), build.machines() as machines:
        build.step(machines, 1, fail)
    assert build.world.phases == ["waiting", "booting", "saving", "resuming"]


def test_the_next_build_resumes_the_saved_machine(build: Build) -> None:
    build.all(1)
    assert build.all(2) == [*RESUMED, *SEALED, "end"]


def test_a_chain_that_skips_steps_resumes_the_machine_saved_there(build: Build) -> None:
    """As when the steps between are already in the store."""
    build.all(1, 2)
    other = build.steps[1]
    build.store.remove(build.steps[2].id, build.store.parents())
    with build.machines() as machines:
        build.world.seen.clear()
        build.step(machines, 2)
        build.store.remove(build.steps[2].id, build.store.parents())
        build.step(machines, 2)
    assert build.world.seen == [*RESUMED, *SEALED, "end", *RESUMED, *SEALED, "end"]
    assert other.id in build.store.states.ids()


def test_a_step_gets_the_network_that_it_asks_for(build: Build) -> None:
    with build.machines() as machines:
        build.step(machines, 1, network=True)
        build.step(machines, 2, network=True)
    assert [line for line in build.world.seen if line.startswith(("boot", "go on"))] == [
        "boot to be saved, closed",  # the saved machine has no network
        "go on as it is, open",
        "go on on, open",
    ]


def test_the_session_uses_the_resident_shell(build: Build) -> None:
    def look(session: Session) -> None:
        sessions.append(session)

    sessions: list[Session] = []
    with build.machines() as machines:
        build.step(machines, 1, look)
    (session,) = sessions
    assert session.login == "root"
    assert session.connection is None  # the fake's shell


def test_a_machine_with_a_large_delta_is_resumed_from_its_state(build: Build) -> None:
    build.world.heavy = True
    assert build.all(1, 2)[-6:] == [*RESUMED, *SEALED, "end"]


def test_a_state_is_published_only_once_its_layer_exists(build: Build) -> None:
    with build.machines() as machines:
        build.step(machines, 1)
        assert build.saved() == [0]
        build.step(machines, 2)
        assert build.saved() == [0, 1]
        build.store.remove(build.steps[2].id, build.store.parents())
    assert build.saved() == [0, 1]
    assert build.world.notes == []


def test_without_a_budget_the_machine_continues_but_is_never_saved(build: Build) -> None:
    build.budget = 0
    booted = ["boot to be saved, closed", "settle", "freeze", "go on as it is, closed"]
    assert build.all(1, 2) == [*booted, "freeze", "seal", "go on on, closed", "freeze", "seal", "end"]
    assert build.saved() == []


def test_a_machine_too_large_to_keep_is_not_saved_again(build: Build) -> None:
    build.budget = 1
    seen = build.all(1, 2)
    assert seen.count("save with its disk") == 1
    assert "save" not in seen
    assert build.saved() == []


def test_without_warm_or_home_each_step_boots(store: Store, build: Build) -> None:
    config = Config(SHAPE, "debian", Path("/key"))
    with open_chain(config) as machines:
        assert isinstance(machines, Boots)
        build.step(machines, 1)
        build.step(machines, 2, network=True)
    assert build.world.seen == [
        *("boot for one step, closed", "power off", "end"),
        *("boot for one step, open", "power off", "end"),
    ]


# -- guests that cannot be kept warm


def test_a_guest_that_lacks_something_is_used_for_one_step_then_each_step_boots(build: Build) -> None:
    build.world.lacks = "it has no dd"
    assert build.all(1, 2, 3) == [
        *("boot to be saved, closed", "settle", "power off", "end"),
        *("boot for one step, closed", "power off", "end") * 2,
    ]
    assert build.world.notes == [
        'this guest cannot be kept warm (it has no dd): each step boots it; warm = "no" in its card avoids this'
    ]
    assert build.saved() == []


def test_a_guest_that_lacks_something_boots_again_for_a_step_with_network(build: Build) -> None:
    build.world.lacks = "it has no dd"
    with build.machines() as machines:
        build.step(machines, 1, network=True)
    assert build.world.seen == [
        *("boot to be saved, closed", "settle", "end"),
        *("boot for one step, open", "power off", "end"),
    ]


def test_a_guest_that_cannot_freeze_after_booting_is_treated_alike(build: Build) -> None:
    build.world.boots = ["a file system cannot be frozen"]
    assert build.all(1, 2) == [
        *("boot to be saved, closed", "settle", "freeze", "power off", "end"),
        *("boot for one step, closed", "power off", "end"),
    ]
    assert "(a file system cannot be frozen)" in build.world.notes[0]


def test_a_guest_that_cannot_be_prepared_boots_for_each_step(build: Build) -> None:
    build.world.broken = "sh: disaster"
    assert build.all(1)[-2:] == ["power off", "end"]
    (note,) = build.world.notes
    assert "cannot be kept warm (preparing it failed: sh: disaster)" in note


def test_a_guest_that_does_not_answer_freeze_boots_for_each_step(build: Build) -> None:
    build.world.stuck = {"freeze": "the guest did not freeze its disks in time"}
    assert build.all(1)[-4:] == ["end", "boot for one step, closed", "power off", "end"]
    (note,) = build.world.notes
    assert "cannot be kept warm (the guest did not freeze its disks in time)" in note


def test_a_machine_that_died_between_steps_is_replaced_by_its_saved_state(build: Build) -> None:
    build.world.stuck = {"go on": "QEMU is gone"}
    seen = build.all(1, 2)
    at = seen.index("go on on, closed")
    assert seen[at + 1 : at + 4] == ["end", *RESUMED]
    assert build.world.notes == ["the machine cannot continue (QEMU is gone); starting another"]


def test_a_guest_that_needs_a_boot_for_its_network_gets_one(build: Build) -> None:
    build.all(1)
    build.world.knows = False
    assert build.all(2, 3) == [
        *(*RESUMED, "end", "boot for one step, closed", "power off", "end"),
        *("boot to be saved, closed", "settle", "freeze", "save with its disk", "end", *RESUMED, "end"),
        *("boot for one step, closed", "power off", "end"),
    ]
    assert build.world.notes == ["the guest must boot to get its network"] * 2


# -- steps after which the machine cannot continue


def test_a_machine_that_has_seen_a_secret_is_powered_off_and_never_saved(build: Build) -> None:
    with build.machines() as machines:
        build.step(machines, 1)
        build.world.seen.clear()
        build.step(machines, 2, secret)
        assert build.world.seen == ["go on on, closed", "power off", "end"]
        build.step(machines, 3)
    assert build.world.seen[3:] == [*BOOTED, *RESUMED, *SEALED, "end"]
    assert build.world.notes == []


def test_a_step_with_secrets_leaves_no_state(build: Build) -> None:
    with build.machines() as machines:
        build.step(machines, 1)
        build.step(machines, 2, secret)
    assert build.saved() == [0, 1]


def test_a_step_that_changes_what_a_boot_sets_up_ends_with_a_power_off(build: Build) -> None:
    build.world.boots = ["", "/etc/fstab has changed"]
    assert build.all(1) == [*BOOTED, *RESUMED, "freeze", "power off", "end"]
    assert build.world.notes == ["the next step needs a boot: /etc/fstab has changed"]
    assert build.saved() == [0]
    assert build.all(2) == [*BOOTED, *RESUMED, *SEALED, "end"]


def test_a_failing_step_leaves_the_state_of_its_parent(build: Build) -> None:
    with build.machines() as machines:
        build.step(machines, 1)
        with pytest.raises(ObuildError, match="the step fails"):
            build.step(machines, 2, fail)
        assert build.saved() == [0, 1]
        assert build.world.seen[-2:] == ["go on on, closed", "end"]
        build.world.seen.clear()
        build.step(machines, 2)
    assert build.world.seen == [*RESUMED, *SEALED, "end"]


def test_the_machine_of_a_scratch_draft_is_thrown_away(build: Build) -> None:
    def look(number: int) -> None:
        with build.store.scratch(build.steps[number].id) as draft, machines.open(draft, network=False):
            pass

    with build.machines() as machines:
        look(0)
        assert build.world.seen == [*BOOTED, *RESUMED, "end"]
        build.world.seen.clear()
        look(0)
        assert build.world.seen == [*RESUMED, "end"]
        build.step(machines, 1)
        build.world.seen.clear()
        look(1)
        assert build.world.seen == ["go on on, closed", "end"]
    assert build.saved() == [0, 1]


# -- failures


@pytest.mark.parametrize(
    "error", [MachineError("it is bad\nindeed"), OSError("it is bad"), ValueError("it is bad")]
)
def test_a_state_that_cannot_be_resumed_is_noted_removed_and_replaced(build: Build, error: Exception) -> None:
    build.all(1)
    build.world.not_resumed = [error]
    assert build.all(2) == ["resume", "end", *BOOTED, *RESUMED, *SEALED, "end"]
    layer = build.steps[1].id[:12]
    assert build.world.notes == [f"the saved machine of layer {layer} cannot be used (it is bad); booting"]
    assert build.saved() == [0, 1, 2]  # the machine that was booted is saved in its place


def test_if_a_new_state_cannot_be_resumed_either_each_step_boots(build: Build) -> None:
    build.world.not_resumed = [MachineError("no"), MachineError("no")]
    assert build.all(1, 2) == [*BOOTED, "resume", "end", *("boot for one step, closed", "power off", "end") * 2]
    assert build.saved() == []


def test_a_cancelled_build_removes_no_state(build: Build) -> None:
    """Its QEMU may be gone because of the cancellation."""
    build.all(1)
    build.world.not_resumed = [MachineError("QEMU is gone")]
    build.scope.cancel()
    with pytest.raises(MachineError, match="QEMU is gone"):
        build.all(2)
    assert build.saved() == [0, 1]
    assert build.world.notes == []


def test_a_machine_that_cannot_be_saved_continues(build: Build) -> None:
    build.world.not_saved = OSError("no room\nat all")
    seen = build.all(1, 2)
    assert seen[:4] == BOOTED[:4]
    assert seen[4:] == ["go on as it is, closed", "freeze", "seal", "go on on, closed", "freeze", "seal", "end"]
    assert build.world.notes == ["this machine cannot be saved: no room"]
    assert build.saved() == []


def test_an_incomplete_state_is_removed(build: Build) -> None:
    build.world.not_saved = MachineError("QEMU refused it")
    with build.machines() as machines:
        build.step(machines, 1)
        assert list(build.store.states.running.glob("*/made")) == []


def test_only_one_build_boots_a_layer_and_the_others_resume(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    boots, resumers = Warm.boots, Build(build.store, World(), build.steps)

    @contextmanager
    def later(warm: Warm, layer: LayerId) -> Iterator[None]:
        """Get the lock just after another build has had it."""
        with monkeypatch.context() as patch:
            patch.setattr(Warm, "boots", boots)
            with build.store.use(layer), resumers.machines() as machines:
                step = build.steps[2]
                assert step.parent
                with build.store.scratch(layer) as draft, machines.open(draft, network=False):
                    pass
        with boots(warm, layer):
            yield

    monkeypatch.setattr(Warm, "boots", later)
    assert build.all(1) == [*BOOTED, *RESUMED, "end", *RESUMED, *SEALED, "end"]


def test_an_interrupted_chain_keeps_what_it_has_saved(build: Build) -> None:
    def interrupt(session: Session) -> None:
        raise KeyboardInterrupt

    with build.machines() as machines:
        build.step(machines, 1)
        with pytest.raises(KeyboardInterrupt):
            build.step(machines, 2, interrupt)
    assert build.saved() == [0, 1]


def test_a_base_is_not_a_step(build: Build) -> None:
    with build.machines() as machines:
        draft: Any = SimpleNamespace(id=build.steps[0].id, parent=None, image=build.store.root / "none")
        with pytest.raises(TypeError, match="imported"), machines.open(draft, network=False):
            pass
