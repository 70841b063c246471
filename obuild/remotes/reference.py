"""The name of an image in a container registry: HOST[:PORT]/REPOSITORY[:TAG].

The rules are those of the OCI distribution specification 1.1 and of the docker command.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from obuild.errors import UsageError

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")

#: Docker Hub has one name for people, and another for its server.
HUB, HUB_SERVER = "docker.io", "registry-1.docker.io"


class Reference(NamedTuple):
    """A tag of a repository in a registry."""

    host: str
    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}:{self.tag}"

    def at(self, digest: str) -> str:
        """The name of what has this digest, whatever the tag means later."""
        return f"{self.host}/{self.repository}@{digest}"


def parse(text: str) -> Reference:
    """Read a reference; its tag is `latest` if it has none. UsageError if a registry does not allow it."""
    host, slash, rest = text.partition("/")
    repository, colon, tag = rest.partition(":")
    if not slash or not _HOST.fullmatch(host):
        hint = "write it like registry.example/team/name:tag"
        raise UsageError(f"{text!r} does not begin with the host of a registry", hint=hint)
    if "@" in rest:
        raise UsageError(f"{text!r} has a digest: only a tag can be chosen")
    if host == HUB and "/" not in repository:
        repository = f"library/{repository}"
    if not _REPOSITORY.fullmatch(repository) or len(f"{host}/{repository}") > 255:
        hint = "lowercase letters and digits, with single . _ - between them, and / between parts"
        raise UsageError(f"{repository!r} cannot be a repository of a registry", hint=hint)
    if colon and not _TAG.fullmatch(tag):
        hint = "at most 128 letters, digits and . _ -, beginning with a letter, a digit or _"
        raise UsageError(f"{tag!r} cannot be a tag in a registry", hint=hint)
    return Reference(host, repository, tag or "latest")
