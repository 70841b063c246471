"""A whole build: what is refused before it starts, and what it needs."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from obuild import spec
from obuild.bases import making
from obuild.builder import engine
from obuild.errors import MachineError, StepFailed, StoreError, UsageError
from obuild.events import Hit, Note, Output, Place, Planned, Saved
from obuild.executors.qemu import kvm
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.settings import Settings
from obuild.guests.all import GUESTS
from obuild.host.locks import Claim
from obuild.plan import tree
from obuild.plan.keys import LayerId
from obuild.plan.steps import Base
from obuild.store import removal
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, Heard, Run, ScriptedGuests

Build = Callable[..., LayerId]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def build(store: Store, heard: Heard, tmp_path: Path) -> Build:
    def run(
        ops: str,
        *,
        base: str = "tiny",
        settings: Settings | None = None,
        secrets: Mapping[str, bytes] | None = None,
    ) -> LayerId:
        stage = spec.parse(f"((from {base}) {ops})".encode())
        settings = settings or Settings(accel="tcg")
        return engine.Engine(tmp_path, store, settings, heard, secrets or {}).build(stage)

    return run


@pytest.mark.usefixtures("tiny")
def test_machines_follow_the_card_and_the_settings(tiny: Path, build: Build, guests: ScriptedGuests) -> None:
    tiny.with_suffix(".toml").write_text('login = "debian"\nmemory = "4G"\n')
    build("(run (shell a))")
    (config,) = guests.configs
    assert (config.shape.accel, config.shape.memory, config.login) == ("tcg", 4 << 30, "debian")
    assert guests.executor.seen == ["open", "a", "sealed"]


@pytest.mark.parametrize(
    ("card", "settings", "os"),
    [
        ("linux", Settings(accel="tcg"), "linux"),
        ("windows", Settings(accel="tcg"), "windows"),
        ("linux", Settings(accel="tcg", os="freebsd"), "freebsd"),
    ],
)
def test_the_os_is_that_of_the_card_unless_the_settings_name_one(
    tiny: Path, build: Build, guests: ScriptedGuests, card: str, settings: Settings, os: str
) -> None:
    tiny.with_suffix(".toml").write_text(f'os = "{card}"\n')
    build("(run (shell a))", settings=settings)
    assert guests.configs[0].guest is GUESTS[os]


@pytest.mark.usefixtures("tiny")
def test_a_cached_build_needs_neither_machine_nor_qemu(
    build: Build, executor: FakeExecutor, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = build("(run (shell a))")
    executor.seen.clear()
    heard.clear()
    monkeypatch.setattr(shutil, "which", lambda program, path: None)
    assert build("(run (shell a))", settings=Settings(accel="kvm")) == last
    assert executor.seen == []
    assert len(heard.of(Hit)) == 2


@pytest.mark.usefixtures("tiny")
def test_a_layer_without_its_log_is_reported_before_another_stage_is_built(
    store: Store, executor: FakeExecutor, heard: Heard, tmp_path: Path, build: Build
) -> None:
    last = build("(run (shell a))")
    (store.result / last / "log").unlink()
    executor.seen.clear()
    stage = spec.parse(b"((build b ((from tiny) (run (shell b)))) (from tiny) (run (shell a)))")
    with pytest.raises(StoreError, match=f"layer {last} is damaged: its log cannot be read"):
        engine.Engine(tmp_path, store, Settings(accel="tcg"), heard).build(stage)
    assert executor.seen == []


@pytest.mark.usefixtures("tiny")
def test_importing_a_base_needs_no_machine(build: Build, executor: FakeExecutor, heard: Heard) -> None:
    build("")
    assert executor.seen == []
    assert len(heard.of(Saved)) == 1


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("ops", "base", "settings", "why"),
    [
        ("(run (shell a))", "none", Settings(), "unknown base image 'none'"),
        ("(run (secrets (s (target /s))) (shell a))", "tiny", Settings(), "no value for the secret 's'"),
        ("(copy (src none) (dst /d/))", "tiny", Settings(), "not found"),
        ("(user (uid 0) (gid 0))", "windows", Settings(), "by name"),
        ("(user (uid 0) (gid 0))", "tiny", Settings(os="windows"), "by name"),
        ("(run (shell a))", "tiny", Settings(accel="kvm"), "KVM cannot be used: it is broken"),
    ],
)
def test_mistakes_are_refused_before_anything_is_built(
    store: Store,
    build: Build,
    executor: FakeExecutor,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    ops: str,
    base: str,
    settings: Settings,
    why: str,
) -> None:
    (store.base_image / "windows.qcow2").write_bytes(tiny.read_bytes())
    (store.base_image / "windows.toml").write_text('os = "windows"\n')
    monkeypatch.setattr(kvm, "probe", lambda arch: "it is broken")
    with pytest.raises(UsageError, match=why):
        build(ops, base=base, settings=settings)
    assert executor.seen == []
    assert store.layers() == []


@pytest.mark.usefixtures("tiny")
def test_a_missing_qemu_is_reported_before_anything_is_built(
    store: Store, build: Build, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda program, path: None if program.startswith("qemu-system") else which(program)
    )
    with pytest.raises(UsageError, match="qemu-system-x86_64 is not installed"):
        build("(run (shell a))")
    assert store.layers() == []


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("arch", [arch for arch, row in ARCHES.items() if row.firmware])
def test_missing_firmware_is_reported_with_its_package_before_anything_is_built(
    store: Store, build: Build, arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ARCHES[arch]._replace(binary="true", firmware=("-bios", str(tmp_path / "none.fd")))
    monkeypatch.setitem(ARCHES, arch, row)
    with pytest.raises(UsageError, match=r"none\.fd is missing") as caught:
        build("(run (shell a))", settings=Settings(arch=arch))
    assert caught.value.hint == f"apt install {row.firmware_package}"
    assert store.layers() == []


@pytest.mark.usefixtures("tiny")
def test_falling_back_to_emulation_is_noted(
    build: Build, guests: ScriptedGuests, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "probe", lambda arch: "it is broken")
    build("(run (shell a))", settings=Settings())
    assert guests.configs[0].shape.accel == "tcg"
    assert any("it is broken" in event.text for event in heard if isinstance(event, Note))


@pytest.mark.usefixtures("tiny")
def test_secrets_reach_the_step(build: Build, executor: FakeExecutor) -> None:
    def act(run: Run) -> int:
        assert run.secrets == {"s": b"value"}
        return 0

    executor.script = {"a": act}
    build("(run (secrets (s (target /s))) (shell a))", secrets={"s": b"value"})
    assert executor.seen[-1] == "sealed"


def check(store: Store, heard: Heard) -> None:
    engine.healthcheck(store, base_name="tiny", settings=Settings(accel="tcg"), tell=heard)


@pytest.mark.usefixtures("tiny")
def test_a_healthcheck_runs_each_time_and_leaves_no_step(
    store: Store, executor: FakeExecutor, heard: Heard
) -> None:
    check(store, heard)
    check(store, heard)
    assert executor.seen.count("sealed") == 2
    assert len([event for event in heard if isinstance(event, Output) and b"healthcheck" in event.data]) == 2
    assert len(store.layers()) == 1, "the base stays"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("status", "error"), [(0, MachineError), (1, StepFailed)])
def test_a_healthcheck_fails_if_its_command_fails_or_prints_nothing(
    store: Store, executor: FakeExecutor, heard: Heard, status: int, error: type[Exception]
) -> None:
    class Silent(dict[str, object]):
        def get(self, key: object, default: object = None) -> object:
            return lambda run: status

    executor.script = Silent()  # type: ignore[assignment]  # whatever the command is
    with pytest.raises(error):
        check(store, heard)
    assert len(store.layers()) == 1


STAGES = """((build dev ((from tiny) (run (shell {made}))))
             (from tiny) (copy (from (build dev)) (src /out) (dst /in/)) (run (shell after)))"""


@pytest.fixture
def stages(store: Store, heard: Heard, tmp_path: Path, tiny: Path) -> Callable[[str], LayerId]:
    def run(made: str) -> LayerId:
        stage = spec.parse(STAGES.format(made=made).encode())
        return engine.Engine(tmp_path, store, Settings(accel="tcg"), heard).build(stage)

    return run


def test_a_copy_from_a_build_reads_its_layer_once(
    executor: FakeExecutor, stages: Callable[[str], LayerId], store: Store
) -> None:
    executor.files = {"out": b"result"}
    last = stages("one")
    looked = ["open", "take /out", "sealed"]
    assert [line for line in executor.seen if "graft" not in line] == [
        *("open", "one", "sealed", *looked, "open", "sealed", "open", "after", "sealed")
    ]
    executor.seen.clear()
    assert stages("one") == last
    assert executor.seen == []
    assert not any(store.cache_tmp.iterdir())


def test_each_stage_is_planned_once_and_each_base_is_found_once(
    store: Store,
    executor: FakeExecutor,
    heard: Heard,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor.files = {"out": b"result"}
    (tmp_path / "file").touch()
    walked, found = [], []
    walk, find = tree.walk, making.find

    def counted_walk(
        root: Path, sources: Sequence[str], *, exclude: Sequence[str], rename: str | None
    ) -> tree.Tree:
        walked.append(sources)
        return walk(root, sources, exclude=exclude, rename=rename)

    def counted_find(store: Store, reference: str, **how: Any) -> Base:
        found.append(reference)
        return find(store, reference, **how)

    monkeypatch.setattr(tree, "walk", counted_walk)
    monkeypatch.setattr(making, "find", counted_find)
    text = STAGES.replace("(copy (from", "(copy (src file) (dst /x)) (copy (from").format(made="one")
    engine.Engine(tmp_path, store, Settings(accel="tcg"), heard).build(spec.parse(text.encode()))
    assert walked == [("file",)]
    assert found == ["tiny"]


def test_each_stage_reports_its_plan_first_and_again_when_all_ids_are_known(
    executor: FakeExecutor, heard: Heard, stages: Callable[[str], LayerId]
) -> None:
    executor.files = {"out": b"result"}
    last = stages("one")
    first, outer, again = heard.of(Planned)
    assert heard.at(Planned) == [Place("dev"), Place(""), Place("")]
    assert [event.what for event in heard.events[:2]] == [first, outer]
    base, made = first.steps
    assert (base.op, base.text, made.op, made.text) == (1, "(from tiny)", 2, "/: (run (shell one))")
    assert [(step.op, bool(step.id)) for step in outer.steps] == [(1, True), (2, False), (3, False)]
    assert [step.id for step in again.steps][::2] == [base.id, last]
    assert [step.text for step in again.steps] == [step.text for step in outer.steps]


def test_files_can_be_copied_from_a_build_of_another_system(
    store: Store, executor: FakeExecutor, heard: Heard, tiny: Path, tmp_path: Path
) -> None:
    (store.base_image / "windows.qcow2").write_bytes(tiny.read_bytes())
    (store.base_image / "windows.toml").write_text('os = "windows"\n')
    executor.files = {"out": b"result"}
    text = STAGES.replace("(from tiny)", "(from windows)", 1).format(made="one")
    engine.Engine(tmp_path, store, Settings(accel="tcg"), heard).build(spec.parse(text.encode()))
    assert "take /out" in executor.seen


@pytest.mark.usefixtures("tiny")
def test_an_invalid_source_in_a_build_is_refused_before_that_build_starts(
    store: Store, executor: FakeExecutor, heard: Heard, tmp_path: Path
) -> None:
    inner = "((from tiny) (copy (from (build dev)) (src ../x) (dst /x)))"
    text = f"((build dev ((from tiny) (run (shell a)))) (build two {inner}) (from tiny))"
    with pytest.raises(UsageError, match="not allowed"):
        engine.Engine(tmp_path, store, Settings(accel="tcg"), heard).build(spec.parse(text.encode()))
    assert executor.seen == []


def test_the_same_files_from_another_build_are_the_same_step(
    executor: FakeExecutor, stages: Callable[[str], LayerId]
) -> None:
    executor.files = {"out": b"result"}
    last = stages("one")
    executor.seen.clear()
    assert stages("two") == last
    assert executor.seen == ["open", "two", "sealed", "open", "take /out", "sealed"]
    executor.files = {"out": b"other"}
    assert stages("three") != last


def test_a_rebuilt_layer_is_read_again(
    executor: FakeExecutor, stages: Callable[[str], LayerId], store: Store
) -> None:
    executor.files = {"out": b"result"}
    last = stages("one")
    removal.clean(store, tell=lambda id: None)
    executor.files = {"out": b"other"}
    assert stages("one") != last


def test_stages_that_share_a_step_build_it_once(
    store: Store,
    tiny: Path,
    tmp_path: Path,
    executor: FakeExecutor,
    heard: Heard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are built side by side, and the second wants the step while the first is at it."""
    both = threading.Event()
    claim, wanted = store.claim, Counter[str]()

    def counted(id: LayerId, *, meanwhile: Callable[[], object]) -> AbstractContextManager[Claim]:
        wanted[id] += 1
        if wanted[id] == 2:
            both.set()
        return claim(id, meanwhile=meanwhile)

    def act(run: Run) -> int:
        assert both.wait(30)
        run.output(b"shared\n")
        return 0

    engine.Engine(tmp_path, store, Settings(accel="tcg"), heard).build(spec.parse(b"((from tiny))"))
    monkeypatch.setattr(store, "claim", counted)
    executor.script = {"shared": act}
    inner = "((from tiny) (run (shell shared)) (run (shell {})))"
    stage = spec.parse(f"((build a {inner.format('a')}) (build b {inner.format('b')}) (from tiny))".encode())
    engine.Engine(tmp_path, store, Settings(accel="tcg"), heard, jobs=2).build(stage)
    assert sorted(seen for seen in executor.seen if seen in ("shared", "a", "b")) == ["a", "b", "shared"]
    assert heard.printed.count(b"shared\n") == 2  # both report it, however late the second starts
    assert len(store.layers()) == 4
