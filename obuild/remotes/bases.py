"""Bases in a remote, by name: the tag base/NAME there is that of the layer of the base image NAME.

So a host without the image knows the ids of all that is built on it, and fetches the layer if it needs that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from obuild.errors import ObuildError
from obuild.guests import profile
from obuild.plan import keys
from obuild.plan.steps import ABSENT, Base
from obuild.remotes import manifests, names, pull, trust
from obuild.remotes.manifests import Found
from obuild.remotes.protocol import Remote, Unusable
from obuild.store.tags import is_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def put(remote: Remote, name: str, layer: Found, key: Ed25519PrivateKey | None = None) -> None:
    """Say that a layer in a remote is that of the base image `name`, and sign that with the key, if any."""
    tag = f"base/{name}"
    if not is_name(tag):  # a name with +
        return
    document = names.put(remote, tag, [layer])
    if key:
        trust.sign(remote, document, key)


def find(remote: Remote, name: str, digest: str = "", *, trusted: Sequence[Ed25519PublicKey] = ()) -> Base | None:
    """The base with this name, or this digest, if a remote has it; its image is absent.

    With keys that are `trusted`, Unusable unless one has signed it. Unusable, too, if it is damaged or no base.
    """
    if digest:
        found = manifests.find(remote, keys.base_id(digest))
        if found and trusted:
            trust.see_signed(remote, {found.id: found.manifest}, trusted)
    else:
        tag = f"base/{name}"
        there = is_name(tag) and remote.manifests([names.tag_of(tag)])
        found = names.find(remote, tag, trusted=trusted)[-1] if there else None
    return _base(remote, name, found) if found else None


def _base(remote: Remote, name: str, found: Found) -> Base:
    config = pull.config_of(remote, found)
    digest = keys.base_digest(keys.fields(config.key))
    card = b"".join(pull.read_file(remote, found, config, profile.NAME))
    if config.parent or not digest or not card:
        raise Unusable(f"layer {found.id[:12]} in {remote.name} is not that of a base, or has no card")
    try:
        about = profile.parse(card.decode(), where=profile.NAME)
    except (ObuildError, ValueError) as error:
        raise manifests.damaged(remote, found.id, ValueError(str(error))) from error
    return Base(name, ABSENT, digest, (0, 0, 0), about)
