"""What a remote may send: nothing of it leaves its place, and nothing half of it is kept."""

from __future__ import annotations

import json
import random
import re
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard

from obuild.errors import ObuildError, UsageError
from obuild.guests.profile import Card
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.remotes import caches, manifests, names, pull, push
from obuild.remotes.all import Access, open_remote
from obuild.remotes.layer import Blob
from obuild.remotes.oci import INDEX, MANIFEST, digest_of, packed
from obuild.remotes.protocol import Remote, Tagged
from obuild.remotes.slices import SLICE
from obuild.store.layers import Store
from tests.support import images
from tests.support.fakes import packed as archive
from tests.support.layers import save

Document = dict[str, Any]
Change = Callable[[Document], object]


def put(remote: Remote, data: bytes) -> Document:
    """Store a blob; returns its descriptor without a media type."""
    remote.put(Blob(digest_of(data), len(data)), data)
    return {"digest": digest_of(data), "size": len(data)}


def forge(remote: Remote, id: LayerId, *, config: Change | None = None, manifest: Change | None = None) -> None:
    """Change the config and the manifest of a layer in a remote, as if it had been pushed like that."""
    told = json.loads(remote.manifests([id])[id])
    if config:
        blob = Blob(told["config"]["digest"], told["config"]["size"])
        changed = json.loads(remote.get(blob))
        config(changed)
        told["config"].update(put(remote, packed(changed)))
    if manifest:
        manifest(told)
    remote.tag(id, Tagged(MANIFEST, packed(told)), replace=True)


def keys_of(card: Card) -> list[tuple[int, bytes]]:
    return [(offset, b"k" * 4096) for offset in (card.authorized_keys, card.host_key) if offset]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LayerId]:
    """A remote with one layer, to be copied."""
    root = tmp_path_factory.mktemp("pushed")
    id = images.make(Store.open(root / "store"), images.Plain(keys.of_base("0" * 64)), random.Random(1))
    with open_remote(f"dir:{root / 'remote'}", Access({})) as remote:
        push.push(Store.open(root / "store"), id, remote)
    return root / "remote", id


@pytest.fixture
def layer(pushed: tuple[Path, LayerId], tmp_path: Path) -> LayerId:
    """A layer in the remote `folder`."""
    shutil.copytree(pushed[0], tmp_path / "remote")
    return pushed[1]


@pytest.fixture
def victim(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "victim")


def refused(remote: Remote, victim: Store, id: LayerId) -> str:
    """Pull a layer, and see that nothing of it stays; returns the message."""
    with pytest.raises(ObuildError) as error:
        pull.pull(victim, remote, names.find(remote, id), keys_of)
    assert victim.ids() == []
    assert list(victim.result_tmp.iterdir()) == []
    return error.value.message


def first_slice(config: Document) -> Document:
    return dict(config["image"])["slices"][0]  # type: ignore[no-any-return]


FILE = {"name": "log", "size": 0, "digests": [digest_of(b"")]}

