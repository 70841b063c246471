"""A raw disk as a snapshot of EBS, written block by block directly: it needs no bucket, import task or machine.

The interface is "EBS direct APIs" of the EC2 documentation.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from obuild.host import failpoints, parallel, sparse
from obuild.remotes import aws

#: The size of a block, in bytes; the interface sets it.
BLOCK = 512 << 10

#: How many blocks are sent at once.
_WORKERS = 16

#: After so many minutes without a block, AWS cancels a snapshot that nobody has completed.
_TIMEOUT = 60


class Block(NamedTuple):
    """A block that holds data, and the sha256 of it."""

    number: int
    data: bytes
    sha256: bytes


def start(client: Any, name: str, size: int, tags: Mapping[str, str]) -> str:
    """Begin a snapshot for a disk of `size` bytes; returns its id. It is not complete until `write` returns."""
    reply = client.start_snapshot(
        VolumeSize=gib_of(size),
        Description=name,
        Tags=[{"Key": key, "Value": value} for key, value in {"Name": name, **tags}.items()],
        ClientToken=str(uuid.uuid4()),
        Timeout=_TIMEOUT,
    )
    return str(reply["SnapshotId"])


def gib_of(size: int) -> int:
    """The size of the volume for a disk, in GiB."""
    return -(-size >> 30)


def write(client: Any, snapshot: str, disk: Path, progress: Callable[[int, int], object]) -> None:
    """Write the blocks of a disk that are not zero, and complete the snapshot.

    AWS compares the sha256 of each block and, in the end, that of all these digests in the order of the blocks.
    """
    total = disk.stat().st_blocks * 512
    digests: dict[int, bytes] = {}

    def send(block: Block) -> Block:
        client.put_snapshot_block(
            SnapshotId=snapshot,
            BlockIndex=block.number,
            BlockData=block.data,
            DataLength=BLOCK,
            Checksum=aws.encoded(block.sha256),
            ChecksumAlgorithm="SHA256",
        )
        return block._replace(data=b"")

    for block in parallel.each(send, blocks(disk), _WORKERS):
        digests[block.number] = block.sha256
        progress(min(len(digests) * BLOCK, total), total)
        failpoints.reach("publish.piece")
    together = hashlib.sha256(b"".join(digests[index] for index in sorted(digests))).digest()
    client.complete_snapshot(
        SnapshotId=snapshot,
        ChangedBlocksCount=len(digests),
        Checksum=aws.encoded(together),
        ChecksumAlgorithm="SHA256",
        ChecksumAggregationMethod="LINEAR",
    )


def blocks(disk: Path) -> Iterator[Block]:
    """The blocks of a disk that are not zero, in order. The last one is filled up with zeros."""
    with disk.open("rb") as file:
        for start in sparse.blocks(file.fileno(), BLOCK):
            data = os.pread(file.fileno(), BLOCK, start).ljust(BLOCK, b"\0")
            if data.strip(b"\0"):
                yield Block(start // BLOCK, data, hashlib.sha256(data).digest())
