"""What a build would do, and why: each step, whether its layer is there, and how it differs from one that is.

Looks and compares; boots nothing, makes no base image, writes no layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from obuild import base, explain
from obuild.explain import Fields
from obuild.plan import Base, Chain, Graft, Import, LayerId, Step, everything, plan, unbuilt
from obuild.spec import Stage
from obuild.store import Layer, Store

#: A step is compared with the layers that were used last, until so many characters of keys are read: about
#: a second's worth. The key of a copy may list 100,000 files, and a parent have 1,000 children.
ENOUGH = 2_000_000

NOTHING_LIKE_IT = "no layer like it in the store"


@dataclass(frozen=True, slots=True)
class Outlook:
    """One step of a build to come.

    `id` is None if it cannot be known yet. `why` says in words why the layer is not there: in what the step
    differs from `nearest`, the stored layer that is most like it.
    """

    op: str
    id: LayerId | None
    cached: bool
    why: tuple[str, ...] = ()
    nearest: LayerId | None = None


def forecast(stage: Stage, *, source: Path, store: Store, secrets: Sequence[str]) -> list[Outlook]:
    """What a build of `stage` would find and make, step by step, inner builds first. UsageError as a build."""
    return [
        outlook
        for each, builds in everything(stage)
        for outlook in _forecast(each, builds, source=source, store=store, secrets=secrets)
    ]


def _forecast(
    stage: Stage, builds: Mapping[str, Stage], *, source: Path, store: Store, secrets: Sequence[str]
) -> list[Outlook]:
    find = partial(_base, store)
    chain = plan(stage, source=source, find_base=find, secrets=secrets, extract=unbuilt(builds, find))
    if chain.base.digest:
        return list(_Forecaster(store).chain(chain))
    why = f"the base image {chain.base.name!r} would be made from its recipe first; ids are known only then"
    return [Outlook(step.headings[-1], None, False, () if step.parent else (why,)) for step in chain.steps]


def _base(store: Store, reference: str) -> Base:
    """The base as `base.find` finds it, or, if it is yet to be made, one without a digest."""
    found = base.look(store, reference)
    if found is not None:
        return found
    from obuild import recipe  # late: seldom needed

    name = reference.partition("@")[0]
    path = recipe.find(name)
    assert path is not None, "base.look knows its recipe"
    return Base(name, path, "", (0, 0, 0), recipe.load(path).card)


class _Forecaster:
    def __init__(self, store: Store) -> None:
        self.store = store

    def chain(self, chain: Chain) -> Iterator[Outlook]:
        stood: LayerId | None = None  # at the place of the step before: its layer, or the nearest to it
        steps = iter(chain.steps)
        for step in steps:
            op = step.headings[-1]
            if isinstance(step.action, Graft):
                origin = step.action.extract.origin
                yield Outlook(op, None, False, (f"what it copies is known once the build {origin!r} is made",))
                yield from (Outlook(later.headings[-1], None, False) for later in steps)
                return
            if self.store.find(step.id):
                stood = step.id
                yield Outlook(op, step.id, True)
                continue
            near = self.nearest(step, stood)
            if near is None:
                stood = None
                yield Outlook(op, step.id, False, (NOTHING_LIKE_IT,))
                continue
            layer, old = near
            stood = layer.id
            yield Outlook(op, step.id, False, tuple(explain.differences(old, explain.fields(step.key))), layer.id)

    @cached_property
    def children(self) -> dict[LayerId | None, list[Layer]]:
        """All layers by their parent, those used last first."""
        used: list[tuple[float, Layer, LayerId | None]] = []
        for id, parent in self.store.parents().items():
            layer = self.store.find(id)
            if layer is not None:
                with suppress(FileNotFoundError):  # it is just being removed
                    used.append((layer.path.stat().st_mtime, layer, parent))
        found: dict[LayerId | None, list[Layer]] = {}
        for _, layer, parent in sorted(used, key=lambda item: item[0], reverse=True):
            found.setdefault(parent, []).append(layer)
        return found

    def nearest(self, step: Step, stood: LayerId | None) -> tuple[Layer, Fields] | None:
        """The layer most like a step among those that were built on `stood`; of equals, the one used last."""
        if isinstance(step.action, Import):
            candidates = self.imports(step.action.base.name)
        else:
            candidates = self.children.get(stood, []) if stood else []
        new = explain.fields(step.key)
        best: tuple[float, Layer, Fields] | None = None
        read = 0
        for layer in candidates:
            with suppress(FileNotFoundError):  # it is just being removed
                key = layer.key
                old = explain.fields(key)
                if explain.alike(old, new):
                    distance = explain.distance(old, new)
                    if best is None or distance < best[0]:
                        best = distance, layer, old
                read += len(key)
            if read > ENOUGH:
                break
        return best[1:] if best else None

    def imports(self, name: str) -> list[Layer]:
        """The layers that a base image of this name was taken into; a key knows only its content."""
        if None not in self.children:
            return []
        from obuild.index import Index  # late: slow to import, and seldom needed

        with Index(self.store) as index:
            ids = {row.id for row in index.rows() if row.parent is None and _from(row.op) == name}
        return [layer for layer in self.children[None] if layer.id in ids]


def _from(op: str) -> str:
    """The name in `(from NAME)` or `(from NAME@sha256:HEX)`."""
    return op.removeprefix("(from ").removesuffix(")").partition("@")[0]
