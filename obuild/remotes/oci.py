"""The documents of container images: OCI image specification 1.1.

They are named by the digests of their bytes, so all are written in one way.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

#: A reference to a blob or a manifest: mediaType, digest, size and perhaps more.
Descriptor = dict[str, Any]


def packed(value: dict[str, Any]) -> bytes:
    """The bytes of a document: the same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest_of(data: bytes) -> str:
    """The digest of a document or a blob."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(data: bytes, media_type: str) -> Descriptor:
    """The reference to a document or a blob."""
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def index(manifests: list[Descriptor]) -> bytes:
    """An image index of these."""
    return packed({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
