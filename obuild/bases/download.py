"""Files that recipes name by URL: downloaded once, resumed whatever happened, and verified while they are written.

The standard library does it: http, https and file, redirects, and the proxies that the environment names.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, build_opener

from obuild.bases import checksums
from obuild.bases.remote import Remote
from obuild.errors import ObuildError, UsageError, words
from obuild.host import units
from obuild.host.fs import touch
from obuild.store.downloads import Downloads, name_of

#: How long a server may say nothing, in seconds.
TIMEOUT = 60.0

#: How often a server is asked again that has ended a download early, and sent nothing new.
RETRIES = 2

#: Read in pieces of this size: what has come before a time-out is kept.
_PIECE = 1 << 16

#: The most that is read of a list of digests, or of a signature.
_LARGEST_LIST = 1 << 20

Say = Callable[[str], None]

#: Called with the bytes that are there, and with all that there will be, or 0 if nobody says.
Progress = Callable[[int, int], object]


def fetch(remote: Remote, downloads: Downloads, *, trust: bool, say: Say, progress: Progress) -> tuple[Path, str]:
    """The file, downloaded now if it is not there yet, and its digest. The caller makes a link to it, or is quick.

    With `trust` a file whose digest nobody knows is taken: as the signed list says, or else as it comes. Two who
    want the same download it once. ObuildError if no server gives it, or not as it should be; OSError if there is
    no room. What came before an interruption stays, and the next one goes on there.
    """
    digest = remote.digest
    if not digest and not trust:
        raise UsageError(
            f"nobody knows the digest of {remote.urls[0]}",
            hint='write digest = "sha256:…" into the recipe, or let --trust-first take what comes and remember it',
        )
    if not digest and remote.sums:
        digest = _signed_digest(remote)
    name = name_of(digest) if digest else f"url-{hashlib.sha256(remote.urls[0].encode()).hexdigest()}"
    with downloads.lock(name):
        if digest and (there := downloads.find(digest)):
            touch(there)
            return there, digest
        part = downloads.begin(name)
        problems = []
        for url in remote.urls:
            say(f"downloading {url}")
            try:
                digest = _download(url, part, digest, say, progress)
                return downloads.keep(part, digest), digest
            except _Failed as error:
                problems.append(f"{url}: {error}")
            except OSError:  # there is no room: what has come is only in the way
                part.unlink(missing_ok=True)
                raise
        if not _size(part):
            part.unlink(missing_ok=True)
        hint = "a server may have removed it: name another address, or a newer file with its digest"
        raise ObuildError("; ".join(problems), hint=hint)


class _Failed(Exception):
    """A server cannot be used, in words."""


class _Broken(_Failed):
    """A download that has ended early, and may go on where it ended."""


def _download(url: str, part: Path, digest: str, say: Say, progress: Progress) -> str:
    """Have all of a file in `part`; returns its digest. _Failed if the server does not give it."""
    begun = time.monotonic()
    furthest, failures = _size(part), 0
    while True:
        resumed = _size(part) > 0
        try:
            found = _read(url, part, digest, progress)
        except _Broken:
            failures = 0 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures > RETRIES:
                raise
            continue
        if not digest or found == digest:
            seconds = max(time.monotonic() - begun, 0.001)
            say(f"downloaded {units.size(_size(part))} in {seconds:.0f} s")
            return found
        part.unlink()
        if not resumed:
            raise _Failed(f"what it sends is not what the recipe pins: {found}, and not {digest}")


def _read(url: str, part: Path, digest: str, progress: Progress) -> str:
    """Read a file to its end, from where `part` ends; returns the digest of all of it."""
    hashed = hashlib.new(digest.partition(":")[0] or "sha256")
    with part.open("a+b") as file:
        file.seek(0)
        while piece := file.read(1 << 20):
            hashed.update(piece)
        done = file.tell()
        if done and digest == f"{hashed.name}:{hashed.hexdigest()}":
            return digest  # a process was killed before it gave the file its name
        try:
            with _open(url, done) as reply:
                if done and not _continues(reply, done):
                    file.truncate(0)
                    hashed, done = hashlib.new(hashed.name), 0
                length = reply.headers.get("Content-Length")
                total = done + int(length) if length and length.isdecimal() else 0
                progress(done, total)
                while piece := _piece(reply):
                    file.write(piece)
                    hashed.update(piece)
                    done += len(piece)
                    progress(done, total)
        finally:
            file.flush()
    if done < total:
        raise _Broken(f"it ends after {done} of {total} bytes")
    return f"{hashed.name}:{hashed.hexdigest()}"


def _open(url: str, offset: int = 0) -> Any:
    """Ask a server for a file, from `offset` on. _Failed if it says no."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "obuild"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        return build_opener().open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # there is nothing behind what we have, so that is not this file's beginning
            return _open(url)
        raise _Failed(f"the server says {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise _Failed(_reason(error)) from error


def _continues(reply: Any, offset: int) -> bool:
    """Whether a server sends what was asked for, and not the file from its start."""
    where = str(reply.headers.get("Content-Range", ""))
    return reply.status == 206 and where.startswith(f"bytes {offset}-")


def _piece(reply: Any) -> bytes:
    try:
        # what is there, and no more: a larger read would lose it at a time-out
        return bytes(reply.read1(_PIECE) if hasattr(reply, "read1") else reply.read(_PIECE))
    except (OSError, HTTPException) as error:
        raise _Broken(_reason(error)) from error


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"it has said nothing for {TIMEOUT:g} s"
    return words(inner) if isinstance(inner, Exception) else str(inner)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _signed_digest(remote: Remote) -> str:
    """What the signed list says of a file. ObuildError if nobody known has signed it, or the file is not in it."""
    try:
        listed = _small(remote.sums)
        signature = _small(remote.signature) if remote.signature else b""
    except _Failed as error:
        raise ObuildError(f"cannot read the list of digests {remote.sums}: {error}") from error
    name = remote.urls[0].rpartition("/")[2]
    digest = checksums.find(checksums.verified(listed, signature, Path(remote.keyring)), name)
    if not digest:
        raise ObuildError(f"{remote.sums} does not list {name}")
    return digest


def _small(url: str) -> bytes:
    with _open(url) as reply:
        data = b""
        while (piece := _piece(reply)) and len(data) <= _LARGEST_LIST:
            data += piece
        return data
