"""Partition tables, as sfdisk writes them, and what their partitions hold."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from obuild.errors import ObuildError
from obuild.host.blocks import Bytes, raw_file
from obuild.host.partitions import SECTOR, SIGNATURES, Signature, kind, partitions

GPT = """\
label: gpt
label-id: 0C6C7A52-4F0B-4F6E-9A4D-4C0A4D0F2D7B
first-lba: 34
start=2048, size=2048, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="efi"
start=8192, size=4096, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name="root €"
"""

MBR = """\
label: dos
label-id: 0x0badcafe
start=2048, size=2048, type=c, bootable
start=4096, size=24576, type=5
start=6144, size=2048, type=83
start=10240, size=2048, type=83
"""


@pytest.mark.parametrize("table", [GPT, MBR])
def test_partitions_are_those_that_sfdisk_wrote(tmp_path: Path, table: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(16 << 20))
    subprocess.run(["sfdisk", "--quiet", path], input=table.encode(), check=True)
    told = json.loads(subprocess.check_output(["sfdisk", "--json", path]))["partitiontable"]["partitions"]
    expected = [
        (
            int(part["node"].removeprefix(str(path))),
            part["start"] * SECTOR,
            part["size"] * SECTOR,
            part["type"].lower().rjust(2, "0"),
            part.get("name", ""),
        )
        for part in told
        if part["type"] != "5"
    ]
    with raw_file(path) as disk:
        found = partitions(disk)
    assert [(part.number, part.start, part.size, part.type, part.name) for part in found] == expected
    if table == GPT:
        assert [part.uuid for part in found] == [part["uuid"].lower() for part in told]
    else:
        assert [part.uuid for part in found] == ["0badcafe-01", "0badcafe-05", "0badcafe-06"]


def test_a_disk_without_a_table_is_one_partition() -> None:
    ((number, start, size, *_),) = partitions(Bytes(bytes(4096)))
    assert (number, start, size) == (0, 0, 4096)
    assert [part.called for part in partitions(Bytes(b""))] == ["the disk"]


def test_a_boot_sector_of_fat_is_no_table() -> None:
    sector = bytearray(1024)
    sector[54:62], sector[450], sector[510:512] = b"FAT16   ", 0x83, b"\x55\xaa"
    assert [part.number for part in partitions(Bytes(bytes(sector)))] == [0]


def test_a_damaged_gpt_has_no_partitions(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(16 << 20))
    subprocess.run(["sfdisk", "--quiet", path], input=GPT.encode(), check=True)
    data = bytearray(path.read_bytes())
    data[SECTOR + 60] ^= 1
    assert partitions(Bytes(bytes(data))) == []


def test_a_chain_of_logical_partitions_that_does_not_end_is_cut() -> None:
    sector = bytearray(3 * SECTOR)
    for at, first in ((0, 1), (SECTOR, 0)):
        sector[at + 510 : at + 512] = b"\x55\xaa"
        sector[at + 446 + 4] = sector[at + 462 + 4] = 5
        sector[at + 446 + 8] = first
    assert len(partitions(Bytes(bytes(sector)))) < 3000


@pytest.mark.parametrize("signature", SIGNATURES)
def test_each_kind_is_known_by_its_signature(signature: Signature) -> None:
    at = 4096 + signature.offset
    assert kind(Bytes(bytes(at) + signature.magic), 4096) == signature.kind
    assert kind(Bytes(bytes(at) + signature.magic), 0) != signature.kind
    assert kind(Bytes(bytes(at + 8)), 4096) == ""


def test_a_read_beyond_the_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1000))
    with raw_file(tmp_path / "disk") as disk:
        assert disk.read(0, 1000) == bytes(1000)
        for blocks in (disk, Bytes(bytes(1000))):
            with pytest.raises(ObuildError, match="byte 900, where the disk has ended"):
                blocks.read(900, 101)
