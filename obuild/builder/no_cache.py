"""Builds that run every command again (`--no-cache`): the layers made by commands are removed first.

A step that runs again has the same id, so its old layer must be removed, and with it everything built on it, by
this or another spec: layers are a cache, and the next build that needs one rebuilds it. A tag marks a layer as
more than a cache, so if a tagged layer would be removed, the build is refused, except for tags that this build
sets itself. Imports and copies always give the same bytes; those before the first command stay. So do caches of
commands.
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
    """Removes each layer at most once per build: what another stage has rebuilt since is not removed again."""

    store: Store
    own: Collection[str] = ()  # the tags that the build sets
    _claimed: dict[LayerId, object] = field(default_factory=dict)

    def forget(self, chains: Iterable[Sequence[Step]], tell: Teller) -> None:
        """Remove the layers that the commands of the chains made, and everything built on them.

        ObuildError if another tag is in the way (nothing is removed then), or if a build uses one of the layers.
        """
        roots = [first for first in map(first_command, chains) if first and self._claim(first)]
        tags = {name: id for root in roots for name, id in removal.in_the_way(self.store, root).items()}
        others = [name for name in tags if name not in self.own]
        if others:
            named = ", ".join(f"{name} ({tags[name][:12]})" for name in others)
            raise ObuildError(
                f"--no-cache would remove tagged layers, or layers below them: {named}",
                hint=f"remove the tags first: obuild tag rm {' '.join(others)}",
            )
        for name, id in tags.items():
            self.store.tags.remove(name, unless=id.__ne__)  # unless it has moved since
        gone: list[LayerId] = []
        for root in roots:
            if stayed := removal.delete(self.store, root, tell=gone.append):
                raise ObuildError(
                    f"--no-cache cannot rebuild the layer {stayed[0][:12]}: it is in use",
                    hint="another build is using it; try again when it has ended",
                )
        if gone:
            tell.note(f"--no-cache: removed {count(len(gone), 'layer')}")

    def _claim(self, first: LayerId) -> bool:
        """Return True the first time this build asks to remove the layer, even if several stages ask at once."""
        mine = object()
        return self._claimed.setdefault(first, mine) is mine


def first_command(steps: Sequence[Step]) -> LayerId | None:
    """Return the id of the first step in a chain that runs a command, if any."""
    return next((step.id for step in steps if isinstance(step.action, Command)), None)
