"""Send blobs to a repository of a container registry, in pieces that are kept when the connection is cut.

The protocol is the OCI distribution specification 1.1, "Pushing blobs". A registry that takes no pieces, as the
specification allows, gets the blob in one request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from obuild.errors import ObuildError
from obuild.host import failpoints
from obuild.remotes.registry_http import TRIES, Body, Http, Lost, Refused
from obuild.remotes.uploads import Uploads

if TYPE_CHECKING:
    import httpx

#: How much of a blob is sent in one request, in bytes: what a registry has of an interrupted request is lost.
PIECE = 64 << 20

#: How much is sent if something in between limits the size of requests.
_SMALLEST = 1 << 20

#: How much is read at once, in bytes.
_CHUNK = 1 << 20

#: How many blobs in a row another repository may lack before it is not asked again.
_MISSES = 4

#: What registries say that take no pieces.
_NO_PIECES = (400, 404, 405, 416)

#: How a registry says that a blob is elsewhere, and how often it may.
_ELSEWHERE, _REDIRECTIONS = (301, 302, 303, 307, 308), 4

_RANGE = re.compile(r"(?:bytes=)?0-([0-9]+)")

#: Called with the number of bytes that the registry has, and their total.
Progress = Callable[[int, int], object]


class _Upload(NamedTuple):
    """An upload of a blob: where the next bytes go, and how many the registry has."""

    place: str
    done: int


class Blobs:
    """The blobs of a repository. All methods may raise Lost and Refused."""

    def __init__(
        self,
        http: Http,
        repository: str,
        uploads: Uploads | None,
        *,
        others: Sequence[str] = (),
        piece: int = PIECE,
    ) -> None:
        """Without `uploads`, blobs are sent whole. See `put` for `others`."""
        self._http, self._repository, self._uploads, self._piece = http, repository, uploads, piece
        self._tries = dict.fromkeys(others, _MISSES)  # how many blobs each may still lack in a row
        self._root = f"/v2/{repository}/blobs"
        self._what = f"sending to {repository}"

    def check(self) -> None:
        """See that the registry lets us push: ask for an upload, and cancel it."""
        self._cancel(self._begin())

    def _cancel(self, upload: _Upload) -> None:
        with suppress(Refused, Lost):  # it ends by itself
            self._http.send("DELETE", upload.place, ok=(202, 204), what=self._what, again=False)

    def has(self, digest: str) -> bool:
        what = f"looking into {self._repository}"
        reply = self._http.send("HEAD", f"{self._root}/{digest}", ok=(200, 307, 404), what=what)
        return reply.status_code != 404

    def push(self, path: Path, digest: str, progress: Progress) -> bool:
        """Send a file with this digest, unless it is there already. Returns whether it was sent.

        The registry compares the digest. An upload that was interrupted, also in another process, goes on.
        """
        size = path.stat().st_size
        progress(0, size)
        sent = not self.has(digest) and not (size > self._piece and self._mount(digest, self._other(digest)))
        if sent and self._uploads and size > self._piece:
            name = f"{self._http.host}/{self._repository}@{digest}"
            self._send_pieces(self._uploads, name, path, size, digest, progress)
        elif sent:
            self._send_whole(size, digest, lambda: _read(path, 0, size))
        if self._uploads and size > self._piece:  # less is sent sooner than asked for
            self._uploads.put(self._owner(digest), self._repository)
        progress(size, size)
        return sent

    def _other(self, digest: str) -> str:
        """The repository that we have sent a blob to before, "" if there is none."""
        return self._uploads.find(self._owner(digest)) if self._uploads else ""

    def _mount(self, digest: str, other: str) -> bool:
        """Have the registry take a blob from another of its repositories, if it does that."""
        if other in ("", self._repository):
            return False
        place = f"{self._root}/uploads/?{urlencode({'mount': digest, 'from': other})}"
        headers = {"Content-Length": "0"}
        try:
            with self._http.reading(other):
                reply = self._http.send("POST", place, ok=(201, 202), what=self._what, headers=headers)
        except ObuildError:  # some token servers give nothing if they cannot give all
            return False
        if reply.status_code == 202:  # it wants the blob; another upload will be begun
            self._cancel(self._at(reply, 0))
        return reply.status_code == 201

    def _owner(self, digest: str) -> str:
        """What is remembered under this name is the repository of the registry that a blob was sent to last."""
        return f"{self._http.host}@{digest}"

    def put(self, data: bytes, digest: str) -> None:
        """Send a blob that fits into memory, unless one of the other repositories has it.

        One that lacks several blobs in a row is not asked again.
        """
        for other, left in list(self._tries.items()):
            if left and self._mount(digest, other):
                self._tries[other] = _MISSES
                return
            self._tries[other] = left - 1 if left else 0
        self._send_whole(len(data), digest, lambda: _once(data))

    def get(self, digest: str, most: int) -> bytes:
        """A blob, b"" if it is not there. ObuildError if it has more than `most` bytes.

        The caller compares its digest. A registry may say that it is on another server.
        """
        place = f"{self._root}/{digest}"
        for _ in range(_REDIRECTIONS):
            what = f"reading from {self._repository}"
            reply = self._http.send("GET", place, ok=(200, 404, *_ELSEWHERE), what=what, most=most)
            if reply.status_code not in _ELSEWHERE:
                return reply.content if reply.status_code == 200 else b""
            place = self._at(reply, 0).place
        raise ObuildError(f"{self._http.host} sends us round in circles for a blob")

    def _send_whole(self, size: int, digest: str, body: Body) -> None:
        """Send a blob in one request. After a failure, which may leave a part of it, a new upload begins."""
        for attempt in range(1, TRIES + 1):
            try:
                self._http.send(
                    *("PUT", _named(self._begin(), digest)),
                    ok=(201, 204),
                    what=self._what,
                    headers=_headers(size),
                    body=body,
                    again=False,
                )
                return
            except Lost:
                if attempt == TRIES:
                    raise
            self._http.pause(attempt)
            if self.has(digest):  # only the answer was lost
                return

    def _send_pieces(
        self, uploads: Uploads, name: str, path: Path, size: int, digest: str, progress: Progress
    ) -> None:
        """Send what the registry does not have yet. Each piece is remembered as soon as the registry has it."""
        upload = self._asked(uploads.find(name)) or self._begin()
        piece, furthest, failures = self._piece, upload.done, 0
        while upload.done < size:
            progress(upload.done, size)
            length = min(piece, size - upload.done)
            try:
                upload = self._patch(upload, path, length)
            except Refused as error:
                if error.status in _NO_PIECES:
                    self._send_whole(size, digest, lambda: _read(path, 0, size))
                    break
                if error.status != 413 or length <= _SMALLEST:
                    raise
                piece = max(_SMALLEST, length // 4)
                upload = self._asked(upload.place) or self._begin()
            except Lost:
                failures += 1
                if failures == TRIES:
                    raise
                self._http.pause(failures)
                upload = self._asked(upload.place) or self._begin()
            if upload.done > furthest:
                furthest, failures = upload.done, 0
            uploads.put(name, upload.place)
            failpoints.reach("publish.piece")
        else:
            self._finish(upload, digest)
        uploads.forget(name)

    def _begin(self) -> _Upload:
        headers = {"Content-Length": "0"}
        reply = self._http.send("POST", f"{self._root}/uploads/", ok=(202,), what=self._what, headers=headers)
        return self._at(reply, 0)

    def _asked(self, place: str) -> _Upload | None:
        """Ask how far an upload is; None if the registry does not know it any more."""
        if not place:
            return None
        try:
            reply = self._http.send("GET", place, ok=(204,), what=self._what)
        except Refused:
            return None
        found = _RANGE.fullmatch(reply.headers.get("Range", ""))
        # "0-0" is what registries say of nothing, and of one byte.
        return self._at(reply, int(found[1]) + 1 if found and found[1] != "0" else 0)

    def _patch(self, upload: _Upload, path: Path, length: int) -> _Upload:
        """Send the next bytes. Lost if the registry may have them or not."""
        end = upload.done + length
        headers = {**_headers(length), "Content-Range": f"{upload.done}-{end - 1}"}
        reply = self._http.send(
            *("PATCH", upload.place),
            ok=(202,),
            what=self._what,
            headers=headers,
            body=lambda: _read(path, upload.done, length),
            again=False,
        )
        return self._at(reply, end)

    def _finish(self, upload: _Upload, digest: str) -> None:
        """Have the registry compare the digest of what it has, and keep it under that name."""
        try:
            self._http.send("PUT", _named(upload, digest), ok=(201, 204), what=self._what, headers=_headers(0))
        except Refused as error:
            if error.status != 404 or not self.has(digest):  # the first answer may have been lost
                raise

    def _at(self, reply: httpx.Response, done: int) -> _Upload:
        place = reply.headers.get("Location", "")
        if not place:
            raise ObuildError(f"{self._http.host} does not say where a blob is, or goes")
        return _Upload(self._http.absolute(place), done)


def _once(data: bytes) -> Iterator[bytes]:
    """The data in one piece. httpx keeps a request until garbage is collected, but not what a generator had."""
    yield data


def _named(upload: _Upload, digest: str) -> str:
    return f"{upload.place}{'&' if '?' in upload.place else '?'}digest={digest}"


def _headers(length: int) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream", "Content-Length": str(length)}


def _read(path: Path, start: int, length: int) -> Iterator[bytes]:
    """A part of a file, in pieces. ObuildError if the file has become shorter."""
    with path.open("rb") as file:
        file.seek(start)
        while length:
            data = file.read(min(_CHUNK, length))
            if not data:
                raise ObuildError(f"{path} has become shorter while it was sent")
            length -= len(data)
            yield data
