"""Wait for a step that another build is making: follow its log as it grows, and learn how it ended."""

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
    """Reports the log of the step `id`, made by another process or another stage of this one, from its start.

    Call it repeatedly while waiting, and `drain` when the wait is over. `heard` is true if there was a build to
    wait for. Leaving the context ends the wait's phase, whatever happens.
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
        """Report new output. Cancelled if our own build is cancelled."""
        self._scope.check()
        if not self._looked:  # opening or sweeping a store also holds the lock for a moment
            self._looked = True
            return
        if not self.heard:
            self.heard = True
            self._wait.enter_context(self._tell.phase("waiting"))
            self._tell.note("another build is building this step; its log follows")
        if self._log is not None and self._replaced():
            self._finish_log()
            self._tell.note("that build was interrupted; another one is starting over")
        if self._log is None:
            try:
                self._log = self._wait.enter_context(open_file(self._path))
            except (FileNotFoundError, NotAFile):  # the step has only just begun, or has already ended
                return
            self._told = os.fstat(self._log.fileno())
        self._rest()

    def drain(self) -> None:
        """Report the rest of the log and end the wait."""
        self._finish_log()
        self._wait.close()

    def told(self, log: Path) -> bool:
        """Return whether `log` is the file that was reported last."""
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
        """Return whether there is a newer draft. If the layer was saved, the old log is merely gone."""
        try:
            return not self.told(self._path)
        except FileNotFoundError:
            return False


def failure_word(error: ObuildError) -> bytes:
    """Encode a step's failure for those who wait for the step."""
    word = {"message": error.message[:10_000], "hint": error.hint}
    return json.dumps(word).encode("utf-8")


def failure(word: bytes) -> ObuildError:
    """Decode the error that `failure_word` encoded."""
    try:
        heard = json.loads(word)
        return StepFailed(str(heard["message"]), hint=str(heard["hint"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return StepFailed("another build of this step has failed")
