"""A file that a recipe names by its addresses and digest. See Downloads in docs/recipes.md."""

from __future__ import annotations

import re
from dataclasses import dataclass

from obuild.bases.lockfile import DIGEST
from obuild.bases.sources import Sources
from obuild.bases.table import Table

_URL = re.compile(r"(?:https?|file)://\S+")


@dataclass(frozen=True, slots=True)
class Remote:
    """A file, the same at each of `urls`. `digest` is sha256:HEX or sha512:HEX, or "" if it is not known.

    An unknown digest may be in the list at `sums`, signed by `signature` or clear-signed with a key in the file
    `keyring`.
    """

    urls: tuple[str, ...]
    digest: str
    sums: str = ""
    signature: str = ""
    keyring: str = ""


def unpinned(*remotes: Remote | None) -> str:
    """Return which of these files has no digest, as a message; "" if all have one."""
    unknown = [each.urls[0] for each in remotes if each and not each.digest]
    return f"the digest of {unknown[0]} is not known" if unknown else ""


def parse(table: Table, sources: Sources) -> Remote:
    """Read a table for a file. UsageError for a mistake."""
    table.only("url", "path", "digest", "sums", "signature", "keyring")
    if "path" in table:
        return _local(table, sources)
    urls = table.strings("url") if isinstance(table.get("url"), list) else (table.text("url"),)
    for key, url in [
        *(("url", url) for url in urls),
        *((key, table[key]) for key in ("sums", "signature") if key in table),
    ]:
        if not isinstance(url, str) or not _URL.fullmatch(url):
            raise table.error(key, f"{key} {url!r} is not a URL", hint="https://…, http://… or file:///…")
    if not urls:
        raise table.error("url", "url must have at least one address")
    digest = _digest(table, urls[0], sources)
    if ("sums" in table) != ("keyring" in table) or ("signature" in table and "sums" not in table):
        raise table.error("sums", "sums needs a keyring, and a signature needs sums")
    keyring = table.line("keyring")
    if keyring:
        keyring = str(table.origin["keyring"][0].folder / keyring)
    return Remote(urls, digest, table.line("sums"), table.line("signature"), keyring)


def _local(table: Table, sources: Sources) -> Remote:
    """Read a table that names a local file by its path; an address is accepted, too."""
    table.only("path", "digest")
    path = table.line("path")
    url = path if _URL.fullmatch(path) else (table.origin["path"][0].folder / path).absolute().as_uri()
    return Remote((url,), _digest(table, url, sources))


def _digest(table: Table, url: str, sources: Sources) -> str:
    """Return the digest from the recipe, or else from its lock file; "" if neither has it."""
    if not table.get("digest"):
        return sources.locked.get(url, "")
    return table.match("digest", DIGEST, hint='write it like "sha256:" and 64 hex digits, or "sha512:" and 128')
