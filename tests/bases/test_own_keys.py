"""A store writes its keys into its own copy of a base image; the base does not change."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from obuild import spec
from obuild.bases import making, own_keys
from obuild.builder.chain import Builder
from obuild.errors import UsageError
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId
from obuild.plan.planner import plan
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, Heard


def taken_in(folder: Path, image: Path) -> tuple[LayerId, bytes, Store]:
    """The id and the disk of the first layer that a new store has of a base image with room for keys."""
    store = Store.open(folder)
    out = store.base_image / "tiny.qcow2"
    subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", image, out], check=True)
    out.with_suffix(".toml").write_text('authorized_keys = "4096"\nhost_key = "12288"\n')
    base = making.find(store, "tiny", say=print)
    chain = plan(spec.parse(b"((from tiny))"), source=folder, bases={"tiny": base}).chain()
    Builder(store, FakeExecutor, Heard().tell).build(chain)
    raw = folder / "raw"
    layer = store.layer(chain.steps[0].id)
    subprocess.run(["qemu-img", "convert", "-O", "raw", layer.image, raw], check=True)
    assert making.find(store, "tiny", say=print).digest == base.digest
    return layer.id, raw.read_bytes(), store


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    path = tmp_path / "blank"
    path.write_bytes(bytes(510) + b"\x55\xaa" + bytes(3584) + b"\n" * 4096 + b"." * 4096 + b"\n" * 4096)
    return path


def test_each_store_writes_its_own_keys_into_its_copy(tmp_path: Path, blank: Path) -> None:
    one, first, store = taken_in(tmp_path / "one", blank)
    two, second, _ = taken_in(tmp_path / "two", blank)
    assert one == two  # the base is the same
    assert first[4096:].startswith(b"ssh-ed25519 ")
    assert first[12288:].startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert first[8192:12288] == b"." * 4096
    assert first[4096:8192] != second[4096:8192]
    assert first[12288:] != second[12288:]
    assert (store.ssh / "host_ed25519").stat().st_mode & 0o777 == 0o600
    assert own_keys.blocks(store, Card(authorized_keys=4096, host_key=12288)) == [
        (4096, first[4096:8192]),
        (12288, first[12288:16384]),
    ]  # the same again, if the layer has to be made again


def test_a_base_with_its_own_keys_gets_none(store: Store) -> None:
    assert own_keys.blocks(store, Card()) == []
    assert not store.ssh.exists() or not list(store.ssh.iterdir())


@pytest.mark.parametrize("value", ["x", "-512", "513", "", "9" * 20])
def test_an_invalid_place_for_keys_is_refused(store: Store, tiny: Path, value: str) -> None:
    tiny.with_suffix(".toml").write_text(f'host_key = "{value}"\n')
    with pytest.raises(UsageError, match="host_key is"):
        making.find(store, "tiny", say=print)
