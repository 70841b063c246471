"""What users call layers in a remote: an id, or a tag, which is an index of the layer and its ancestors there."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from obuild.errors import ObuildError, UsageError
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.remotes import manifests, pull, trust
from obuild.remotes.layer import ARTIFACT
from obuild.remotes.manifests import Found
from obuild.remotes.oci import DIGEST, INDEX, Descriptor, descriptor, digest_of, packed
from obuild.remotes.protocol import Remote, Tagged, Unusable
from obuild.store.parts import ID
from obuild.store.tags import could_be_id, is_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

#: The annotations of an index, and of its entries.
_NAME, LAYER = "vnd.obuild.tag", "vnd.obuild.layer"

#: The tags of OCI know neither slashes nor colons.
_ESCAPES = {"_": "__", "/": "_s", ":": "_c"}

#: Tags that say what refers to a manifest where a registry has no list of that, and those of caches.
_TAKEN = re.compile(rf"(?:sha256|cache)-{keys.SHA256}(?:\.sig)?")


def tag_of(name: str) -> str:
    """The tag of OCI for a user's. UsageError if it would be too long."""
    found = "".join(_ESCAPES.get(letter, letter) for letter in name)
    if _TAKEN.fullmatch(found):
        raise UsageError(f"the tag {name} means something else in a registry")
    if len(found) > 128:
        raise UsageError(
            f"the tag {name} is too long for a registry", hint="tag the layer with a shorter name, too"
        )
    return found


def name_of(tag: str) -> str:
    """The user's tag for one of OCI; "" if it stands for none."""
    backward = {escape: letter for letter, escape in _ESCAPES.items()}
    name = re.sub("__|_s|_c", lambda found: backward[found[0]], tag)
    return name if is_name(name) and not _TAKEN.fullmatch(tag) and tag_of(name) == tag else ""


def put(remote: Remote, name: str, layers: Sequence[Found]) -> Descriptor:
    """Set a tag in a remote to the last of these layers; the others are its ancestors, the base first.

    Returns the descriptor of the index that says so.
    """
    entries = [
        {**each.manifest.descriptor, "artifactType": ARTIFACT, "annotations": {LAYER: each.id}}
        for each in reversed(layers)
    ]
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "artifactType": ARTIFACT,
        "manifests": entries,
        "annotations": {_NAME: name},
    }
    document = packed(index)
    remote.tag(tag_of(name), Tagged(INDEX, document), replace=True)
    return descriptor(document, INDEX)


def read(remote: Remote, name: str, data: bytes) -> list[tuple[LayerId, str]]:
    """The layers of an index, each with the digest of its manifest; the tagged one first. ObuildError."""
    try:
        entries = json.loads(data)["manifests"]
        found = [(str(each["annotations"][LAYER]), str(each["digest"])) for each in entries]
        if found and all(ID.fullmatch(id) and DIGEST.fullmatch(digest) for id, digest in found):
            return [(LayerId(id), digest) for id, digest in found]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ObuildError(f"{name} in {remote.name} is not a tag of obuild", hint=f"obuild remote ls {remote.name}")


def resolve(remote: Remote, name: str) -> LayerId:
    """The layer that a tag, an id or its first digits name in a remote. UsageError if there is none or more."""
    if not could_be_id(name):
        data = remote.manifests([tag_of(name)]).get(tag_of(name)) if is_name(name) else None
        if data is None:
            raise _unknown(remote, name)
        return read(remote, name, data)[0][0]
    found = [name] if ID.fullmatch(name) else [tag for tag in ids(remote.tags()) if tag.startswith(name)]
    if not found:
        raise _unknown(remote, name)
    if len(found) > 1:
        raise UsageError(f"{name!r} could be {len(found)} layers in {remote.name}", hint="give more digits")
    return LayerId(found[0])


def find(remote: Remote, name: str, *, trusted: Sequence[Ed25519PublicKey] = ()) -> list[Found]:
    """The layer that a name stands for, with its ancestors, the base first. UsageError if it is not there.

    With keys that are `trusted`, Unusable unless one has signed each layer, and the tag.
    """
    id = resolve(remote, name)
    if trusted and not could_be_id(name):
        _see_tag_signed(remote, name, id, trusted)
    tip = manifests.find(remote, id)
    if tip is None:
        raise _unknown(remote, name)
    found = pull.chain(remote, tip)
    if trusted:
        trust.see_signed(remote, {each.id: each.manifest for each in found}, trusted)
    return found


def _see_tag_signed(remote: Remote, name: str, id: LayerId, trusted: Sequence[Ed25519PublicKey]) -> None:
    """Unusable unless a tag is signed as it is: else it could name another signed layer."""
    data = remote.manifests([tag_of(name)]).get(tag_of(name), b"")
    named = data and read(remote, name, data)[0][0] == id and json.loads(data)["annotations"].get(_NAME) == name
    if not named or not trust.is_signed(remote, digest_of(data), trusted):
        raise Unusable(f"the tag {name} in {remote.name} is not signed by a trusted key")


def ids(tags: Sequence[str]) -> list[LayerId]:
    """The ids among tags."""
    return [LayerId(tag) for tag in tags if ID.fullmatch(tag)]


def _unknown(remote: Remote, name: str) -> UsageError:
    return UsageError(
        f"{remote.name} has no layer with the id or the tag {name!r}", hint=f"obuild remote ls {remote.name}"
    )
