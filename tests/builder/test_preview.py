"""What a build would do: what is cached, what would be built, and why. Nothing is built."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild import spec
from obuild.bases import making
from obuild.builder import preview, reasons
from obuild.builder.preview import Outlook
from obuild.builder.reasons import NOTHING_LIKE_IT
from obuild.errors import SpecError, UsageError
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store.index import Index
from obuild.store.layers import Store

ChainMaker = Callable[[str], Chain]
Look = Callable[..., list[Outlook]]


def built(store: Store, chain: Chain) -> list[LayerId]:
    """Put the layers of a chain into the store, as a build does."""
    for step in chain.steps:
        if store.find(step.id) is None:
            with store.claim(step.id), store.draft(step) as draft:
                if step.parent is None:
                    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", draft.image, "1M"], check=True)
                else:
                    draft.lay()
            with Index(store) as index:
                index.add(step.id, step.parent, step.headings[-1], 1.0, 2.0)
    return [step.id for step in chain.steps]


def files(store: Store) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in store.result.rglob("*")}


@pytest.fixture
def look(store: Store, chain: ChainMaker, tmp_path: Path) -> Look:
    """Forecasts ops on the base `tiny`; copies come from the folder `source`."""

    def run(ops: str, *, name: str = "tiny", secrets: tuple[str, ...] = ()) -> list[Outlook]:
        before = files(store)
        stage = spec.parse(f"((from {name}) {ops})".encode())
        stages = preview.forecast(stage, source=tmp_path / "source", store=store, secrets=secrets)
        found = [step for each in stages for step in each.steps]
        assert files(store) == before
        return found

    return run


def test_in_a_new_store_everything_is_to_be_built(look: Look, chain: ChainMaker) -> None:
    ids = [step.id for step in chain("(run (shell a))").steps]
    assert look("(run (shell a))") == [
        Outlook("(from tiny)", ids[0], False, (NOTHING_LIKE_IT,)),
        Outlook("/: (run (shell a))", ids[1], False, (NOTHING_LIKE_IT,)),
    ]


def test_stored_steps_are_cached(store: Store, look: Look, chain: ChainMaker) -> None:
    ids = built(store, chain("(run (shell a))"))
    assert look("(run (shell a)) (env A 1)") == [
        Outlook("(from tiny)", ids[0], True),
        Outlook("/: (run (shell a))", ids[1], True),
    ]


def test_a_step_is_compared_with_its_nearest_layer_and_its_children_with_that_ones(
    store: Store, look: Look, chain: ChainMaker
) -> None:
    built(store, chain('(run (shell "apt-get update"))'))
    ids = built(store, chain('(run (shell "make all")) (run (shell same)) (run (shell "make test"))'))
    steps = look('(run (shell "make one")) (run (shell same)) (run (shell "make check"))')
    assert [step.cached for step in steps] == [True, False, False, False]
    assert [step.nearest for step in steps] == [None, *ids[1:]]
    assert [step.why for step in steps[1:]] == [
        ("the command changed: make all → make one",),
        ("parent changed",),
        ("parent changed", "the command changed: make test → make check"),
    ]


def test_among_equally_near_layers_the_one_used_last_wins(store: Store, look: Look, chain: ChainMaker) -> None:
    one, two = (built(store, chain(f"(run (shell {name}))"))[-1] for name in "ab")
    os.utime(store.result / one, (1, 1))
    assert look("(run (shell c))")[-1].nearest == two
    os.utime(store.result / two, (0, 0))
    assert look("(run (shell c))")[-1].nearest == one


def test_a_copy_is_not_compared_with_a_command(
    store: Store, look: Look, chain: ChainMaker, tmp_path: Path
) -> None:
    built(store, chain("(run (shell a))"))
    (tmp_path / "source/f").write_text("one")
    assert look("(copy (src f) (dst /))")[-1].why == (NOTHING_LIKE_IT,)
    built(store, chain("(copy (src f) (dst /d/))"))
    (tmp_path / "source/f").write_text("two")
    assert look("(copy (src f) (dst /d/))")[-1].why == ("file f changed",)


def test_a_base_whose_content_changed(store: Store, look: Look, chain: ChainMaker, tiny: Path) -> None:
    ids = built(store, chain("(run (shell a))"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tiny, "3M"], check=True)
    steps = look("(run (shell a))")
    assert steps[0].nearest == ids[0]
    assert "the content of the base image changed" in steps[0].why[0]
    assert steps[1].why == ("parent changed",)


def test_another_base_is_not_similar(store: Store, look: Look, chain: ChainMaker, tiny: Path) -> None:
    built(store, chain("(run (shell a))"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tiny.with_name("big.qcow2"), "3M"], check=True)
    assert [step.why for step in look("(run (shell a))", name="big")] == [(NOTHING_LIKE_IT,)] * 2


def test_a_missing_base_is_not_made(store: Store, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "make", lambda *args, **options: pytest.fail("made"))
    steps = look("(run (shell a)) (run (shell b))", name="micro")
    assert [(step.op, step.id, step.cached) for step in steps] == [
        ("(from micro)", None, False),
        ("/: (run (shell a))", None, False),
        ("/: (run (shell b))", None, False),
    ]
    assert "'micro' would be made from its recipe" in steps[0].why[0]
    assert steps[1].why == ()


@pytest.mark.parametrize("name", ["tiny", "micro"])
def test_preview_refuses_what_a_build_refuses(look: Look, name: str) -> None:
    with pytest.raises(SpecError, match="no value for the secret"):
        look("(run (secrets (s (target /s))) (shell a))", name=name)
    with pytest.raises(SpecError, match="not found"):
        look("(copy (src none) (dst /))", name=name)
    assert look("(run (secrets (s (target /s))) (shell a))", name=name, secrets=("s",))


def test_an_unknown_base_is_refused(look: Look) -> None:
    with pytest.raises(UsageError, match="unknown base image 'none'"):
        look("", name="none")


def test_a_layer_just_being_removed_is_skipped(
    store: Store, look: Look, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, leaf = built(store, chain("(run (shell a))"))
    with Index(store) as index:
        children = index.children(root)
    assert [row.id for row in children] == [leaf]
    store.remove(leaf, store.parents())
    monkeypatch.setattr(Index, "children", lambda self, id: children)
    assert look("(run (shell b))")[-1].why == (NOTHING_LIKE_IT,)


@pytest.mark.parametrize("limit", ["ENOUGH", "MANY"])
def test_comparing_stops_at_a_limit(
    store: Store, look: Look, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    near, used_last = (built(store, chain(f"(run (shell {name}))"))[-1] for name in ("aaab", "x"))
    os.utime(store.result / near, (1, 1))
    assert look("(run (shell aaac))")[-1].nearest == near
    monkeypatch.setattr(reasons, limit, 1)
    assert look("(run (shell aaac))")[-1].nearest == used_last


def test_a_copy_from_a_build_is_unknown_before_that_build(store: Store, tiny: Path, tmp_path: Path) -> None:
    text = """((build dev ((from tiny) (run (shell one))))
               (from tiny) (copy (from (build dev)) (src /a) (dst /b)) (run (shell two)))"""
    stages = preview.forecast(spec.parse(text.encode()), source=tmp_path, store=store, secrets=())
    assert [(each.path, [step.origin for step in each.planned]) for each in stages] == [
        ("dev", ["", ""]),
        ("", ["", "dev", ""]),
    ]
    found = [step for each in stages for step in each.steps]
    assert [outlook.id is None for outlook in found] == [False, False, False, True, True]
    assert found[3].why == ("what it copies is known once the build 'dev' is made",)
