"""Signatures of layers."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from obuild.errors import ObuildError, UsageError
from obuild.plan.keys import LayerId
from obuild.remotes import manifests, names, push, trust
from obuild.remotes.oci import INDEX, MANIFEST
from obuild.remotes.protocol import Remote, Tagged
from obuild.store.layers import Store


@pytest.fixture
def key(tmp_path: Path) -> Path:
    trust.make(tmp_path / "our.key")
    return tmp_path / "our.key"


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """The public key of somebody else."""
    return trust.make(tmp_path / "other.key")


def sign(remote: Remote, id: LayerId, key: Path) -> bool:
    return trust.sign(remote, manifests.of(remote, [id])[id].descriptor, trust.private_key(key))


def public(key: Path) -> list[Ed25519PublicKey]:
    return [trust.public_key(Path(f"{key}.pub"))]


def test_each_layer_of_a_chain_must_be_signed(
    remote: Remote, store: Store, layers: list[LayerId], key: Path, others: Path
) -> None:
    push.push(store, layers[1], remote)
    assert sign(remote, layers[1], key)
    with pytest.raises(ObuildError, match=f"layer {layers[0][:12]} in .* is not signed by a trusted key"):
        names.find(remote, layers[1], trusted=public(key))
    assert sign(remote, layers[0], key)
    assert not sign(remote, layers[0], key), "one signature is enough"
    assert [each.id for each in names.find(remote, layers[1], trusted=public(key))] == layers[:2]
    with pytest.raises(ObuildError, match="is not signed by a trusted key"):
        names.find(remote, layers[1], trusted=[trust.public_key(others)])
    assert names.find(remote, layers[0], trusted=[trust.public_key(others), *public(key)])
    assert set(remote.tags()) >= set(layers[:2])


def test_a_signature_of_one_layer_is_none_of_another(
    folder: Remote, store: Store, layers: list[LayerId], key: Path
) -> None:
    push.push(store, layers[1], folder)
    sign(folder, layers[0], key)
    (signed,) = folder.attached(manifests.of(folder, layers)[layers[0]].digest, trust.ARTIFACT)
    forged = json.loads(signed)
    other = manifests.of(folder, layers)[layers[1]].digest
    folder.attach(Tagged(MANIFEST, json.dumps(forged).encode()), other, trust.ARTIFACT)
    for damaged in (b"[]", b"{}", b'{"layers": [1]}', b'{"layers": [{"size": 64, "digest": "x"}]}', b"x"):
        folder.attach(Tagged(MANIFEST, damaged), other, trust.ARTIFACT)
    with pytest.raises(ObuildError, match="is not signed by a trusted key"):
        names.find(folder, layers[1], trusted=public(key))


def test_a_tag_is_signed_like_its_layers(folder: Remote, store: Store, layers: list[LayerId], key: Path) -> None:
    there = push.push(store, layers[0], folder)
    sign(folder, layers[0], key)
    index = names.put(folder, "web", there)
    with pytest.raises(ObuildError, match=r"the tag web in .* is not signed by a trusted key"):
        names.find(folder, "web", trusted=public(key))
    trust.sign(folder, index, trust.private_key(key))
    assert names.find(folder, "web", trusted=public(key))
    folder.tag("old", Tagged(INDEX, folder.manifests(["web"])["web"]))
    with pytest.raises(ObuildError, match=r"the tag old in .* is not signed by a trusted key"):
        names.find(folder, "old", trusted=public(key))


def test_a_private_key_is_only_for_its_owner_and_stays(key: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match=r"cannot write the key .*our.key: File exists"):
        trust.make(key)


def test_what_is_no_key_is_refused(key: Path, tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_text("-----BEGIN PRIVATE KEY-----\nx\n")
    for path in (tmp_path / "rubbish", tmp_path / "our.key.pub"):
        with pytest.raises(UsageError, match="is not a private key"):
            trust.private_key(path)
    for path in (tmp_path / "rubbish", key):
        with pytest.raises(UsageError, match="is not a public key"):
            trust.public_key(path)
    with pytest.raises(UsageError, match="cannot read the key"):
        trust.public_key(tmp_path / "nothing")
