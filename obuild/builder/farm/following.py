"""Follow an order that was posted: what its runs say, one after the other, until it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from obuild.builder.farm import needs, wire
from obuild.builder.farm.needs import Resources
from obuild.errors import ObuildError, StepFailed
from obuild.events import PhaseEnded, PhaseStarted, Teller
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId

if TYPE_CHECKING:
    from obuild.builder.farm.link import Link, Post

#: How long a build waits for a worker that could make its steps, in seconds.
PATIENCE = 60.0

#: How often it looks whether a worker has begun, and whether one could, in seconds.
LOOK, LOOK_AROUND = 0.05, 5.0

#: So many workers may say that they cannot work; then the build fails.
TRIES = 3


class Restarted(NamedTuple):
    """What follows is said by another run of the same order."""

    worker: str


Heard = tuple[wire.Said | Restarted, LayerId]


@dataclass
class Following:
    """One order that was posted, and needs this of a worker. `secrets` gives the sealed values for a key."""

    link: Link
    post: Post
    needs: Resources
    scope: CancelScope
    tell: Teller
    secrets: Callable[[str], bytes]
    answer: dict[str, Any] = field(default_factory=dict)
    _run: str = ""
    _offset: int = 0
    _rest: bytes = b""
    _unfit: int = 0
    _alone: float = 0.0  # since when no worker could do it
    _looked: float = 0.0

    def said(self) -> Iterator[Heard]:
        """What runs of the order say, until it is done: then `answer` has the answer.

        Lost if the scheduler is gone, Cancelled if the build is cancelled, ObuildError if there is no hope.
        """
        began = time.monotonic()
        while True:
            self.scope.check()
            done = self.post.done  # before we ask: what was said last is there then
            if done and not self.answer:
                self.answer = self.post.answer()
            worker = str(self.answer["worker"]) if done else self.link.place(self.post.key)
            reply = self._ask(worker) if worker else None
            if reply and reply["run"]:
                if reply["run"] != self._run:
                    if self._run:
                        yield Restarted(worker), LayerId("")
                    self._run, self._offset, self._rest = reply["run"], 0, b""
                self.post.begun()
                self._offset += len(reply["said"])
                yield from self._lines(reply["said"], worker)
                began, self._alone = time.monotonic(), 0.0
                if not (reply["ended"] and not reply["said"]):
                    continue
            if done:
                return
            self.link.forget(self.post.key)
            if time.monotonic() - began > LOOK_AROUND:
                self._look_around()
            time.sleep(LOOK)

    def see_done(self) -> None:
        """Raise what the order has failed with, if it has."""
        if failed := self.answer.get("failed"):
            kind = StepFailed if failed["command"] else ObuildError
            raise kind(str(failed["message"]), hint=str(failed["hint"]))

    def _ask(self, worker: str) -> Any:
        question = {"key": self.post.key, "run": self._run, "offset": self._offset}
        return self.link.ask(worker, "obuild_hear", self.scope.check, **question)

    def _lines(self, said: bytes, worker: str) -> Iterator[Heard]:
        *lines, self._rest = (self._rest + said).split(b"\n")
        for line in lines:
            try:
                what, step = wire.load(line)
            except ValueError as error:
                raise ObuildError(str(error)) from error
            if isinstance(what, wire.Wanted):
                sealed = self.secrets(what.key)
                question = {"key": self.post.key, "run": self._run, "sealed": sealed}
                self.link.ask(worker, "obuild_secrets", self.scope.check, **question)
                continue
            if isinstance(what, wire.Unfit):
                self._unfit += 1
                if self._unfit == TRIES:
                    raise ObuildError(f"{TRIES} workers cannot make this; the last one, {worker}: {what.why}")
            yield what, step

    def _look_around(self) -> None:
        """Give it to a worker that could do it. ObuildError if there was none for a while."""
        now = time.monotonic()
        if now - self._looked < LOOK_AROUND:
            return
        self._looked = now
        offers = self.link.offers()
        self.post.waits(offers)
        why = needs.lacking(self.needs, offers.values())
        if not why and not any(offer.get(needs.FIT) for offer in offers.values()):
            why = "no worker can work at the moment"
        if not why:
            self._alone = 0.0
        elif not self._alone:
            self._alone = now
            self.tell.note(f"{why}; this build waits for one")
        elif now - self._alone > PATIENCE:
            raise ObuildError(f"{why}, and none has come for {PATIENCE:.0f} seconds", hint="start `obuild worker`")


class Phases:
    """Passes phases on, and ends those that a lost worker has left open."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], tuple[PhaseStarted, Teller, float]] = {}

    def told(self, what: object, tell: Teller) -> None:
        """Note what is told."""
        if isinstance(what, PhaseStarted):
            self._open[what.phase, what.subject] = what, tell, time.monotonic()
        elif isinstance(what, PhaseEnded):
            self._open.pop((what.phase, what.subject), None)

    def end(self) -> None:
        for started, tell, began in self._open.values():
            tell(PhaseEnded(started.phase, started.subject, time.monotonic() - began))
        self._open.clear()
