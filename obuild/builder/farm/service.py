"""A worker as a Dask worker: it takes orders from a scheduler, and answers clients that follow them.

What an order's build says is kept in a file, from which clients read at their own pace: through the scheduler,
because they may not reach the worker. Dask keeps nothing of it. Cancelling a task does not stop its thread, so we
do: Dask tells of it in `transition`, also when the last client that wanted the task is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import suppress
from typing import Any

from distributed import Lock, Reschedule, Worker, WorkerPlugin
from nacl.public import PrivateKey, SealedBox

from obuild.builder.farm import needs, wire
from obuild.builder.farm.host import Host, Job
from obuild.builder.farm.task import PLUGIN
from obuild.errors import ObuildError, StepFailed, StoreError, UsageError
from obuild.events import Event, PhaseName, Teller
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.remotes.layer import Blob
from obuild.store.layers import Store

#: The topic at which workers say which order they have begun.
TOPIC = "obuild-begun"

#: How much of what a build says is sent at once, in bytes.
MOST = 1 << 20

#: How long a question waits for something new, in seconds, and how often it looks.
WAIT, LOOK = 5.0, 0.05

#: How long an answer waits for more to say, in seconds.
GATHER = 0.2

#: How long a worker waits for secrets, in seconds.
SECRETS_WAIT = 60.0

#: How long a worker that cannot work takes nothing, in seconds. Then it tries again.
REST = 60.0

#: So many runs are remembered after their end, for clients that have not read all.
KEPT = 64

#: The right to make a step is one of so many locks: the scheduler never forgets a lock that it has given once.
LOCKS = 1 << 16


class Run:
    """One run of an order: what its build says, and what cancels it. Any thread may use it."""

    def __init__(self, store: Store) -> None:
        self.id = uuid.uuid4().hex
        self.scope = CancelScope()
        self.ended = False
        self.secrets: Future[Mapping[str, bytes]] = Future()
        self._said = store.spool()
        self._size = 0
        self._lock = threading.Lock()

    def say(self, line: bytes) -> None:
        """Add a line. OSError if the disk is full."""
        with self._lock:
            self._said.write(line)
            self._said.flush()
            self._size += len(line)

    def hear(self, event: Event) -> None:
        """A listener for the build."""
        self.say(wire.dump_event(event))

    def has(self, offset: int) -> bool:
        """Whether something was said from an offset on."""
        return self._size > offset

    def read(self, offset: int) -> bytes:
        """What was said, from an offset; b"" if there is no more yet."""
        count = min(MOST, max(0, self._size - offset))
        return os.pread(self._said.fileno(), count, offset)


class LockTurns:
    """Turns by Dask's locks. A lock of a worker that is lost ends after 30 seconds."""

    def __init__(self, worker: Worker, run: Run) -> None:
        self._worker, self._run = worker, run
        self._held: dict[LayerId, Lock] = {}

    def take(self, id: LayerId, tell: Teller) -> None:
        name = f"obuild-step-{int(id[:8], 16) % LOCKS}"
        lock = Lock(name, scheduler_rpc=self._worker.scheduler, loop=self._worker.loop)
        if not lock.acquire(timeout=LOOK):
            waiting: PhaseName = "waiting"
            with tell.phase(waiting):
                tell.note("another worker is making this step")
                while not lock.acquire(timeout=1):
                    self._run.scope.check()
        self._held[id] = lock

    def give_back(self, id: LayerId) -> None:
        if lock := self._held.pop(id, None):
            lock.release()
            self._worker.loop.add_callback(lock.refresh_callback.stop)

    def give_all_back(self) -> None:
        for id in list(self._held):
            self.give_back(id)


