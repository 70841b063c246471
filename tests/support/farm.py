"""A farm on this computer: a real scheduler with TLS, workers with scripted machines, and builds that use them.

All are processes of their own, forked from one that has imported Dask.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from obuild.builder.farm import tls
from obuild.store.layers import Store
from tests.support import forked
from tests.support.fakes import POWER_OFF, boot_disk

PROGRAM = "tests.support.farm_obuild"
LATE = "distributed distributed.cli.dask_scheduler"

#: The longest wait for anything, in seconds.
PATIENCE = 120.0

#: Whatever runs longer is killed, in seconds.
LIMIT = 300


def until(done: Callable[[], object], what: str) -> None:
    """Wait for something that happens in another process."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, f"{what}: it did not happen"
        time.sleep(0.02)


class Build:
    """A build that runs."""

    def __init__(self, running: forked.Running) -> None:
        self.running = running

    def said(self, text: str) -> None:
        """Wait until it has printed a text."""
        until(lambda: text in "".join(self.running.said()), f"{text!r} in {self.running.said()}")

    def end(self, code: int = 0) -> str:
        """Wait for its end; returns what it has printed to stdout and stderr."""
        done = self.running.wait()
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.running.pid, number)


class Worker:
    """A worker that runs, and its store."""

    def __init__(self, running: forked.Running, store: Path) -> None:
        self.running, self.store = running, store

    def log(self) -> str:
        return self.running.said()[1]

    @property
    def pid(self) -> int:
        return self.running.pid

    def logs(self, text: str) -> None:
        """Wait until its log has a text."""
        until(lambda: text in self.log(), f"{text!r} in {self.log()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> subprocess.CompletedProcess[str]:
        os.kill(self.running.pid, number)
        return self.running.wait()


class Farm:
    """A scheduler, and a remote that is a folder. The `program` obuild has real machines."""

    def __init__(self, folder: Path, url: str, certificates: Path | None) -> None:
        self.folder, self.url, self.certificates = folder, url, certificates
        self.remote = f"dir:{folder / 'remote'}"
        self.program, self.limit = PROGRAM, LIMIT
        self.started: list[forked.Running] = []
        self._number = count()

    @property
    def access(self) -> list[str]:
        return ["--tls", str(self.certificates)] if self.certificates else []

    def worker(self, *options: str, store: Path | None = None, remote: str = "", version: str = "") -> Worker:
        """Start a worker, with a store of its own. It is ready when this returns."""
        path = store or self.folder / f"worker-{next(self._number)}"
        argv = ["worker", "--scheduler", self.url, *self.access, f"--store=qemu:{path}"]
        argv += ["--remote", remote or self.remote, "--memory=64G", *options]
        env = {"OBUILD_FAKE_VERSION": version}
        self.started.append(forked.start(argv, module=self.program, late=LATE, env=env, limit=self.limit))
        worker = Worker(self.started[-1], path)
        until(lambda: " slot" in worker.log(), f"a worker that is ready: {worker.log()}")
        return worker

    def workers(self, count: int) -> list[Worker]:
        """Start workers, all at once."""
        with ThreadPoolExecutor(count) as pool:
            return [each.result() for each in [pool.submit(self.worker) for _ in range(count)]]

    def stop(self) -> None:
        """End all workers and builds that still run."""
        for each in self.started:
            each.kill()

    def client(self, name: str = "client") -> Path:
        """A store with the base image `tiny`."""
        store = Store.open(self.folder / name)
        image = store.base_image / "tiny.img"
        if not image.exists():
            image.write_bytes(boot_disk("", POWER_OFF))
        return store.root

    def build(
        self, ops: str, *options: str, store: str | Path = "client", source: Path | None = None, remote: str = ""
    ) -> Build:
        """Start a build of a stage with these ops on `tiny`."""
        spec = self.folder / f"{next(self._number)}.spec"
        path = store if isinstance(store, Path) else self.client(store)
        spec.write_text(ops if ops.startswith("((") else f"((from tiny) {ops})")
        argv = ["build", "-f", str(spec), f"--store=qemu:{path}", "--remote", remote or self.remote]
        argv += ["--farm", self.url, *self.access, *options, str(source or self.folder)]
        self.started.append(forked.start(argv, module=self.program, late=LATE, limit=self.limit))
        return Build(self.started[-1])


def address(file: Path) -> str:
    """The address that a scheduler writes into this file when it is ready."""
    until(lambda: file.exists() and file.read_text().strip().endswith("}"), "a scheduler that is ready")
    return str(json.loads(file.read_text())["address"])


@contextmanager
def scheduler(folder: Path, *, secure: bool = True) -> Iterator[tuple[Farm, forked.Running]]:
    """A scheduler without workers. Whatever runs at the end is stopped."""
    argv = ["--port=0", "--host=127.0.0.1", "--no-dashboard", f"--scheduler-file={folder / 'scheduler.json'}"]
    certificates = None
    if secure:
        certificates = folder / "tls"
        tls.make(certificates)
        files = {"ca-file": tls.AUTHORITY, "cert": tls.CERTIFICATE, "key": tls.KEY}
        argv += ["--protocol=tls", *(f"--tls-{name}={certificates / file}" for name, file in files.items())]
    about = folder / "scheduler.json"
    often = {"DASK_DISTRIBUTED__SCHEDULER__LOCKS__LEASE_VALIDATION_INTERVAL": "0.2s"}
    running = forked.start(argv, module="distributed.cli.dask_scheduler", late=LATE, env=often)
    farm = Farm(folder, address(about), certificates)
    try:
        yield farm, running
    finally:
        farm.stop()
        running.kill()


def saved(said: str) -> list[str]:
    """The layers that a build has reported as made, in order."""
    return [line.split('"')[1] for line in said.splitlines() if line.startswith("---> saved as")]


def makers(said: str) -> list[str]:
    """The processes that have run the commands `pid`."""
    return [line.removeprefix("made by ") for line in said.splitlines() if line.startswith("made by ")]
