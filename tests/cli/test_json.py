"""JSON output: the exact records of a build, and that docs/json.md describes every field."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from obuild.builder.history import Build
from obuild.builder.preview import Outlook
from obuild.builder.records import name_of
from obuild.cli import text
from obuild.errors import ObuildError, SpecError, StepFailed, UsageError
from obuild.events import (
    Done,
    Event,
    Hit,
    InRemote,
    Missing,
    Note,
    Output,
    PhaseEnded,
    PhaseName,
    PhaseStarted,
    Place,
    Planned,
    PlannedStep,
    Progress,
    Saved,
    StageEnded,
    StageStarted,
    Started,
    What,
)
from obuild.exports import diff
from obuild.exports.targets.target import Published
from obuild.remotes import gc as remotes_gc
from obuild.store import gc
from obuild.store.caches import Cache
from obuild.store.inspect import Description, Listed, Neighbour
from obuild.store.layers import Store
from obuild.store.quota import Usage
from obuild.store.tags import Tag

DOCS = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")


#: The fields that every record has.
COMMON = {"stage": "dev", "step": "abc", "op": 3, "time": 1.5}
NOWHERE = {"stage": "", "step": "", "op": 0}


def records(*said: What) -> list[dict[str, Any]]:
    out = io.BytesIO()
    tell = text.JsonLines(out)
    for what in said:
        tell(Event(what, Place("dev", "abc", 3), 1.5))
    assert out.getvalue().isascii()
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("event", "record"),
    [
        (Started("/: (run (shell x))"), {"event": "started", "text": "/: (run (shell x))"}),
        (StageStarted("dev"), {"event": "stage_started", "name": "dev"}),
        (
            Planned((PlannedStep(1, "abc", "(from a)"), PlannedStep(3, "", "/\udcff: (run)", "b"))),
            {
                "event": "planned",
                "steps": [
                    {"op": 1, "id": "abc", "text": "(from a)", "origin": ""},
                    {"op": 3, "id": "", "text_base64": base64.b64encode(b"/\xff: (run)").decode(), "origin": "b"},
                ],
            },
        ),
        (Hit("abc", Path("/s/log")), {"event": "hit", "id": "abc", "log": "/s/log", "told": False}),
        (
            Hit("abc", Path("/\udcff"), told=True),
            {"event": "hit", "id": "abc", "log_base64": "L/8=", "told": True},
        ),
        (
            Missing(("the user changed",), "def", 1.5),
            {"event": "missing", "why": ["the user changed"], "nearest": "def", "seconds": 1.5},
        ),
        (InRemote("abc", "dir:/r"), {"event": "in_remote", "id": "abc", "remote": "dir:/r"}),
        (PhaseStarted("booting"), {"event": "phase_started", "phase": "booting", "subject": "", "total": 0}),
        (
            Progress("sending", "cache", 1, 2),
            {"event": "progress", "phase": "sending", "subject": "cache", "done": 1, "total": 2},
        ),
        (
            PhaseEnded("sending", "cache", 0.5),
            {"event": "phase_ended", "phase": "sending", "subject": "cache", "seconds": 0.5},
        ),
        (StageEnded("dev", 0.5), {"event": "stage_ended", "name": "dev", "seconds": 0.5, "failed": False}),
        (Output(b"a\nb"), {"event": "output", "data": "a\nb"}),
        (Output(b"\0\x1b[1m"), {"event": "output", "data": "\0\x1b[1m"}),
        (Output("é".encode()), {"event": "output", "data": "é"}),
        (Output(b"\xc3"), {"event": "output", "data_base64": "ww=="}),
        (Saved("abc", 0.5), {"event": "saved", "id": "abc", "seconds": 0.5}),
        (Note("by the\nway"), {"event": "note", "text": "by the\nway"}),
        (Note("bytes \udcff"), {"event": "note", "text_base64": base64.b64encode(b"bytes \xff").decode()}),
        (Done("abc", 0.5), {"event": "done", "id": "abc", "seconds": 0.5}),
    ],
)
def test_each_event_is_one_record(event: What, record: dict[str, Any]) -> None:
    assert records(event) == [{**record, **COMMON}]


def test_output_can_be_restored_byte_for_byte_wherever_it_was_cut() -> None:
    whole = "é€\n".encode() + bytes(range(256))
    for cut in range(len(whole)):
        got = records(Output(whole[:cut]), Output(whole[cut:]))
        assert (
            b"".join(
                base64.b64decode(each["data_base64"]) if "data_base64" in each else each["data"].encode()
                for each in got
            )
            == whole
        )


@pytest.mark.parametrize(
    ("error", "record"),
    [
        (ObuildError("no", hint="do that"), ("no", "do that", 1, 0, 0)),
        (UsageError("no"), ("no", "", 2, 0, 0)),
        (SpecError("no", line=3, column=4), ("no", "", 2, 3, 4)),
        (OSError(28, "No space left on device"), ("[Errno 28] No space left on device", "", 1, 0, 0)),
        (KeyboardInterrupt(), ("interrupted", "", 130, 0, 0)),
    ],
)
def test_a_failure_is_the_last_record_and_is_raised_again(error: BaseException, record: tuple[Any, ...]) -> None:
    out = io.BytesIO()
    with pytest.raises(type(error)), text.ending(text.JsonLines(out)):
        raise error
    names = ("message", "hint", "exit_code", "line", "column")
    told = json.loads(out.getvalue())
    assert told == {"event": "failed", **NOWHERE, "time": told["time"], **dict(zip(names, record, strict=True))}


def test_a_failure_names_its_place_in_the_build() -> None:
    error = StepFailed("no")
    error.place = Place("dev", "abc", 3)
    out = io.BytesIO()
    text.JsonLines(out).failed(error)
    told = json.loads(out.getvalue())
    assert {name: told[name] for name in NOWHERE} == {"stage": "dev", "step": "abc", "op": 3}


def test_a_failure_is_not_printed_twice_for_people() -> None:
    out = io.BytesIO()
    with pytest.raises(ObuildError), text.ending(text.Lines(out, colour=False)):
        raise ObuildError("no")
    assert out.getvalue() == b""


# -- the command line


def build(here: Path, *options: str, code: int) -> tuple[list[dict[str, Any]], str]:
    argv = [
        *(sys.executable, "-m", "obuild", "build", f"--store=qemu:{here / 'store'}", "-f", str(here / "spec")),
        *("--progress", "json", *options, str(here)),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture
def here(tmp_path: Path, qcow2_disk: Path) -> Path:
    """A folder with a spec, and a store with a base image called `there`."""
    argv = [sys.executable, "-m", "obuild", "base", "add", str(qcow2_disk), "--name", "there"]
    subprocess.run([*argv, f"--store=qemu:{tmp_path / 'store'}"], check=True, capture_output=True)
    (tmp_path / "spec").write_text('((build "in" ((from there)))\n (from there)\n (workdir /a))')
    return tmp_path


def test_a_build_prints_exactly_these_records(here: Path) -> None:
    told, said = build(here, code=0)
    id = told[-1]["id"]
    assert re.fullmatch("[0-9a-f]{64}", id)
    assert said == ""
    base = str(here / "store" / "base-image" / "there.qcow2")
    log = str(here / "store" / "result" / id / "log")
    steps = [{"op": 1, "id": id, "text": "(from there)", "origin": ""}]
    expected: list[tuple[str, str, int, dict[str, Any]]] = [  # event, stage, op, its own fields
        ("planned", "in", 0, {"steps": steps}),
        ("planned", "", 0, {"steps": steps}),
        ("stage_started", "", 0, {"name": ""}),
        ("stage_started", "in", 0, {"name": "in"}),
        ("started", "in", 1, {"text": "(from there)"}),
        ("missing", "in", 1, {"why": ["no similar layer in the store"], "nearest": ""}),
        ("phase_started", "in", 1, {"phase": "preparing", "subject": "", "total": 0}),
        ("phase_ended", "in", 1, {"phase": "preparing", "subject": ""}),
        ("phase_started", "in", 1, {"phase": "importing", "subject": base, "total": 0}),
        ("note", "in", 1, {"text": f"importing {base}"}),
        ("phase_ended", "in", 1, {"phase": "importing", "subject": base}),
        ("phase_started", "in", 1, {"phase": "committing", "subject": "", "total": 0}),
        ("phase_ended", "in", 1, {"phase": "committing", "subject": ""}),
        ("saved", "in", 1, {"id": id}),
        ("stage_ended", "in", 0, {"name": "in", "failed": False}),
        ("started", "", 1, {"text": "(from there)"}),
        ("hit", "", 1, {"id": id, "log": log, "told": False}),
        ("started", "", 2, {"text": "/: (workdir /a)"}),
        ("stage_ended", "", 0, {"name": "", "failed": False}),
        ("done", "", 0, {"id": id}),
    ]
    for record in told:
        assert 0 < record.pop("time") <= time.time()
        assert (record.pop("seconds", 0.0) or 0.0) >= 0
    assert told == [
        {"event": event, "stage": stage, "step": id if op == 1 else "", "op": op, **own}
        for event, stage, op, own in expected
    ]


@pytest.mark.parametrize(
    ("spec", "message", "place"),
    [
        ("((from there)\n (rnu (shell a)))", 'unknown op "rnu"', (2, 2)),
        ("((from nosuch))", "unknown base image 'nosuch'", (0, 0)),
        ("((from there)\n (copy (src none) (dst /)))", "not found", (2, 2)),
    ],
)
def test_a_mistake_in_a_spec_is_a_record_and_an_error_on_stderr(
    here: Path, spec: str, message: str, place: tuple[int, int]
) -> None:
    (here / "spec").write_text(spec)
    told, said = build(here, code=2)
    assert [each["event"] for each in told] == ["failed"]
    assert message in told[0]["message"]
    assert (told[0]["line"], told[0]["column"]) == place
    assert told[0]["exit_code"] == 2
    assert told[0]["message"] in said
    assert told[0]["hint"] in said


def test_an_interrupted_build_prints_a_failed_record(here: Path) -> None:
    (here / "spec").unlink()
    os.mkfifo(here / "spec")
    argv = [sys.executable, "-m", "obuild", "build", f"--store=qemu:{here / 'store'}", "-f", str(here / "spec")]
    with (
        subprocess.Popen([*argv, "--progress=json", str(here)], stdout=-1, stderr=-1, text=True) as child,
        (here / "spec").open("w"),  # returns when the build opens the spec
    ):
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate()
    assert child.returncode == 130
    assert json.loads(out)["exit_code"] == 130


def test_an_unknown_progress_format_is_refused(here: Path) -> None:
    argv = [sys.executable, "-m", "obuild", "build", f"--store=qemu:{here / 'store'}", "-f", str(here / "spec")]
    done = subprocess.run([*argv, "--progress=xml", str(here)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "auto, plain or json" in done.stderr


# -- the manual


def documented(heading: str) -> set[str]:
    """The fields in the table of a section."""
    found = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert found, f"docs/json.md has no section {heading}"
    return set(re.findall(r"^\| `(\w+)` \|", found[1], re.MULTILINE))


def names(record: Any) -> set[str]:
    return set(record._fields) if issubclass(record, tuple) else {field.name for field in fields(record)}


@pytest.mark.parametrize("event", get_args(What))
def test_the_manual_has_every_field_of_every_event(event: type[What]) -> None:
    inner = names(PlannedStep) if event is Planned else set()
    assert documented(f"`{name_of(event)}`") == names(event) | inner


def test_the_manual_has_what_all_events_have() -> None:
    assert documented("In every record") == {"event", "time", *names(Place)}


def test_the_manual_names_every_phase() -> None:
    found = re.search(r"^### `phase_started`\n(.*?)(?=^##)", DOCS, re.MULTILINE | re.DOTALL)
    assert found
    assert set(re.findall(r"^- `([a-z ]+)`", found[1], re.MULTILINE)) == set(get_args(PhaseName))


def test_the_manual_has_every_field_of_a_failure() -> None:
    out = io.BytesIO()
    text.JsonLines(out).failed(ObuildError("no"))
    assert documented("`failed`") == json.loads(out.getvalue()).keys() - {"event", "time", *NOWHERE}


@pytest.mark.parametrize(
    ("command", "record"),
    [
        ("plan", Outlook),
        ("inspect", Description),
        ("cache ls", Cache),
        ("ls", Listed),
        ("df", Usage),
        ("tag ls", Tag),
        ("publish", Published),
        ("history", Build),
    ],
)
def test_the_manual_has_every_field_of_what_commands_print(command: str, record: Any) -> None:
    assert documented(f"`obuild {command} --json`") == names(record)
    assert names(Neighbour) == {"id", "op"}


def test_the_manual_has_every_field_of_layers_in_a_remote() -> None:
    assert documented("`obuild remote ls --json`") == names(remotes_gc.Listed) - {"blobs"}


def test_the_manual_has_every_field_of_a_plan_to_make_room() -> None:
    assert documented("`obuild prune --dry-run --json`") == names(gc.Plan) | names(gc.Item)


def test_the_manual_has_every_field_of_the_differences_of_layers() -> None:
    described = names(diff.Differences) | names(diff.ChangedPackage) | names(diff.ChangedFile)
    assert documented("`obuild diff --json`") == described


def test_the_manual_has_every_field_of_what_fsck_finds(tmp_path: Path) -> None:
    Store.open(tmp_path)
    (tmp_path / "state" / "locks" / "x.lock").touch()
    done = subprocess.run(
        [sys.executable, "-m", "obuild", "fsck", "--json", f"--store=qemu:{tmp_path}"], capture_output=True
    )
    shown = json.loads(done.stdout)
    assert documented("`obuild fsck --json`") == shown.keys() | shown["findings"][0].keys()


def test_the_manual_s_example_is_json() -> None:
    example = DOCS.partition("```json\n")[2].partition("```")[0]
    assert [json.loads(line)["event"] for line in example.splitlines()][-1] == "done"