CONFIGS: dict[str, tuple[Change, str]] = {
    "the key of another layer": (lambda c: c.update(key="((format 2)(base x))"), "its key is that of the layer"),
    "a newer format": (lambda c: c.update(format=2), "knows only 1"),
    "a parent": (lambda c: c.update(ancestors=["a" * 64]), "its parent is not that in its key"),
    "no list of files": (lambda c: c.update(files=3), "something else belongs"),
    "a file outside": (lambda c: c["files"].append({**FILE, "name": "../../x"}), "something else belongs"),
    "an absolute file": (lambda c: c["files"].append({**FILE, "name": "/etc/x"}), "something else belongs"),
    "an image as a file": (
        lambda c: c["files"].append({**FILE, "name": "rootfs/image.qcow2"}),
        "something else belongs",
    ),
    "no log": (lambda c: c.update(files=[]), "not those of a layer"),
    "the log twice": (lambda c: c["files"].append(FILE), "not those of a layer"),
    "a log of another length": (lambda c: c["files"][-1].update(size=9 * SLICE), "wrong number of pieces"),
    "a log that is longer": (lambda c: c["files"][-1].update(size=1_000), "does not hold what its config says"),
    "a disk of an exabyte": (lambda c: c["image"].update(size=1 << 60), "a number up to"),
    "a size that is no number": (lambda c: c["image"].update(size="1M"), "a number up to"),
    "a slice beyond the disk": (lambda c: first_slice(c).update(offset=1 << 40), "a number up to"),
    "a slice between slices": (lambda c: first_slice(c).update(offset=4096), "overlap|whole blocks"),
    "a part beyond the slice": (lambda c: first_slice(c).update(data=[[0, 2 * SLICE]]), "a number up to"),
    "parts that overlap": (lambda c: first_slice(c).update(zeros=[first_slice(c)["data"][0]]), "overlap"),
    "a part of half a block": (lambda c: first_slice(c).update(data=[[0, 100]]), "whole blocks"),
    "parts with three numbers": (lambda c: first_slice(c).update(data=[[0, 4096, 1]]), "unpack"),
    "another digest of a slice": (
        lambda c: first_slice(c).update(digest=digest_of(b"x")),
        "does not hold what its config says",
    ),
    "slices in no order": (lambda c: c["image"]["slices"].reverse(), "not in order"),
    "one slice less": (lambda c: c["image"]["slices"].pop(), "parts, and its manifest names"),
    "a time after time": (lambda c: c.update(created=1e300), "a number of seconds"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_checked(folder: Remote, layer: LayerId, victim: Store, name: str) -> None:
    change, message = CONFIGS[name]
    forge(folder, layer, config=change)
    said = refused(folder, victim, layer)
    assert re.search(message, said), said
    assert not (victim.root.parent / "x").exists()


MANIFESTS: dict[str, tuple[Change, str]] = {
    "no layer": (lambda m: m.pop("artifactType"), "it is not a layer of obuild"),
    "4 MiB": (lambda m: m.update(padding="x" * (5 << 20)), "larger than|more than 4 MiB"),
    "no content": (lambda m: m["annotations"].pop("vnd.obuild.content"), "something else belongs"),
    "another content": (lambda m: m["annotations"].update({"vnd.obuild.content": "a" * 64}), "another build"),
    "a path for a digest": (lambda m: m["layers"][0].update(digest="sha256:../../x"), "something else belongs"),
    "a huge blob": (lambda m: m["layers"][0].update(size=1 << 40), "a number up to"),
    "a blob larger than its content": (lambda m: m["layers"][0].update(size=1 << 21), "larger than what is in it"),
    "a blob that is not there": (lambda m: m["layers"][0].update(digest=digest_of(b"?")), "has lost the blob"),
    "one blob less": (lambda m: m["layers"].pop(), "parts, and its manifest names"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_checked(folder: Remote, layer: LayerId, victim: Store, name: str) -> None:
    change, message = MANIFESTS[name]
    forge(folder, layer, manifest=change)
    said = refused(folder, victim, layer)
    assert re.search(message, said), said


def _last_blob(described: Document, manifest: Document) -> None:
    manifest["layers"][-1].update(described)


def without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def test_a_bomb_does_not_go_off(folder: Remote, layer: LayerId, victim: Store) -> None:
    """A slice says that it has 100 GiB, or does not say that it has 64 MiB."""
    # A frame whose header announces 100 GiB: magic number, descriptor (8 bytes of size, one segment), size.
    large = struct.pack("<IBQ", 0xFD2FB528, 0xE0, 100 << 30)
    for bomb in (large, without_size(bytes(64 << 20))):
        described = put(folder, bomb)
        forge(folder, layer, manifest=partial(_last_blob, described))
        assert "cannot be used" in refused(folder, victim, layer)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ('key = "../../../root/.ssh/id_rsa"\n', "which is not that of a base image"),
        ('host_key = "1073741824"\n', "not on the disk"),
        ('host_key = "512"\n', "not on the disk"),
        ('os = "plan9"\n', "plan9"),
        ("\0", "card.toml"),
    ],
)
def test_a_card_is_checked(folder: Remote, layer: LayerId, victim: Store, card: str, message: str) -> None:
    text = card.encode()
    described = put(folder, zstandard.compress(text))
    entry = {"name": "card.toml", "size": len(text), "digests": [digest_of(text)]}

    def config(told: Document) -> None:
        told["files"] = [entry, *(each for each in told["files"] if each["name"] == "log")]

    def manifest(told: Document) -> None:
        told["layers"].insert(0, {"mediaType": "application/vnd.obuild.file.v1+zstd", **described})

    forge(folder, layer, config=config, manifest=manifest)
    assert message in refused(folder, victim, layer)


@pytest.mark.parametrize(
    "index",
    [b"{}", b"[]", b'{"manifests": [{"annotations": {"vnd.obuild.layer": "../x"}, "digest": "sha256:x"}]}', b"x"],
)
def test_an_index_is_checked(folder: Remote, layer: LayerId, index: bytes) -> None:
    folder.tag("web", Tagged(INDEX, index), replace=True)
    with pytest.raises(ObuildError, match="is not a tag of obuild"):
        names.resolve(folder, "web")


@pytest.mark.parametrize(
    "index",
    [b"x", b"[]", b'{"manifests": [{"digest": "sha256:../../../etc/passwd"}]}', b'{"manifests": [1]}'],
)
def test_a_damaged_layout_is_reported(folder: Remote, tmp_path: Path, index: bytes) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "index.json").write_bytes(index)
    with pytest.raises(ObuildError, match=r"the index.json of .* is damaged"):
        folder.tags()


def test_a_blob_that_has_changed_is_refused(folder: Remote, layer: LayerId, victim: Store, tmp_path: Path) -> None:
    manifest = manifests.of(folder, [layer])[layer]
    path = tmp_path / "remote" / "blobs" / "sha256" / manifest.blobs[-1].digest.removeprefix("sha256:")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "is damaged" in refused(folder, victim, layer)
    path.write_bytes(path.read_bytes() + b"?")
    assert "larger than it should be" in refused(folder, victim, layer)
    path.write_bytes(b"")
    assert "is damaged" in refused(folder, victim, layer)


def test_caches_are_checked(folder: Remote, store: Store, victim: Store) -> None:
    save(store, "apt", archive({"../x": b"y"}))
    assert list(caches.push_caches(store, folder))
    with pytest.raises(ObuildError, match="leads out of the cache"):
        list(caches.pull_caches(victim, folder))
    assert victim.caches.listing() == []


def test_a_name_that_no_layer_has_is_refused(folder: Remote, layer: LayerId) -> None:
    for name in ("../x", "", "x y", "f" * 64):
        with pytest.raises(UsageError, match="has no layer"):
            names.find(folder, name)
