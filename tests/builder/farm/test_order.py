"""Orders and what is said about them, as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.builder.farm import order, wire
from obuild.builder.farm.sources import Pack, Packed, Part
from obuild.errors import UsageError
from obuild.events import Event, Hit, Note, Output, PhaseEnded, PhaseStarted, Place, Progress, Saved, Started
from obuild.executors.settings import Settings
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain, Extract, Graft, Step
from obuild.remotes.layer import Blob
from obuild.spec import UnixUser

EXTRACT = Extract("dev", ("/out", "/a b"), ("*.o",), None, UnixUser(1000, 1000))


@pytest.fixture
def wanted(chain: Callable[[str], Chain], tmp_path: Path) -> order.Chain:
    """An order with every kind of step."""
    (tmp_path / "source" / "file").write_text("content")
    ops = '(env x "é") (user (uid 1) (gid 2)) (run (cache (c (target /c))) (shell "x")) (copy (src .) (dst /srv))'
    steps = chain(ops).steps
    graft = Graft(EXTRACT, LayerId("1" * 64), (("file", "out", "644", "2" * 64),), "/in")
    packed = Packed((Pack(Blob("sha256:" + "3" * 64, 20), (Part("4" * 64, 0, 7),)),), (1_700_000_000,))
    steps = (*steps, Step(steps[-1].id, graft, ("(copy …)",)))
    return order.Chain("qemu", Settings(cpus=3, memory=1 << 30), steps, {steps[2].id: packed})


def test_an_order_arrives_as_it_was_sent(wanted: order.Chain) -> None:
    found = order.load(order.dump(wanted))
    assert isinstance(found, order.Chain)
    assert [step.id for step in found.steps] == [step.id for step in wanted.steps]
    assert [step.headings for step in found.steps] == [step.headings for step in wanted.steps]
    assert (found.settings, found.packed) == (wanted.settings, wanted.packed)
    assert [step.action for step in found.steps[1:2]] == [step.action for step in wanted.steps[1:2]]
    assert order.dump(found) == order.dump(wanted)


def test_an_order_for_files_arrives_as_it_was_sent() -> None:
    wanted = order.Files("native", Settings(), LayerId("1" * 64), EXTRACT)
    assert order.load(order.dump(wanted)) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obuild": "9.9"}, "the build is by obuild 9.9"),
        ({"settings": {"Unknown": []}}, "cannot be read"),
        ({"settings": {"Settings": [], "Command": []}}, "cannot be read"),
        ({"steps": [{}]}, "cannot be read"),
        ({"steps": 1}, "cannot be read"),
    ],
)
def test_a_strange_order_is_refused(wanted: order.Chain, change: dict[str, object], message: str) -> None:
    data = json.dumps({**json.loads(order.dump(wanted)), **change}).encode()
    with pytest.raises(UsageError, match=message):
        order.load(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[" * 100_000, b"\xff"])
def test_what_is_no_order_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        order.load(data)


def test_a_step_with_another_id_is_refused(wanted: order.Chain) -> None:
    """As if another version computed ids in another way."""
    found = json.loads(order.dump(wanted))
    found["steps"][1]["id"] = "5" * 64
    with pytest.raises(UsageError, match="has another id here"):
        order.load(json.dumps(found).encode())


@pytest.mark.parametrize(
    "what",
    [
        *(Output(bytes(range(256))), PhaseStarted("fetching", "x", 3), Progress("fetching", "x", 1, 3)),
        *(PhaseEnded("fetching", "x", 0.5), Saved("1" * 64, 2.5), Note("é\n"), wire.Wanted("00ff")),
        wire.Unfit("full"),
    ],
)
def test_what_is_said_arrives(what: wire.Said) -> None:
    line = wire.dump(what, "7" * 64)
    assert line.count(b"\n") == 1
    assert wire.load(line[:-1]) == (what, "7" * 64)


def test_a_hit_is_said_without_the_path_of_the_log() -> None:
    line = wire.dump_event(Event(Hit("1" * 64, Path("/secret/log")), Place("", "1" * 64), 0.0))
    assert b"secret" not in line
    assert wire.load(line)[0] == wire.Here("1" * 64)


def test_clients_report_themselves_where_an_op_begins() -> None:
    assert wire.dump_event(Event(Started("x"), Place(), 0.0)) == b""


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'["Nothing", ""]', b'["Saved", ""]', b'["Output", ""]', b"[" * 99_999]
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="something else than an event"):
        wire.load(line)
