"""What is attached to an image in a registry: lists of packages, provenance, and cosign's signature.

A referrer is a manifest whose `subject` is the image (OCI image specification 1.1). A signature is under a tag,
sha256-HEX.sig, where cosign looks for it: https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from obuild.exports.signing import Signer
from obuild.remotes.blobs import Progress
from obuild.remotes.oci import CONFIG, MANIFEST, Descriptor, descriptor, packed
from obuild.remotes.registry import Repository

#: The media type of each document that an export leaves beside its images.
KINDS = {
    "cdx.json": "application/vnd.cyclonedx+json",
    "spdx.json": "application/spdx+json",
    "provenance.json": "application/vnd.in-toto+json",
}

_EMPTY = "application/vnd.oci.empty.v1+json"
_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"


def attach(repository: Repository, subject: Descriptor, image: Path, progress: Progress) -> list[str]:
    """Attach the documents beside an image, which is in the repository already; returns their digests."""
    stem = image.name.partition(".")[0]
    found = []
    for suffix, kind in KINDS.items():
        document = image.with_name(f"{stem}.{suffix}")
        if document.is_file():
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "artifactType": kind,
                "config": _push(repository, b"{}", _EMPTY, progress),
                "layers": [_push(repository, document.read_bytes(), kind, progress)],
                "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
            }
            digest = repository.attach(
                packed(manifest), MANIFEST, subject=str(subject["digest"]), artifact_type=kind
            )
            found.append(digest)
    return found


def sign(repository: Repository, digest: str, name: str, signer: Signer, progress: Progress) -> None:
    """Store the signature of what has this digest in the repository `name`, HOST/PATH."""
    payload = packed(
        {
            "critical": {
                "identity": {"docker-reference": name},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    )
    hashed = hashlib.sha256(payload)
    layer = _push(repository, payload, _PAYLOAD, progress)
    signature = signer.sign(hashed.digest()).decode()
    config = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashed.hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _push(repository, packed(config), CONFIG, progress),
        "layers": [{**layer, "annotations": {_SIGNATURE: signature}}],
    }
    repository.put(packed(manifest), MANIFEST, tag=f"{digest.replace(':', '-')}.sig")


def _push(repository: Repository, data: bytes, kind: str, progress: Progress) -> Descriptor:
    found = descriptor(data, kind)
    with tempfile.NamedTemporaryFile(prefix="obuild-blob-") as file:
        file.write(data)
        file.flush()
        repository.blobs.push(Path(file.name), found["digest"], progress)
    return found
