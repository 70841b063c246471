"""Signed lists of digests, such as SHA256SUMS: check the signature, find a digest."""

from __future__ import annotations

import os
import re
from pathlib import Path

from obuild.errors import ObuildError, ProcessError
from obuild.host import process
from obuild.host.fs import in_memory

#: The formats of sha256sum, `HEX *NAME`, and of BSD's tools, `SHA256 (NAME) = HEX`.
_GNU = re.compile(r"(?P<digest>[0-9a-f]{64}|[0-9a-f]{128}) [ *](?:\./)?(?P<name>\S+)")
_BSD = re.compile(r"SHA(?:256|512) \((?P<name>\S+)\) = (?P<digest>[0-9a-f]{64}|[0-9a-f]{128})")


def verified(listed: bytes, signature: bytes, keyring: Path) -> str:
    """Check that a key in `keyring` signed a list, and return its text. It is clear-signed without `signature`.

    ObuildError if no such key signed it.
    """
    process.require("gpgv")
    process.require_file(keyring, "the keyring of the distribution")
    try:
        if not signature:
            listed = process.run(["gpgv", "--keyring", keyring, "--output", "-", "-"], input=listed)
        else:
            with in_memory("signature", signature) as file:
                name = f"/proc/{os.getpid()}/fd/{file.fileno()}"
                process.run(["gpgv", "--keyring", keyring, name, "-"], input=listed)
    except ProcessError as error:
        raise ObuildError(f"the list of digests is not signed by a key in {keyring}: {error.message}") from error
    return listed.decode("utf-8", "replace")


def find(listed: str, name: str) -> str:
    """Return the digest of a file in a list, as sha256:HEX or sha512:HEX; "" if the list does not have it."""
    for line in listed.splitlines():
        found = _GNU.fullmatch(line.strip()) or _BSD.fullmatch(line.strip())
        if found and found["name"] == name:
            return f"sha{len(found['digest']) * 4}:{found['digest']}"
    return ""
