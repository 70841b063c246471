"""A client's connection to the scheduler of a farm. Any thread may use it.

Whatever fails because the scheduler is gone raises Lost. A worker that is gone is no error: another begins again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client, Future, KilledWorker

from obuild.builder.farm import task
from obuild.builder.farm.dask_settings import security, silence
from obuild.builder.farm.needs import Resources
from obuild.builder.farm.service import TOPIC
from obuild.builder.farm.tls import Address
from obuild.builder.farm.wire import Lost
from obuild.errors import ObuildError
from obuild.plan.keys import LayerId
from obuild.remotes.layer import Blob

#: How long to wait for a scheduler at the beginning, in seconds.
CONNECT = 10

#: How often a question that waits is looked at, in seconds.
LOOK = 0.05

#: How often all tasks of all workers are looked at, in seconds. Usually, workers say what they begin.
LOOK_AROUND = 1.0

#: So many workers are asked what they have.
ASKED = 64


#: Posts a task for some workers, or for all if there are none.
Submit = Callable[[Sequence[str]], Future]


class Post:
    """A task that we want done: first by one of some workers, if there are any, and else by any that can."""

    def __init__(
        self,
        link: Link,
        key: str,
        needs: Resources,
        submit: Callable[[Sequence[str]], Future],
        workers: Sequence[str],
    ) -> None:
        """`workers` are as `preferred` has chosen them."""
        self.key, self._link, self._needs, self._submit = key, link, needs, submit
        self._bound = bool(workers)
        self._chosen = workers
        self._future = submit(workers)

    @property
    def done(self) -> bool:
        """Whether there is an answer. Lost if there will be none."""
        if self._future.status in ("cancelled", "lost"):
            raise self._link.lost()
        return bool(self._future.status in ("finished", "error"))

    def answer(self) -> dict[str, Any]:
        """What the task returned. ObuildError if several workers were lost with it."""
        with self._link.connected():
            error = self._future.exception(timeout=CONNECT)
            if isinstance(error, KilledWorker):
                raise ObuildError(
                    "several workers were lost while they made this step, so no other will try",
                    hint="look at the hosts of the workers: memory, disk; then build again",
                )
            if error is not None:
                hint = "workers, scheduler and clients need the same obuild[farm]"
                raise ObuildError(f"the farm failed: {type(error).__name__}: {error}", hint=hint)
            return dict(self._future.result(timeout=CONNECT))

    def begun(self) -> None:
        """A worker has it: if that is lost, any other may begin anew."""
        self._give_back()
        if self._bound:
            self._bound = False
            self._link.unbind(self.key)

    def waits(self, offers: Mapping[str, Mapping[str, float]]) -> None:
        """No worker has begun it. It is given to one with a free slot: Dask may have put it behind another task.

        If there is none, and it was for those that are gone or cannot work now, any other may begin.
        """
        self._give_back()
        self._chosen = self._link.free(self._needs, offers)
        if self._chosen or self._bound:
            self._bound = bool(self._chosen)
            self._future.release()
            self._future = self._submit(self._chosen)

    def release(self) -> None:
        """We do not want it any more."""
        self._give_back()
        self._future.release()

    def _give_back(self) -> None:
        self._link.give_back(self._chosen)
        self._chosen = ()


class Link:
    """An open connection."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._places: dict[str, str] = {}
        self._given: Counter[str] = Counter()
        self._looked = 0.0
        self._choosing = threading.Lock()
        silence()
        with self.connected():
            self._client = Client(
                address.url, security=security(address), timeout=CONNECT, set_as_default=False, name="obuild"
            )
            self._client.subscribe_topic(TOPIC, self._begun)

    def close(self) -> None:
        with suppress(Exception):
            self._client.close(timeout=CONNECT)

    def lost(self) -> Lost:
        return Lost(
            f"the scheduler {self._address.url} is gone, or cannot be reached",
            hint="what its workers have made is in the remote; --farm-fallback goes on without it",
        )

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Turn the errors of a lost connection into Lost."""
        try:
            yield
        except (OSError, asyncio.CancelledError, TimeoutError, RuntimeError) as error:
            raise self.lost() from error

    def _begun(self, event: tuple[float, dict[str, str]]) -> None:
        self._places[event[1]["key"]] = event[1]["worker"]

    # -- workers

    def offers(self) -> dict[str, Mapping[str, float]]:
        """What each worker offers, by address."""
        with self.connected():
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        return {address: about["resources"] for address, about in workers.items()}

    def preferred(
        self, needs: Resources, offers: Mapping[str, Mapping[str, float]], ids: Sequence[LayerId]
    ) -> list[str]:
        """A worker with a free slot that has most of a chain, if one has any of it; `post` gives the slot back."""
        return self._chosen(needs, offers, ids, "depth")

    def free(self, needs: Resources, offers: Mapping[str, Mapping[str, float]]) -> list[str]:
        """The worker with most free slots, if there are several workers, and one has any. See `give_back`."""
        return self._chosen(needs, offers, (), "free")

    def give_back(self, workers: Sequence[str]) -> None:
        """Slots that were chosen are taken now, and their workers tell so; or they are not needed."""
        with self._choosing:
            self._given.subtract(workers)

    def _chosen(
        self, needs: Resources, offers: Mapping[str, Mapping[str, float]], ids: Sequence[LayerId], worth: str
    ) -> list[str]:
        able = [
            address
            for address, offer in offers.items()
            if all(offer.get(name, 0) >= count for name, count in needs.items())
        ]
        if len(able) < 2:
            return []
        with self.connected():
            replies = self._client.sync(
                self._client.scheduler.broadcast,
                msg={"op": "obuild_has", "ids": list(ids)},
                workers=able[:ASKED],
                on_error="ignore",
            )
        with self._choosing:  # two stages that come at once must not both wait for one slot
            free = {address: reply for address, reply in replies.items() if reply["free"] > self._given[address]}
            most = max((reply[worth] for reply in free.values()), default=0)
            best = [address for address, reply in free.items() if most and reply[worth] == most][:1]
            self._given.update(best)
        return best

    def place(self, key: str) -> str:
        """The address of the worker that has begun a task, as far as we know; "" if none has."""
        if key not in self._places and time.monotonic() - self._looked > LOOK_AROUND:
            self._looked = time.monotonic()
            with self.connected():  # it may have begun before we came, for another client
                for address, keys in self._client.processing().items():
                    self._places.update(dict.fromkeys(keys, address))
        return self._places.get(key, "")

    def forget(self, key: str) -> None:
        """The worker of a task does not know it, or is gone."""
        self._places.pop(key, None)

    def ask(self, worker: str, op: str, meanwhile: Callable[[], object], **more: Any) -> Any:
        """Ask a worker, and call `meanwhile` while it thinks; None if it cannot be reached."""
        loop = self._client.loop.asyncio_loop
        question = self._client.scheduler.proxy(msg={"op": op, **more}, worker=worker)
        asked = asyncio.run_coroutine_threadsafe(_awaited(question), loop)
        try:
            while True:
                with suppress(NotYet):
                    return asked.result(LOOK)
                meanwhile()
        except (OSError, KeyError, ValueError, TypeError):
            return None
        finally:
            asked.cancel()

    # -- tasks

    @contextmanager
    def post(self, key: str, blob: Blob, needs: Resources, workers: Sequence[str]) -> Iterator[Post]:
        """Have a task done, if possible by one of these workers. We do not want it any more when the block ends.

        If another client wants the same task, both get its answer. Dask's own `allow_other_workers` would forget
        what the task needs.
        """

        def submit(workers: Sequence[str]) -> Future:
            with self.connected():
                order = (blob.digest, blob.size)
                return self._client.submit(
                    task.work, *order, key=key, resources=needs, workers=list(workers) or None, pure=False
                )

        post = Post(self, key, needs, submit, workers)
        try:
            yield post
        finally:
            post.release()

    def unbind(self, key: str) -> None:
        """Let any worker that can do a task begin it anew, if the one that has it is lost."""
        with self.connected(), suppress(KeyError):
            self._client.sync(self._client.scheduler.set_restrictions, worker={key: None})


async def _awaited(question: Any) -> Any:
    return await question
