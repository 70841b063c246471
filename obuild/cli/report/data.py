"""What a report shows: the story of a build, with what the store has of its layers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import BinaryIO

from obuild.builder import history
from obuild.builder.history import Build
from obuild.cli.graph import model
from obuild.cli.report.story import Stage, Step, Story, tell
from obuild.errors import ObuildError
from obuild.host.regular import open_file, read_bytes
from obuild.plan import diff, keys
from obuild.plan.keys import LayerId
from obuild.store.index import Index
from obuild.store.layers import Store
from obuild.version import VERSION

#: How much of a log is shown, in bytes: its beginning and its end; and of all logs together.
BEGINNING, END, ALL = 20_000, 180_000, 12_000_000

#: How many lines of a field of a key are shown, and how many characters of a line; and of all keys together.
LINES, WIDTH, ALL_KEYS = 40, 2000, 8_000_000

#: A longer key is not shown, in bytes: reading it would take seconds.
LARGEST_KEY = 1 << 20

Json = dict[str, object]


def collect(store: Store, build: Build, story: Story) -> Json:
    """The data of the page. What cannot be read, because it was removed since, is left out."""
    with ExitStack() as stack:
        index = None
        with suppress(ObuildError):
            index = stack.enter_context(Index(store))
        share = _share(store, story)
        room = ALL_KEYS // max(1, sum(len(stage.steps) for stage in story.stages.values()))
        stages = [_stage(store, index, stage, story, share, room) for stage in story.stages.values()]
    tags = store.tags.by_layer().get(LayerId(build.result), []) if build.result else []
    return {
        "build": {name: getattr(build, name) for name in build.__slots__} | {"tags": tags},
        "message": story.message,
        "hint": story.hint,
        "notes": story.notes,
        "stages": stages,
        "qemu": _qemu(store) if build.executor == "qemu" else "",
        "made_by": VERSION,
    }


def drawing(data_of: Story) -> list[model.Stage]:
    """The stages of a build as the graph shows them."""
    return [
        model.Stage(
            stage.path,
            [
                model.Step(step.op, step.text, step.state, step.origin, _detail(step), anchor(number, step))
                for step in stage.steps.values()
            ],
        )
        for number, stage in enumerate(data_of.stages.values())
    ]


def anchor(stage: int, step: Step) -> str:
    """The id of a step in the page."""
    return f"s{stage}-{step.op}"


def _detail(step: Step) -> str:
    return "; ".join((step.text, step.state, *step.why))


def _share(store: Store, story: Story) -> int:
    """How much each log may have if all together must not be too large, in bytes."""
    steps = [step for stage in story.stages.values() for step in stage.steps.values()]
    sizes = sorted(min(_size(store, step), BEGINNING + END) for step in steps)
    left, count = ALL, len(sizes)
    for size in sizes:  # what the small ones leave is for the large ones
        if size * count > left:
            return max(1000, left // count)
        left, count = left - size, count - 1
    return BEGINNING + END


def _size(store: Store, step: Step) -> int:
    with suppress(OSError):
        return store.log_path(LayerId(step.id)).lstat().st_size if step.id else 0
    return 0


def _stage(store: Store, index: Index | None, stage: Stage, story: Story, share: int, room: int) -> Json:
    shown = []
    for step in stage.steps.values():
        phases = [[each.name, each.subject, each.began, each.seconds] for each in step.phases]
        fields = {name: getattr(step, name) for name in step.__slots__ if name != "phases"}
        log = _log(store, step, share)
        if step is story.failed and story.output:
            log = {"text": _text(story.output), "size": len(story.output), "cut": False}
        shown.append({**fields, "phases": phases, "log": log, **_layer(store, index, step, room)})
    return {"path": stage.path, "steps": shown}


def _layer(store: Store, index: Index | None, step: Step, room: int) -> Json:
    """What the store knows of a layer: its size, and the fields of its key, in about `room` characters."""
    if not step.id:
        return {"size": None, "key": []}
    id = LayerId(step.id)
    row = index.get(id) if index else None
    fields: list[tuple[str, list[str]]] = []
    with suppress(OSError, ObuildError, ValueError):
        path = store.layer(id).path / "key"
        if path.lstat().st_size <= LARGEST_KEY:
            text = read_bytes(path).decode("utf-8", "surrogateescape")
            for name, lines in diff.describe(keys.fields(text)):
                fields.append((name, list(_some(lines, room))))
                room -= sum(map(len, fields[-1][1]))
        else:
            fields = [("key", [f"too long to show; `obuild inspect {id[:12]}` does"])]
    return {"size": row.size if row else None, "key": fields}


def _some(lines: list[str], room: int) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == LINES or room <= 0:
            yield f"… and {len(lines) - number} more"
            return
        width = min(WIDTH, room)
        yield line if len(line) <= width else line[: width - 1] + "…"
        room -= len(line)


def _log(store: Store, step: Step, share: int) -> Json | None:
    """The log of a layer or a draft, without its middle if it is long. None if there is none any more."""
    if not step.id:
        return None
    with suppress(OSError), open_file(store.log_path(LayerId(step.id))) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= share:
            return {"text": _text(file.read(share)), "size": size, "cut": False}
        first, last = _ends(file, size, share)
        note = (
            f"\n… {size - len(first) - len(last)} bytes are left out; `obuild logs {step.id[:12]}` prints all …\n"
        )
        return {"text": _text(first) + note + _text(last), "size": size, "cut": True}
    return None


def _ends(file: BinaryIO, size: int, share: int) -> tuple[bytes, bytes]:
    first = file.read(share // 10)
    file.seek(size - share * 9 // 10)
    return first, file.read(share * 9 // 10)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _qemu(store: Store) -> str:
    """What QEMU says that it is, if anybody has asked it."""
    with suppress(OSError, ValueError, TypeError, IndexError, AttributeError):
        return str(json.loads(read_bytes(store.state / "qemu.json"))["said"].splitlines()[0])
    return ""


def of(store: Store, wanted: str) -> tuple[Json, list[model.Stage], str]:
    """The data and the graph of a build, and its name. `wanted` is as for `history.find`, UsageError too."""

    name = history.find(store, wanted)
    build = history.look(store, name)
    if build is None:
        raise ObuildError(f"the record of the build {name} is damaged")
    story = tell(history.events(store, name), running=build.outcome == "running")
    return collect(store, build, story), drawing(story), name
