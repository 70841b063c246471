"""Compare how fast a cache travels by tar's pipe over SSH, as it does, and by scp and an archive in the guest.

Run it on a quiet machine:  .venv/bin/python bench/caches.py

5,000 small files and one file of 200 MB, each sent to and fetched from `micro`, both ways in one guest, in turns.
It prints seconds and ratios, and checks that both ways brought back the same bytes.
"""

from __future__ import annotations

import filecmp
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from bench.overhead import KEPT, first_layer, kvm_or_tcg
from obuild.bases import catalog, making
from obuild.executors.qemu import machine, ssh
from obuild.executors.qemu.shape import shape_for
from obuild.executors.settings import Settings
from obuild.guests import linux
from obuild.host import qemu_img
from obuild.host.process import CancelScope
from obuild.store.layers import Store

RUNS = 3
ROOT_SHELL = linux.root_shell("root")
FOLDER = f"{linux.SCRATCH}/0"
ARCHIVE = f"{linux.SCRATCH}/0.tar"


def small_files(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for number in range(5000):
            member = tarfile.TarInfo(f"./{number // 100}/{number}")
            member.size = 400
            archive.addfile(member, BytesIO(os.urandom(400)))


def large_file(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("./large")
        member.size = 200 << 20
        archive.addfile(member, BytesIO(os.urandom(member.size)))


def empty(connection: ssh.Connection) -> None:
    script = f"rm -rf {linux.SCRATCH}; mkdir -p {FOLDER}\n".encode()
    connection.check(ROOT_SHELL, script, what="making room")


def send_scp(connection: ssh.Connection, archive: Path) -> None:
    connection.put(archive, ARCHIVE)
    script = f"{linux.receive_cache('root', 0)} <{ARCHIVE} && rm {ARCHIVE}\n".encode()
    connection.check(ROOT_SHELL, script, what="unpacking")


def send_pipe(connection: ssh.Connection, archive: Path) -> None:
    with archive.open("rb") as file:
        chunks = iter(lambda: file.read(1 << 18), b"")
        connection.stream(
            linux.receive_cache("root", 0),
            lambda sink: [sink.write(data) for data in chunks].clear(),
            what="unpacking",
        )


def fetch_scp(connection: ssh.Connection, archive: Path) -> None:
    connection.check(ROOT_SHELL, f"exec >{ARCHIVE}\n".encode() + linux.send_cache(0), what="packing")
    connection.get(ARCHIVE, archive)


def fetch_pipe(connection: ssh.Connection, archive: Path) -> None:
    with archive.open("wb") as out:
        connection.fetch(ROOT_SHELL, linux.send_cache(0), out, what="packing")


def seconds(action: Callable[[ssh.Connection, Path], None], connection: ssh.Connection, archive: Path) -> float:
    started = time.perf_counter()
    action(connection, archive)
    return time.perf_counter() - started


def compare(connection: ssh.Connection, what: str, archive: Path) -> None:
    times: dict[str, list[float]] = {"send scp": [], "send pipe": [], "fetch scp": [], "fetch pipe": []}
    by_scp, by_pipe = archive.with_suffix(".scp"), archive.with_suffix(".pipe")
    for _ in range(RUNS):
        for name, action in (("send scp", send_scp), ("send pipe", send_pipe)):
            empty(connection)
            times[name].append(seconds(action, connection, archive))
        times["fetch pipe"].append(seconds(fetch_pipe, connection, by_pipe))
        times["fetch scp"].append(seconds(fetch_scp, connection, by_scp))
        assert filecmp.cmp(by_scp, by_pipe, shallow=False), "the two ways brought back different bytes"
    medians = {name: statistics.median(values) for name, values in times.items()}
    for way in ("send", "fetch"):
        scp, pipe = medians[f"{way} scp"], medians[f"{way} pipe"]
        print(f"{what}, {way}: scp {scp:.2f} s, pipe {pipe:.2f} s, ratio {pipe / scp:.2f} (n = {RUNS})")


def main() -> None:
    store = Store.open(KEPT)
    found = making.find(store, "micro", say=print)
    shape = shape_for(Settings(), found.card, kvm_or_tcg(store, found.card.arch))
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "overlay.qcow2"
        qemu_img.create_overlay(overlay, str(first_layer(store, "micro")))
        with (
            machine.start(shape, overlay, CancelScope(), network=False) as guest,
            ssh.connect(guest, login="root", key=catalog.key_path(store, found.card)) as connection,
        ):
            for what, make in (("5,000 small files", small_files), ("one file of 200 MB", large_file)):
                archive = Path(folder) / "cache.tar"
                make(archive)
                compare(connection, what, archive)


if __name__ == "__main__":
    main()
