"""`history` and `plan --graph`, on a store with scripted guests."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from xml.etree import ElementTree

import pytest

from obuild.cli.graph import model
from obuild.cli.graph.dot import dot
from obuild.cli.graph.svg import draw
from obuild.store import fsck
from obuild.store.layers import Store
from tests.support import forked, odd

STAGES = """((build dev ((from tiny) (run (shell make)) (run (shell "make <all> & more"))))
  (from tiny) (run (shell a)) (copy (from (build dev)) (src /out) (dst /got)))"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "src").mkdir()
    path = tmp_path / "src" / "obuild.spec"
    path.write_text(STAGES)
    return path


def obuild(store: Store, *args: str | Path, code: int = 0, env: dict[str, str] | None = None) -> tuple[str, str]:
    ended, out, err = odd.run(
        [*map(str, args), f"--store=qemu:{store.root}"], before=lambda: os.environ.update(env or {})
    )
    assert "Traceback" not in err
    assert ended == code, out + err
    return out, err


def build(store: Store, spec: Path, code: int = 0) -> None:
    obuild(store, "build", "--qemu-accel=tcg", spec.parent, code=code)


# -- history


@pytest.mark.usefixtures("tiny")
def test_history_lists_builds_with_their_outcome(store: Store, spec: Path) -> None:
    build(store, spec)
    build(store, spec)
    spec.write_text("((from tiny) (run (shell fail)))")
    build(store, spec, code=1)
    first, second, third = obuild(store, "history")[0].splitlines()
    name = r"[0-9]{8}-[0-9]{6}(?:-[0-9])? +"
    end = rf"  {re.escape(str(spec))}"
    assert re.fullmatch(rf"{name}[0-9]+ s +[0-9.]+ s  5 made, 1 cached +[0-9a-f]{{12}}{end}", first), first
    assert re.search(r"0 made, 6 cached", second)
    assert re.fullmatch(rf"{name}[0-9]+ s +[0-9.]+ s  0 made, 1 cached +failed +{end}", third), third
    (last,) = obuild(store, "history", "-n", "1")[0].splitlines()
    assert last.split()[0] == third.split()[0]
    listed = json.loads(obuild(store, "history", "--json")[0])
    assert [each["outcome"] for each in listed] == ["done", "done", "failed"]
    assert listed[0]["result"] == listed[1]["result"] != ""


@pytest.mark.usefixtures("tiny")
def test_a_killed_build_was_interrupted(store: Store, spec: Path) -> None:
    argv = ["build", "--qemu-accel=tcg", f"--store=qemu:{store.root}", str(spec.parent)]
    env = {"OBUILD_KILL_AT": "step.done:2"}
    assert forked.run(argv, module="tests.support.fake_obuild", env=env).returncode == -signal.SIGKILL
    assert re.search(r" - +2 made, 0 cached +interrupted ", obuild(store, "history")[0])
    build(store, spec)
    assert " done" not in (last := obuild(store, "history")[0].splitlines()[-1])
    assert "4 made" in last or "3 made" in last
    assert list(fsck.check(store)) == []


