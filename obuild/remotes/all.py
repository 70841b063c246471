"""The table of kinds of remotes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.host import memory
from obuild.remotes.protocol import Opened


class Access(NamedTuple):
    """What a remote may need: environment variables, in which credentials are found, and whether http will do.

    `known` are the names of remotes that may have the same blobs: a registry copies them from there by itself.
    """

    environment: Mapping[str, str]
    insecure: bool = False
    known: tuple[str, ...] = ()


def _folder(place: str, name: str, access: Access) -> Opened:
    from obuild.remotes.folder import open_folder

    return open_folder(place, name)


def _oci(place: str, name: str, access: Access) -> Opened:
    from obuild.remotes.registry_remote import open_registry

    known = [each.removeprefix("oci://") for each in access.known if each.startswith("oci://")]
    return open_registry(place, name, known, environment=access.environment, insecure=access.insecure)


def _s3(place: str, name: str, access: Access) -> Opened:
    from obuild.remotes.s3 import open_bucket

    return open_bucket(place, name)


#: Each opens what follows the prefix; it imports its libraries then.
KINDS: dict[str, Callable[[str, str, Access], Opened]] = {"oci://": _oci, "s3://": _s3, "dir:": _folder}


def open_remote(name: str, access: Access) -> Opened:
    """Open a remote. UsageError if there is none with such a name, or a library is missing."""
    see_remote(name)
    memory.give_back()
    prefix = next(prefix for prefix in KINDS if name.startswith(prefix))
    return KINDS[prefix](name.removeprefix(prefix), name, access)


def see_remote(name: str) -> None:
    """UsageError unless a name begins like that of a remote."""
    if not is_remote(name):
        hint = "write oci://HOST/REPOSITORY, s3://BUCKET/PREFIX or dir:PATH"
        raise UsageError(f"{name!r} is not a remote", hint=hint)


def is_remote(name: str) -> bool:
    """Whether a name is that of a remote, by its beginning."""
    return name.startswith(tuple(KINDS))