class Service(WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """What a worker adds to Dask's."""

    name = PLUGIN

    def __init__(self, host: Host, slots: int, log: Callable[[str], object]) -> None:
        self.host, self.slots, self._log = host, slots, log
        self._runs: dict[str, Run] = {}  # by the keys of their tasks
        self._key = PrivateKey.generate()
        self._worker: Worker = None

    def setup(self, worker: Worker) -> None:
        self._worker = worker
        worker.handlers |= {
            "obuild_hear": self._hear,
            "obuild_secrets": self._take_secrets,
            "obuild_has": self._has,
        }

    def teardown(self, worker: Worker) -> None:
        for run in list(self._runs.values()):
            run.scope.cancel()

    def transition(self, key: str, start: str, finish: str, **more: Any) -> None:
        if finish in ("cancelled", "released", "forgotten") and (run := self._runs.get(key)):
            run.scope.cancel()

    # -- the thread of a task

    def work(self, key: str, digest: str, size: int) -> dict[str, Any]:
        """Carry out the order that is this blob. Failures are returned: Dask then has no exceptions to carry."""
        run = self._begin(key)
        turns = LockTurns(self._worker, run)
        answer: dict[str, Any] = {"run": run.id, "worker": self._worker.address}
        try:
            wanted = self.host.read(Blob(digest, size))
            self._log(f"{key}: begins")
            result = self.host.carry_out(wanted, Job(run.hear, run.scope, turns, lambda: self._secrets(run)))
            self._log(f"{key}: done")
            return {**answer, "result": list(result) if result else None}
        except ObuildError as error:
            if run.scope.cancelled:
                self._log(f"{key}: cancelled")
                raise Reschedule from error  # a client may want it again by now
            if isinstance(error, StoreError | UsageError):
                self._log(f"{key}: {error.message}")
                self._rest(run, error.message)
                raise Reschedule from error
            self._log(f"{key}: {error.message}")
            step = error.place.step if error.place else ""
            failed = {"message": error.message, "hint": error.hint, "step": step}
            return {**answer, "failed": {**failed, "command": isinstance(error, StepFailed)}}
        finally:
            turns.give_all_back()
            run.ended = True

    def _begin(self, key: str) -> Run:
        while len(self._runs) >= KEPT + self.slots:
            self._runs.pop(next(each for each, run in self._runs.items() if run.ended))
        self._runs.pop(key, None)
        run = self._runs[key] = Run(self.host.store)
        begun = {"key": key, "worker": self._worker.address}
        self._worker.loop.add_callback(self._worker.log_event, TOPIC, begun)
        return run

    def _rest(self, run: Run, why: str) -> None:
        """Take nothing for a while, and leave this order to others."""
        with suppress(OSError):
            run.say(wire.dump(wire.Unfit(why)))
        loop = self._worker.loop
        done = asyncio.run_coroutine_threadsafe(self._worker.set_resources(**{needs.FIT: 0}), loop.asyncio_loop)
        done.result()
        loop.add_callback(loop.call_later, REST, self._recover)

    async def _recover(self) -> None:
        await self._worker.set_resources(**{needs.FIT: self.slots})

    def _secrets(self, run: Run) -> Mapping[str, bytes]:
        """Ask the clients that follow this run for the values of its secrets."""
        run.say(wire.dump(wire.Wanted(bytes(self._key.public_key).hex())))
        try:
            return run.secrets.result(SECRETS_WAIT)
        except NoAnswer as error:
            raise ObuildError("no client has sent the secrets of this build") from error

    # -- the event loop: questions of clients

    async def _hear(self, key: str, run: str, offset: int) -> dict[str, Any]:
        """What a run says from `offset` on, as soon as there is something; from the start if it is another run."""
        found = self._runs.get(key)
        if found is None:
            return {"run": "", "said": b"", "ended": True}
        if found.id != run:
            offset = 0
        waited = 0.0
        while not found.ended and waited < WAIT and not found.has(offset):
            await asyncio.sleep(LOOK)
            waited += LOOK
        gathered = 0.0  # each answer costs the scheduler a TLS handshake
        while not found.ended and gathered < GATHER and not found.has(offset + MOST):
            await asyncio.sleep(LOOK)
            gathered += LOOK
        ended = found.ended  # looked at before we read: then there is nothing after what was read
        said = found.read(offset)
        return {"run": found.id, "said": said, "ended": ended and len(said) < MOST}

    def _take_secrets(self, key: str, run: str, sealed: bytes) -> None:
        found = self._runs.get(key)
        if found and found.id == run and not found.secrets.done():
            values = json.loads(SealedBox(self._key).decrypt(sealed))
            found.secrets.set_result({name: value.encode("latin-1") for name, value in values.items()})

    def _has(self, ids: list[LayerId]) -> dict[str, int]:
        """How many of the layers of a chain, from the first, are here, and how many slots are free."""
        depth = max((number for number, id in enumerate(ids, 1) if self.host.store.find(id)), default=0)
        return {"depth": depth, "free": self.slots - sum(not run.ended for run in list(self._runs.values()))}
