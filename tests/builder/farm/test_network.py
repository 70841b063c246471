"""A worker that loses its network, in a network namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from obuild.builder.farm import tls
from tests.support import farm as farms
from tests.support.farm import Farm, makers, until

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2"),
]

#: Of a pair of network devices: that of this namespace, and that of the worker's.
HERE, THERE = "10.213.77.1", "10.213.77.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def space() -> Iterator[str]:
    """A network namespace that is connected to ours by the device of the same name."""
    name = f"obuild{os.getpid() % 100_000}"
    with ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)  # with both devices
        ip("link", "add", name, "type", "veth", "peer", "name", "far", "netns", name)
        ip("addr", "add", f"{HERE}/24", "dev", name)
        ip("link", "set", name, "up")
        for words in (("addr", "add", f"{THERE}/24", "dev", "far"), ("link", "set", "far", "up")):
            ip("-n", name, *words)
        ip("-n", name, "link", "set", "lo", "up")
        yield name


def started(stack: ExitStack, log: Path, *argv: str | Path) -> None:
    """Start a program that writes to a log, and is killed in the end."""
    with log.open("wb") as file:
        child = stack.enter_context(subprocess.Popen(list(map(str, argv)), stdout=file, stderr=file))
    stack.callback(child.kill)


def test_another_worker_goes_on_for_one_without_a_network(space: str, tmp_path: Path) -> None:
    tls.make(tmp_path / "tls")
    files = {"ca-file": tls.AUTHORITY, "cert": tls.CERTIFICATE, "key": tls.KEY}
    with ExitStack() as stack:
        argv = ["--host", HERE, "--port=0", "--no-dashboard", "--protocol=tls"]
        argv += [f"--scheduler-file={tmp_path / 'scheduler.json'}"]
        argv += [f"--tls-{name}={tmp_path / 'tls' / file}" for name, file in files.items()]
        started(stack, tmp_path / "scheduler.log", sys.executable, "-m", "distributed.cli.dask_scheduler", *argv)
        url = farms.address(tmp_path / "scheduler.json")
        farm = Farm(tmp_path, url, tmp_path / "tls")
        stack.callback(farm.stop)
        far = [sys.executable, "-m", farms.PROGRAM, "worker", "--scheduler", url, *farm.access, "--memory=8G"]
        far += ["--remote", farm.remote, f"--store=qemu:{tmp_path / 'far'}"]
        started(stack, tmp_path / "far.log", "ip", "netns", "exec", space, *far)
        until(lambda: " slot" in (tmp_path / "far.log").read_text(), "a worker that is ready")
        build = farm.build(f'(run (shell "wait {tmp_path}/go")) (run (shell "pid last"))')
        build.said("made by")
        near = farm.worker()
        ip("-n", space, "link", "set", "far", "down")
        build.said("goes on with this")
        (tmp_path / "go").touch()
        assert makers(build.end())[1:] == [str(near.pid)] * 2
