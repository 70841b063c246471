"""What is attached to an image in a registry: lists of packages, provenance, and cosign's signature.

A referrer is a manifest whose `subject` is the image (OCI image specification 1.1). A signature is there twice:
under a tag, sha256-HEX.sig, for cosign before version 3, and as a referrer, which newer ones look for first.

https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from obuild.exports.provenance import STATEMENT
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

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_SIGNED = "https://sigstore.dev/cosign/sign/v1"

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
            found.append(_refer(repository, subject, kind, document.read_bytes(), progress))
    return found


def sign(repository: Repository, subject: Descriptor, name: str, signer: Signer, progress: Progress) -> None:
    """Store the signatures of a manifest in the repository `name`, HOST/PATH."""
    digest = str(subject["digest"])
    _put_tagged(repository, digest, name, signer, progress)
    notes = {"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": _SIGNED}
    _refer(repository, subject, _BUNDLE, packed(bundle(digest, signer)), progress, notes)


def bundle(digest: str, signer: Signer) -> dict[str, Any]:
    """A Sigstore bundle with the signed statement that a manifest has this digest."""
    algorithm, _, value = digest.partition(":")
    subjects = [{"digest": {algorithm: value}}]
    payload = packed({"_type": STATEMENT, "subject": subjects, "predicateType": _SIGNED, "predicate": {}})
    kind = KINDS["provenance.json"]
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    return {
        "mediaType": _BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": signer.hint}},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": kind,
            "signatures": [{"sig": signer.sign(hashlib.sha256(signed).digest()).decode()}],
        },
    }


def _put_tagged(repository: Repository, digest: str, name: str, signer: Signer, progress: Progress) -> None:
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


def _refer(
    repository: Repository,
    subject: Descriptor,
    kind: str,
    data: bytes,
    progress: Progress,
    annotations: Mapping[str, str] = {},
) -> str:
    """Attach a document of a media type to a manifest; returns the digest of the one that refers to it."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": _push(repository, b"{}", _EMPTY, progress),
        "layers": [_push(repository, data, kind, progress)],
        "subject": {key: subject[key] for key in ("mediaType", "digest", "size")},
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    return repository.attach(
        packed(manifest),
        MANIFEST,
        subject=str(subject["digest"]),
        artifact_type=kind,
        annotations=annotations,
    )


def _push(repository: Repository, data: bytes, kind: str, progress: Progress) -> Descriptor:
    found = descriptor(data, kind)
    with tempfile.NamedTemporaryFile(prefix="obuild-blob-") as file:
        file.write(data)
        file.flush()
        repository.blobs.push(Path(file.name), found["digest"], progress)
    return found
