"""How bench.steps evaluates times and records. Only a real run shows that it measures anything."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import pytest

from bench.results import DEPTH, FIRST_OUTPUT, WINDOW, Results, Target, seconds, table, targets
from bench.steps import CASES, echoes
from bench.watch import Build, Failed, Told, depth_ratio, first_output, lines, pauses, step_costs, watch
from obuild import spec


def build(*told: tuple[float, str]) -> Build:
    return Build(told[-1][0], tuple(Told(at, event) for at, event in told))


#: Two steps that print, and between them one that does not.
THREE = build(
    (1.0, "started"),
    (1.0, "hit"),
    (1.0, "started"),
    (2.0, "output"),
    (2.5, "output"),
    (3.0, "saved"),
    (3.0, "started"),
    (5.0, "saved"),
    (5.0, "started"),
    (6.0, "output"),
    (6.5, "note"),
    (9.0, "saved"),
    (9.0, "done"),
)


def chain(costs: Sequence[float]) -> Build:
    """Steps of these durations, each of which prints half way."""
    told, now = [(0.0, "started"), (0.0, "hit")], 0.0
    for cost in costs:
        told += [(now, "started"), (now + cost / 2, "output"), (now + cost, "saved")]
        now += cost
    return build(*told, (now, "done"))


def test_times_within_a_build() -> None:
    assert first_output(THREE) == 2.0
    assert pauses(THREE) == [6.0 - 2.5]
    assert step_costs(THREE) == [2.0, 2.0, 4.0]


def test_depth_compares_windows_of_all_chains() -> None:
    steps = DEPTH + WINDOW // 2
    costs = [2.0] * WINDOW + [7.0] * (steps - 2 * WINDOW) + [3.0] * WINDOW
    slow_start = [50.0, *costs[1:]]
    assert depth_ratio([chain(costs), chain(slow_start)], DEPTH, WINDOW) == pytest.approx(1.5)
    assert depth_ratio([chain(costs), chain([2.2] * WINDOW)], DEPTH, WINDOW) == pytest.approx(3 / 2.1)


def test_failed_measurements_have_no_medians_and_ratios() -> None:
    results = Results("micro", {("a", "cold"): [9.0, 8.0, 1.0], ("a", "warm"): [2.0, 4.0], ("b", "cold"): [5.0]})
    results.failed.add(("b", "cold"))
    results.times["b", "warm"] = [1.0]
    assert results.cases() == ["a", "b"]
    assert results.median("a", "cold") == 8.0
    assert results.ratio("a", "cold", "warm") == pytest.approx(8 / 3)
    assert results.median("b", "cold") is None
    assert results.ratio("b", "cold", "warm") is None
    assert list(table(results, ["cold", "warm"])) == [
        "| micro |   cold |   warm | cold / warm |",
        "| ----- | -----: | -----: | ----------: |",
        "| a     | 8.00 s | 3.00 s |      2.67 × |",
        "| b     | failed | 1.00 s |             |",
    ]


def test_targets() -> None:
    results = Results("debian-12")
    assert [target.met for target in targets(results)] == [False] * 6
    assert all("not measured" in str(target) for target in targets(results))
    results.times = {
        ("true-1", "cold"): [12.0],
        ("true-10", "cold"): [90.0],
        ("true-10", "warm"): [3.0],
        (FIRST_OUTPUT, "cold"): [9.5],
        (FIRST_OUTPUT, "warm"): [1.0],
    }
    results.boots = [10.0]
    results.chains = [chain([0.4] * (DEPTH + WINDOW // 2))]
    found = list(targets(results))
    assert [target.value for target in found] == pytest.approx([0.03, 1 / 9.5, 1 / 12, 30.0, 0.4, 1.0])
    assert [target.met for target in found] == [True, False, True, True, True, True]
    assert not results.good()
    results.base = "micro"
    results.times[FIRST_OUTPUT, "warm"] = [0.9]
    results.failed.add(("apt", "peer"))
    assert results.good()
    results.failed.add(("apt", "warm"))
    assert not results.good()
    assert len(list(targets(results))) == 5, "the first is about debian-12"


def test_a_target_reports_whether_it_is_met() -> None:
    assert str(Target("x", 0.5, 0.5, unit=" s")) == "x: 0.5 s (target: at most 0.5 s): yes"
    assert str(Target("x", 14.0, 15, at_least=True)) == "x: 14 (target: at least 15): NO"


@pytest.mark.parametrize(("value", "text"), [(0.0312, "0.03"), (9.876, "9.88"), (98.76, "98.8"), (987.6, "988")])
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_a_spec_that_differs_each_time(case: str) -> None:
    one, other = (spec.parse(f"((from micro) {CASES[case](mark)})".encode()) for mark in ("1", "2"))
    assert not set(one.ops) & set(other.ops)


def test_steps_of_a_chain_differ() -> None:
    ops = spec.parse(f"((from micro) {echoes(55, '1')})".encode()).ops
    assert len(set(ops)) == 55


def test_lines_are_complete_and_have_a_time() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb"):
        before = time.perf_counter()
        os.write(theirs, b"one\ntw")
        found = lines(ours, before + 60)
        at, line = next(found)
        assert (line, before <= at <= time.perf_counter()) == (b"one", True)
        os.write(theirs, b"o\n")
        os.close(theirs)
        assert [line for _, line in found] == [b"two"]


def test_watching_a_build_records_its_events() -> None:
    script = """import json
for event in ({"event": "started"}, {"event": "output", "data": "5"}, {"event": "output", "data": "000\\n"}):
    print(json.dumps(event), flush=True)
"""
    seen = watch([sys.executable, "-c", script], events=True)
    assert [told.event for told in seen.told] == ["started", "output", "output"]
    assert seen.printed == "5000\n"
    assert 0 < seen.told[0].at <= seen.told[-1].at <= seen.seconds


@pytest.mark.parametrize(
    ("script", "events", "why"),
    [
        ("import sys; sys.exit('broken')", False, "exit status 1: broken"),
        (
            """print('{"event": "output", "data": "E: why"}'); print('{"event": "failed", "message": "it failed"}')
exit(1)""",
            True,
            "it failed\nE: why",
        ),
        ("print('Usage')", True, "no record: Usage"),
        ("import time; time.sleep(60)", True, "not done after 0.1 s"),
        ("import time; time.sleep(60)", False, "not done after 0.1 s"),
    ],
)
def test_a_failing_build_raises_its_reason(script: str, events: bool, why: str) -> None:
    longest = 0.1 if "sleep" in script else 60.0
    with pytest.raises(Failed, match=why):
        watch([sys.executable, "-c", script], events=events, longest=longest)


def test_a_missing_program_is_a_failure() -> None:
    with pytest.raises(Failed, match="cannot run /no/such"):
        watch(["/no/such"], events=False)
