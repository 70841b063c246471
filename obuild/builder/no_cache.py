"""Builds that make each command again (`--no-cache`): what commands have made is removed first.

A step that is made again has the same id, so its old layer has to go, and with it all that was built on it, by
this spec or by another: layers are a cache, and the next build that wants one makes it. A tag says that a layer is
more than that, so nothing is removed under one, but for tags that this build sets itself. Imports and copies give
the same bytes whenever they are made; those before the first command stay. So do the caches that commands share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from obuild.errors import ObuildError
from obuild.events import Teller
from obuild.host.units import count
from obuild.plan.keys import LayerId
from obuild.plan.steps import Command, Step
from obuild.store import removal
from obuild.store.layers import Store


@dataclass(frozen=True, slots=True)
class Forgetter:
    """Removes layers once in a build: what another stage has made again since is not removed a second time."""

    store: Store
    own: Collection[str] = ()  # the tags that the build sets
    _claimed: dict[LayerId, object] = field(default_factory=dict)

    def forget(self, chains: Iterable[Sequence[Step]], tell: Teller) -> None:
        """Remove what the commands of chains have made, and all that was built on that.

        ObuildError if another tag is in the way, with nothing removed; and if a build uses one of the layers.
        """
        roots = [first for first in map(first_command, chains) if first and self._claim(first)]
        tags = {name: id for root in roots for name, id in removal.in_the_way(self.store, root).items()}
        others = [name for name in tags if name not in self.own]
        if others:
            named = ", ".join(f"{name} ({tags[name][:12]})" for name in others)
            raise ObuildError(
                f"--no-cache makes layers again that have tags, or are below some: {named}",
                hint=f"remove the tags first: obuild tag rm {' '.join(others)}",
            )
        for name, id in tags.items():
            self.store.tags.remove(name, unless=id.__ne__)  # it may have moved since
        gone: list[LayerId] = []
        for root in roots:
            if stayed := removal.delete(self.store, root, tell=gone.append):
                raise ObuildError(
                    f"--no-cache cannot make the layer {stayed[0][:12]} again: it is in use",
                    hint="another build is running on it; try again when it has ended",
                )
        if gone:
            tell.note(f"--no-cache: removed {count(len(gone), 'layer')}")

    def _claim(self, first: LayerId) -> bool:
        """Whether this is the first time that somebody wants the layer removed, be it another stage at once."""
        mine = object()
        return self._claimed.setdefault(first, mine) is mine


def first_command(steps: Sequence[Step]) -> LayerId | None:
    """The first step of a chain that runs a command."""
    return next((step.id for step in steps if isinstance(step.action, Command)), None)
