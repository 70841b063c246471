"""Waiting for a step that somebody else makes: hear its log as it grows, and how it ended."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from obuild.errors import ObuildError, StepFailed
from obuild.events import Output, Teller
from obuild.host.process import CancelScope
from obuild.host.regular import NotAFile, open_file
from obuild.plan.keys import LayerId
from obuild.store.layers import Store

_CHUNK = 1 << 20


class Follower:
    """Tells what another process, or another stage of this one, logs for the step `id`, from its start.

    Call it over and over while waiting; call `drain` when the wait is over. `heard` says if anyone was there to be
    waited for. It is a context manager, so that the wait ends as an event however it ends.
    """

    def __init__(self, store: Store, id: LayerId, tell: Teller, scope: CancelScope) -> None:
        self._scope = scope
        self._path = store.result_tmp / id / "log"
        self._tell = tell
        self._wait = ExitStack()
        self._log: BinaryIO | None = None
        self._told: os.stat_result | None = None
        self._looked = False
        self.heard = False

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *why: object) -> None:
        self._wait.close()

    def __call__(self) -> None:
        """Tell what is new. Cancelled if our own build is."""
        self._scope.check()
        if not self._looked:  # a store that is opened or tidied holds the lock for a moment, too
            self._looked = True
            return
        if not self.heard:
            self.heard = True
            self._wait.enter_context(self._tell.phase("waiting"))
            self._tell.note("another build is making this step; its log follows")
        if self._log is not None and self._replaced():
            self._finish_log()
            self._tell.note("that build was interrupted; another one starts over")
        if self._log is None:
            try:
                self._log = self._wait.enter_context(open_file(self._path))
            except (FileNotFoundError, NotAFile):  # it has only just begun, or has ended already
                return
            self._told = os.fstat(self._log.fileno())
        self._rest()

    def drain(self) -> None:
        """Tell what is left. The wait is over."""
        self._finish_log()
        self._wait.close()

    def told(self, log: Path) -> bool:
        """Whether this file is what was told last."""
        return self._told is not None and os.path.samestat(self._told, log.stat())

    def _finish_log(self) -> None:
        if self._log is not None:
            self._rest()
            self._log.close()
            self._log = None

    def _rest(self) -> None:
        while self._log is not None and (data := self._log.read(_CHUNK)):
            self._tell(Output(data))

    def _replaced(self) -> bool:
        """Whether there is a newer draft. The log of a layer that was saved is just not there any more."""
        try:
            return not self.told(self._path)
        except FileNotFoundError:
            return False


def failure_word(error: ObuildError) -> bytes:
    """What to leave to those who wait for a step that has failed."""
    word = {"message": error.message[:10_000], "hint": error.hint}
    return json.dumps(word).encode("utf-8")


def failure(word: bytes) -> ObuildError:
    """The error that `failure_word` was made of."""
    try:
        heard = json.loads(word)
        return StepFailed(str(heard["message"]), hint=str(heard["hint"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return StepFailed("the build that made this step has failed")
