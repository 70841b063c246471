"""Sign what is in a remote, and check signatures: Ed25519 over the digest of a manifest, attached as a referrer.

A layer's manifest names its content digest, which covers all layers below. Keys are PEM files: PKCS #8, and
SubjectPublicKeyInfo in a file of the same name with `.pub`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.errors import UsageError, words
from obuild.host import parallel
from obuild.plan.keys import LayerId
from obuild.remotes import pieces
from obuild.remotes.layer import Blob, Manifest
from obuild.remotes.oci import MANIFEST, Descriptor, descriptor, packed
from obuild.remotes.protocol import WORKERS, Remote, Tagged, Unusable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ARTIFACT = "application/vnd.obuild.signature.v1"
_EMPTY = "application/vnd.oci.empty.v1+json"

#: The length of a signature, in bytes.
_LENGTH = 64

_HINT = "`obuild key make FILE` makes a key, and FILE.pub beside it"


def make(path: Path) -> Path:
    """Make a key pair; returns the path of the public key. UsageError if a file is there already."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, public = Ed25519PrivateKey.generate(), Path(f"{path}.pub")
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem, spki = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    for file, content, mode in ((path, private, 0o600), (public, key.public_key().public_bytes(pem, spki), 0o644)):
        try:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
                out.write(content)
        except OSError as error:
            raise UsageError(f"cannot write the key {file}: {words(error)}") from error
    return public


def private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key. UsageError if it is not one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = None
    with suppress(ValueError, TypeError):
        key = load_pem_private_key(_read(path), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is not a private key that layers can be signed with", hint=_HINT)
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key. UsageError if it is not one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = None
    with suppress(ValueError):
        key = load_pem_public_key(_read(path))
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is not a public key for layers", hint=_HINT)
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {words(error)}", hint=_HINT) from error


def sign(remote: Remote, manifest: Descriptor, key: Ed25519PrivateKey) -> bool:
    """Attach a signature to a manifest that is there; False if it has one by this key already."""
    digest = str(manifest["digest"])
    if is_signed(remote, digest, [key.public_key()]):
        return False
    signature = key.sign(_message(digest))
    for data in (signature, b"{}"):
        pieces.put_blob(remote, data)
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": descriptor(b"{}", _EMPTY),
        "layers": [descriptor(signature, ARTIFACT)],
        "subject": manifest,
    }
    remote.attach(Tagged(MANIFEST, packed(document)), digest, ARTIFACT)
    return True


def is_signed(remote: Remote, digest: str, keys: Sequence[Ed25519PublicKey]) -> bool:
    """Whether the manifest with this digest has a signature by one of these keys."""
    from cryptography.exceptions import InvalidSignature

    for data in remote.attached(digest, ARTIFACT):
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError, Unusable):
            (layer,) = json.loads(data)["layers"]
            if layer["size"] != _LENGTH:
                continue
            signature = remote.get(Blob(str(layer["digest"]), _LENGTH))
            for key in keys:
                with suppress(InvalidSignature):
                    key.verify(signature, _message(digest))
                    return True
    return False


def unsigned(
    remote: Remote, layers: Mapping[LayerId, Manifest], keys: Sequence[Ed25519PublicKey]
) -> Collection[LayerId]:
    """Those of these layers that have no signature by one of the keys."""

    def see(id: LayerId) -> tuple[LayerId, bool]:
        return id, is_signed(remote, layers[id].digest, keys)

    return [id for id, signed in parallel.each(see, layers, WORKERS) if not signed]


def see_signed(remote: Remote, layers: Mapping[LayerId, Manifest], keys: Sequence[Ed25519PublicKey]) -> None:
    """Unusable if one of these layers has no signature by one of the keys."""
    if missing := unsigned(remote, layers, keys):
        id = min(missing)
        hint = "`obuild push --sign KEY` signs what is there already, too"
        raise Unusable(f"layer {id[:12]} in {remote.name} is not signed by a trusted key", hint=hint)


def _message(digest: str) -> bytes:
    return f"{ARTIFACT} {digest}\n".encode()
