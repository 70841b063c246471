"""Download the files that recipes name: once, resumed after any interruption, verified while they are written.

The standard library provides http, https and file, redirects, and proxies from the environment.
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

#: How long a server may send nothing, in seconds.
TIMEOUT = 60.0

#: How many times to try again in a row when a server ends a download early without sending anything new.
RETRIES = 2

#: How much to read at once, in bytes. What was read before a time-out is kept.
_PIECE = 1 << 16

#: The largest list of digests, or signature, in bytes; the rest is ignored.
_LARGEST_LIST = 1 << 20

Say = Callable[[str], None]

#: Called with the number of bytes so far, and the total, or 0 if it is unknown.
Progress = Callable[[int, int], object]


def fetch(remote: Remote, downloads: Downloads, *, trust: bool, say: Say, progress: Progress) -> tuple[Path, str]:
    """Return the file and its digest; download it if it is not in the store yet. The caller links it soon.

    With `trust`, a file without a digest is accepted: by the signed list if there is one, else as it comes. Two
    processes that want the same file download it once. ObuildError if no server has it, or the digest is wrong;
    OSError if there is no space. After an interruption, the next download resumes.
    """
    digest = remote.digest
    if not digest and not trust:
        raise UsageError(
            f"the digest of {remote.urls[0]} is not known",
            hint='write digest = "sha256:…" into the recipe, or use --trust-first to accept and record it',
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
            except OSError:  # no space: remove what takes it up
                part.unlink(missing_ok=True)
                raise
        if not _size(part):
            part.unlink(missing_ok=True)
        hint = "a server may have removed it: name another address, or a newer file with its digest"
        raise ObuildError("; ".join(problems), hint=hint)


class _Failed(Exception):
    """Why a server cannot be used."""


class _Broken(_Failed):
    """Why a download ended early. It can be resumed."""


def _download(url: str, part: Path, digest: str, say: Say, progress: Progress) -> str:
    """Download a file to `part` and return its digest. _Failed if the server does not have it."""
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
            raise _Failed(f"the file is not what the recipe pins: it has {found}, not {digest}")


def _read(url: str, part: Path, digest: str, progress: Progress) -> str:
    """Append the rest of a file to `part`, and return the digest of the whole file."""
    hashed = hashlib.new(digest.partition(":")[0] or "sha256")
    with part.open("a+b") as file:
        file.seek(0)
        while piece := file.read(1 << 20):
            hashed.update(piece)
        done = file.tell()
        if done and digest == f"{hashed.name}:{hashed.hexdigest()}":
            return digest  # it is complete: a process was killed before it renamed it
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
        raise _Broken(f"the download ended after {done} of {total} bytes")
    return f"{hashed.name}:{hashed.hexdigest()}"


def _open(url: str, offset: int = 0) -> Any:
    """Request a file from `offset` on. _Failed if the server refuses."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "obuild"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        return build_opener().open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # the file is not longer than what we have, so we have something else
            return _open(url)
        raise _Failed(f"the server says {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        raise _Failed(_reason(error)) from error


def _continues(reply: Any, offset: int) -> bool:
    """Return whether a server sends the requested range, not the whole file."""
    where = str(reply.headers.get("Content-Range", ""))
    return reply.status == 206 and where.startswith(f"bytes {offset}-")


def _piece(reply: Any) -> bytes:
    try:
        # read1 returns what has arrived; a time-out during a longer read would lose it
        return bytes(reply.read1(_PIECE) if hasattr(reply, "read1") else reply.read(_PIECE))
    except (OSError, HTTPException) as error:
        raise _Broken(_reason(error)) from error


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"the server sent nothing for {TIMEOUT:g} s"
    return words(inner) if isinstance(inner, Exception) else str(inner)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _signed_digest(remote: Remote) -> str:
    """Return the digest from the signed list. ObuildError if the signature is wrong or the file is not listed."""
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