@pytest.mark.usefixtures("tiny")
def test_a_spec_in_the_current_folder_is_shown_by_its_name(
    store: Store, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(store, spec)
    monkeypatch.chdir(spec.parent)
    assert obuild(store, "history")[0].endswith("  obuild.spec\n")


@pytest.mark.usefixtures("tiny")
def test_a_mistake_in_a_spec_is_no_build(store: Store, spec: Path) -> None:
    spec.write_text("((from")
    build(store, spec, code=2)
    assert obuild(store, "history")[0] == ""


# -- plan --graph


@pytest.mark.usefixtures("tiny")
def test_a_plan_is_drawn_with_its_stages_and_copies(store: Store, spec: Path, tmp_path: Path) -> None:
    build(store, spec)
    spec.write_text(STAGES.replace("(shell a)", "(shell b)"))
    picture = tmp_path / "plan.svg"
    assert "of 6 steps are in the store" in obuild(store, "plan", "--graph", picture, spec.parent)[0]
    root = ElementTree.parse(picture).getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:2] == ["dev", "result"]
    assert "1–3: 3 steps" in texts
    assert "● build" in texts
    edges = [each.get("class") for each in root.iter("{http://www.w3.org/2000/svg}path")]
    assert sorted(filter(None, edges)) == ["edge", "edge", "edge copy"]
    titles = [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any("the command changed: a → b" in (title or "") for title in titles)


@pytest.mark.usefixtures("tiny")
def test_a_plan_in_the_language_of_graphviz(store: Store, spec: Path, tmp_path: Path) -> None:
    picture = tmp_path / "plan.dot"
    obuild(store, "plan", "--json", "--graph", picture, spec.parent)
    text = picture.read_text()
    assert text.startswith("digraph build {\n")
    assert "n2 -> n5 [style=dashed];" in text
    assert "n3 -> n4;" in text


@pytest.mark.usefixtures("tiny")
def test_a_picture_has_to_be_svg_or_dot(store: Store, spec: Path, tmp_path: Path) -> None:
    said = obuild(store, "plan", "--graph", tmp_path / "plan.png", spec.parent, code=2)[1]
    assert "must end in .svg or .dot" in said
    assert "No such file" in obuild(store, "plan", "--graph", tmp_path / "no" / "plan.svg", spec.parent, code=1)[1]


# -- the graph itself


def steps(states: str, origin: str = "") -> list[model.Step]:
    names = {"c": "cached", "b": "build"}
    return [model.Step(op, f"/: (op {op})", names[each], origin) for op, each in enumerate(states, 1)]


def test_cached_steps_in_a_row_are_one_node() -> None:
    graph = model.graph([model.Stage("", steps("cccbccb"))])
    assert [node.label for node in graph.nodes] == [
        *("1–3: 3 steps", "4: (op 4)", "5: (op 5)", "6: (op 6)", "7: (op 7)"),
    ]
    assert graph.edges == ((0, 1), (1, 2), (2, 3), (3, 4))


def test_a_graph_of_many_steps_stays_small() -> None:
    assert len(model.graph([model.Stage("", steps("b" * 5000))]).nodes) == 1
    assert len(model.graph([model.Stage("", steps("b" * 200))]).nodes) == 200


def test_a_copy_is_below_what_it_copies_from() -> None:
    dev, last = steps("bbbb"), steps("bb")
    last[1] = last[1]._replace(origin="dev")
    graph = model.graph([model.Stage("dev", dev), model.Stage("", last)])
    assert [(node.stage, node.row) for node in graph.nodes] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 4)]
    assert (3, 5) in graph.edges


def test_a_copy_over_other_stages_passes_between_their_rows() -> None:
    last = steps("bb")
    last[1] = last[1]._replace(origin="dev")
    stages = [model.Stage("dev", steps("b")), model.Stage("other", steps("bbb")), model.Stage("", last)]
    drawn = ElementTree.fromstring(draw(model.graph(stages), label=""))
    (way,) = [each.get("d") or "" for each in drawn.iter() if each.get("class") == "edge copy"]
    (lane, _) = map(int, re.findall(r"V([0-9]+)", way))
    boxes = [each for each in drawn.iter() if each.tag.endswith("rect")]
    assert boxes
    for box in boxes:
        assert not int(box.get("y", "")) <= lane <= int(box.get("y", "")) + int(box.get("height", ""))


@pytest.mark.parametrize("text", ['<script>"&\0\x1b[1m\udcff\n', "x" * 1_000_000, "]]>"])
def test_any_text_can_be_drawn(text: str) -> None:
    step = model.Step(1, text, "made", detail=text[:500], anchor="s0-1")
    graph = model.graph([model.Stage(text[:100], [step])])
    drawn = draw(graph, label=text[:100])
    ElementTree.fromstring(drawn)
    assert "<script" not in drawn
    assert len(drawn) < 10_000
    dot(graph).encode()


def test_a_quote_does_not_end_a_string_of_graphviz() -> None:
    text = 'a" b\\'
    graph = model.graph([model.Stage("", [model.Step(1, text, "made")])])
    assert '"1: a\\" b\\\\\\nmade"' in dot(graph)
