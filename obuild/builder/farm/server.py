"""Run a worker until it is stopped, or its scheduler is gone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import NamedTuple

import dask
from distributed import Worker

from obuild.builder.farm import needs
from obuild.builder.farm.dask_settings import security, silence
from obuild.builder.farm.host import Host
from obuild.builder.farm.service import Service
from obuild.builder.farm.tls import Address
from obuild.executors.all import EXECUTORS
from obuild.guests.profile import OSES
from obuild.host.units import count

#: How long a scheduler may take to answer, in seconds.
CONNECT = 30

#: How long a lock outlives a worker that is lost, in seconds; up to 10 more pass until the scheduler looks.
LEASE = 8


class Offer(NamedTuple):
    """What a worker offers to builds. `memory` is in bytes."""

    slots: int
    executor: str
    arches: tuple[str, ...]
    memory: int

    def resources(self) -> needs.Resources:
        """As Dask's resources. Looks whether KVM works."""
        kvm = any(each.what == "KVM" and each.works for each in EXECUTORS[self.executor].capabilities())
        systems = OSES if self.executor == "qemu" else ("linux",)
        return needs.offered(
            self.slots, executor=self.executor, arches=self.arches, systems=systems, kvm=kvm, memory=self.memory
        )


def serve(host: Host, address: Address, offer: Offer, *, log: Callable[[str], object]) -> bool:
    """Work until a signal comes: SIGINT or SIGTERM. False if the scheduler is gone, or was never there.

    What is in work when it ends is begun anew by another worker.
    """
    silence()
    return asyncio.run(_serve(host, address, offer, log))


async def _serve(host: Host, address: Address, offer: Offer, log: Callable[[str], object]) -> bool:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    service = Service(host, offer.slots, log)
    settings = {"distributed.scheduler.locks.lease-timeout": f"{LEASE}s"}
    with host.store.sources_folder() as folder, dask.config.set(settings):
        worker = Worker(
            address.url,
            nthreads=offer.slots,
            resources=offer.resources(),
            security=security(address),
            local_directory=str(folder),
            memory_limit=0,
            plugins=[service],
            death_timeout=CONNECT,
            dashboard=False,
        )
        starting = asyncio.create_task(_start(worker))
        stop = asyncio.create_task(stopped.wait())
        await asyncio.wait([starting, stop], return_when=asyncio.FIRST_COMPLETED)
        if stopped.is_set():
            starting.cancel()
            return True
        try:
            await starting
        except OSError:
            return False
        log(f"worker {worker.address} of {address.url}: {count(offer.slots, 'slot')}")
        ended = asyncio.create_task(worker.finished())
        await asyncio.wait([ended, stop], return_when=asyncio.FIRST_COMPLETED)
        service.teardown(worker)
        await worker.close(timeout=CONNECT)
        return stopped.is_set()


async def _start(worker: Worker) -> None:
    await worker
