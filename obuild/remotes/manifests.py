"""The manifests of layers in a remote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from obuild.plan.keys import LayerId
from obuild.remotes.layer import Manifest, read_manifest
from obuild.remotes.protocol import Remote, Unusable


class Found(NamedTuple):
    """A layer in a remote."""

    id: LayerId
    manifest: Manifest


def of(remote: Remote, ids: Sequence[LayerId]) -> dict[LayerId, Manifest]:
    """The manifests of those layers that a remote has. Unusable if one is damaged."""
    return {LayerId(id): checked(remote, id, data) for id, data in remote.manifests(ids).items()}


def find(remote: Remote, id: LayerId, reference: str = "") -> Found | None:
    """A layer in a remote, under its id or another reference; None if it is not there."""
    data = remote.manifests([reference or id]).get(reference or id)
    return Found(id, checked(remote, id, data)) if data is not None else None


def checked(remote: Remote, id: str, data: bytes) -> Manifest:
    """The manifest of a layer. Unusable if it is damaged."""
    try:
        return read_manifest(data)
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(remote, id, error) from error


def damaged(remote: Remote, id: str, error: Exception) -> Unusable:
    """What to say of a layer in a remote that cannot be used."""
    hint = f"obuild remote rm {id[:12]} {remote.name} removes it there"
    return Unusable(f"layer {id[:12]} in {remote.name} cannot be used: {error}", hint=hint)
