"""`--no-cache`: every command runs again, and no tag loses its layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from obuild import spec
from obuild.builder import engine
from obuild.errors import ObuildError
from obuild.events import Note, Saved
from obuild.executors.settings import Settings
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, Heard

Build = Callable[..., LayerId]

#: Two stages whose first command is the same: each command runs once in a build.
STAGES = """((build dev ((from tiny) (run (shell one)) (run (shell make))))
 (from tiny) (run (shell one)) (copy (from (build dev)) (src /out) (dst /got)) (run (shell last)))"""


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def build(store: Store, heard: Heard, tmp_path: Path, tiny: Path, executor: FakeExecutor) -> Build:
    (tmp_path / "file").write_text("x")

    def run(text: str, *, no_cache: bool = False, tags: tuple[str, ...] = (), jobs: int = 1) -> LayerId:
        executor.seen.clear()
        heard.clear()
        made = engine.Engine(tmp_path, store, Settings(accel="tcg"), heard, jobs=jobs)
        made.no_cache, made.tags = no_cache, tags
        return made.build(spec.parse(text.encode()))

    return run


def ran(executor: FakeExecutor) -> list[str]:
    return [each for each in executor.seen if each in ("one", "two", "make", "last", "other")]


CHAIN = "((from tiny) (copy (src file) (dst /)) (run (shell one)) (copy (src file) (dst /b/)) (run (shell two)))"


def test_commands_run_again_and_their_layers_have_the_same_ids(
    store: Store, build: Build, executor: FakeExecutor, heard: Heard
) -> None:
    last = build(CHAIN)
    other = build("((from tiny) (copy (src file) (dst /)) (run (shell one)) (run (shell other)))")
    ids = set(store.ids())
    assert build(CHAIN, no_cache=True) == last
    assert ran(executor) == ["one", "two"]
    assert Note("--no-cache: removed 4 layers") in heard.of(Note)
    assert set(store.ids()) == ids - {other}  # what another spec had built on it is removed
    assert len(heard.of(Saved)) == 3  # the base, and the copy before the first command, stayed
    build(CHAIN)
    assert ran(executor) == []


def test_a_first_build_has_nothing_to_remove(build: Build, executor: FakeExecutor, heard: Heard) -> None:
    build(CHAIN, no_cache=True)
    assert ran(executor) == ["one", "two"]
    assert not [note for note in heard.of(Note) if "no-cache" in note.text]


@pytest.mark.parametrize("jobs", [1, 2])
def test_each_command_of_several_stages_runs_once(
    store: Store, build: Build, executor: FakeExecutor, jobs: int
) -> None:
    executor.files["out"] = b"x"
    last = build(STAGES)
    first_time = sorted(ran(executor))
    assert build(STAGES, no_cache=True, jobs=jobs) == last
    assert sorted(ran(executor)) == first_time == ["last", "make", "one"]


def test_a_command_after_a_copy_from_a_build_runs_again(
    store: Store, build: Build, executor: FakeExecutor
) -> None:
    executor.files["out"] = b"x"
    text = """((build dev ((from tiny) (run (shell make))))
     (from tiny) (copy (from (build dev)) (src /out) (dst /got)) (run (shell last)))"""
    last = build(text)
    assert build(text, no_cache=True) == last
    assert ran(executor) == ["make", "last"]


def test_another_tag_prevents_any_removal(store: Store, build: Build, executor: FakeExecutor) -> None:
    last = build(CHAIN, tags=("web", "other"))
    before = set(store.ids())
    with pytest.raises(ObuildError, match="--no-cache would remove tagged layers") as caught:
        build(CHAIN, no_cache=True, tags=("web",))
    assert caught.value.hint == "remove the tags first: obuild tag rm other"
    assert set(store.ids()) == before
    assert store.tags.by_layer() == {last: ["other", "web"]}
    assert ran(executor) == []


def test_tags_that_the_build_sets_do_not_prevent_removal(
    store: Store, build: Build, executor: FakeExecutor
) -> None:
    last = build(CHAIN, tags=("web",))
    assert build(CHAIN, no_cache=True, tags=("web",)) == last
    assert ran(executor) == ["one", "two"]
    assert store.resolve("web") == last


def test_a_layer_in_use_is_not_rebuilt(store: Store, build: Build, executor: FakeExecutor) -> None:
    last = build(CHAIN)
    with store.use(last), pytest.raises(ObuildError, match=f"rebuild the layer {last[:12]}: it is in use"):
        build(CHAIN, no_cache=True)
    assert store.find(last)
    assert ran(executor) == []
