"""Passes events to the listener of a build, one at a time, and ends the build if the listener raises."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from obuild.events import Event, Listener


class ListenerFailed(BaseException):
    """The listener raised `error`.

    Not an Exception, so that nothing below the engine mistakes it for a failure of a step, a machine or the store.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Guarded:
    """A listener that may be called from `threads`. Once it has raised, every call raises ListenerFailed."""

    def __init__(self, listener: Listener, *, threads: bool) -> None:
        self._listener = listener
        self._lock: AbstractContextManager[object] = nullcontext()
        self._failed: ListenerFailed | None = None
        if threads:
            import threading  # late: most builds have only one thread

            self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if self._failed:
                raise self._failed
            try:
                self._listener(event)
            except Exception as error:
                self._failed = ListenerFailed(error)
                raise self._failed from error
