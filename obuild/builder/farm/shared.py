"""The remote of a farm, as a worker uses it: workers do not make the same step at the same time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from obuild.bases import own_keys
from obuild.builder.sharing import Sharing
from obuild.errors import ObuildError, StoreError
from obuild.events import Teller
from obuild.plan.keys import LayerId
from obuild.plan.steps import Step
from obuild.remotes import content, manifests, pull
from obuild.remotes.protocol import Remote, Unusable
from obuild.store import removal
from obuild.store.layers import Store


class Turns(Protocol):
    """Gives one worker at a time the right to make a step. A worker that dies loses it."""

    def take(self, id: LayerId, tell: Teller) -> None:
        """Wait for the right. Cancelled if the build is cancelled."""

    def give_back(self, id: LayerId) -> None:
        """Let others make the step, if we have the right."""


class NoTurns:
    """For a worker that is alone."""

    def take(self, id: LayerId, tell: Teller) -> None:
        pass

    def give_back(self, id: LayerId) -> None:
        pass


@dataclass
class FarmSharing(Sharing):
    """As Sharing, with a single remote. A layer that is made is in the remote before its turn is given back."""

    turns: Turns = field(default_factory=NoTurns)

    @property
    def remote(self) -> Remote:
        return self.opened(self.wish.names[0])

    def fetch(self, step: Step, tell: Teller) -> bool:
        """Fetch the layer of a step; False if it has to be made, and it is our turn to do that."""
        if super().fetch(step, tell):
            return True
        self.turns.take(step.id, tell)
        self.look([step], again=True)
        if not super().fetch(step, tell):
            return False
        self.turns.give_back(step.id)
        return True

    def push(self, id: LayerId) -> None:
        try:
            super().push(id)
        except Unusable as error:  # we were so slow that our turn was given to another: begin anew with its layer
            raise StoreError(error.message, hint=error.hint) from error
        finally:
            self.turns.give_back(id)

    def need(self, step: Step) -> None:
        """ObuildError unless the store or the remote has the layer of a base."""
        self.look([step])
        if not self.available([step]):
            raise ObuildError(
                f"{self.remote.name} lacks the base {step.id[:12]}",
                hint="clients and workers of a farm need the same remote",
            )

    def bring(self, id: LayerId, tell: Teller) -> None:
        """Fetch a layer and all below it, as far as the store lacks them. ObuildError if the remote lacks one."""
        if self.store.find(id):
            return
        tip = manifests.find(self.remote, id)
        if tip is None:
            hint = "clients and workers of a farm need the same remote"
            raise ObuildError(f"{self.remote.name} lacks layer {id[:12]}", hint=hint)
        found = pull.chain(self.remote, tip)
        if self._unsigned(self.remote, {each.id: each.manifest for each in found}):
            raise ObuildError(f"layer {id[:12]} in {self.remote.name} has no signature by a trusted key")
        with tell.phase("fetching", self.remote.name) as phase:
            keys = partial(own_keys.blocks, self.store)
            pull.pull(self.store, self.remote, found, keys, progress=self._advancing(phase))


def drop_others(store: Store, remote: Remote, ids: list[LayerId]) -> None:
    """Remove the layers of a chain that are another build than those in the remote, with all built on them.

    A worker that was killed may have made a layer and not sent it. Others have made the step since, and what they
    built on it does not fit on ours. StoreError if a layer cannot be removed because it is in use.
    """
    there = manifests.of(remote, [id for id in ids if store.find(id)])
    for id in ids:
        if id not in there:
            continue
        with store.use(id) as layer:
            other = layer is not None and content.of(store, id) != there[id].content
        if other:
            if removal.delete(store, id, tell=lambda gone: None, untag=True):
                raise StoreError(f"{remote.name} has another build of layer {id[:12]}, and ours is in use")
            return
