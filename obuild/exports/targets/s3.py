"""`s3://BUCKET/KEY`: an object in S3, or in MinIO, R2 or others by AWS_ENDPOINT_URL.

Large files are sent as a multipart upload: the object appears when all parts are there. A part counts if the
server has the same MD5 of it, so an upload that was interrupted, also on another computer, goes on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from obuild.errors import ObuildError, UsageError
from obuild.exports.targets.target import Image, Published, Settings, file_type_of, stem_of
from obuild.guests.profile import Card
from obuild.host import failpoints, parallel
from obuild.host.units import size as readable
from obuild.remotes import aws

#: The size of a part, in bytes, and how many an object may have.
PART, MOST = 64 << 20, 10_000

#: How many parts are sent at once.
_WORKERS = 4

_CHUNK = 1 << 20

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")

#: An ETag that is the object's MD5, or the MD5 of its parts' MD5s with the number of parts.
_ETAG = re.compile(r"[0-9a-f]{32}(?:-[0-9]+)?")


class Part(NamedTuple):
    """A part of a file: its number from 1, where it is, and its MD5."""

    number: int
    start: int
    length: int
    md5: bytes


class S3:
    """An object in a bucket."""

    def __init__(self, place: str, settings: Settings) -> None:
        self._bucket, _, self._key = place.partition("/")
        if not _BUCKET.fullmatch(self._bucket):
            raise UsageError(
                f"{self._bucket!r} cannot be a bucket", hint="write it like s3://bucket/path/name.qcow2"
            )
        if not self._key or self._key.endswith("/") or len(self._key.encode()) > 1024:
            raise UsageError(
                f"s3://{place} does not name an object", hint="write it like s3://bucket/path/name.qcow2"
            )
        self._settings = settings
        self._shown = f"s3://{place}"
        self.type = file_type_of(self._key.rpartition("/")[2], settings)
        self.stem = stem_of(self._key.rpartition("/")[2], self.type)

    def check(self, cards: Sequence[Card]) -> None:
        client = aws.client("s3")
        with aws.explained(f"looking for the bucket {self._bucket}"):
            client.head_bucket(Bucket=self._bucket)

    def send(self, images: Sequence[Image]) -> list[Published]:
        (image,) = images
        path = image.path
        client = aws.client("s3")
        parts = split(path)
        size = path.stat().st_size
        with aws.explained(f"sending to {self._shown}"):
            there = self._head(client)
            if there is None or not _is_same(there, parts, size, unknown=False):
                if there is not None and not self._settings.replace:
                    hint = "it has other content: --replace replaces it"
                    raise UsageError(f"{self._shown} exists already", hint=hint)
                if len(parts) == 1:
                    self._put(client, path, parts[0])
                else:
                    self._upload(client, path, parts, size)
                there = self._head(client)
                if there is None or not _is_same(there, parts, size, unknown=True):
                    raise ObuildError(
                        f"{self._shown} is not what was sent", hint="publish it again with --replace"
                    )
            else:
                self._settings.say(f"{self._shown} ({readable(size)}) is there already")
        return [Published(self._shown, self._shown, f"sha256:{image.sha256}", size)]

    def _head(self, client: Any) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            found: dict[str, Any] = client.head_object(Bucket=self._bucket, Key=self._key)
        except ClientError as error:
            if aws.code_of(error) in ("404", "NoSuchKey"):
                return None
            raise
        return found

    def _put(self, client: Any, path: Path, part: Part) -> None:
        with path.open("rb") as file:
            client.put_object(Bucket=self._bucket, Key=self._key, Body=file, ContentMD5=aws.encoded(part.md5))

    def _upload(self, client: Any, path: Path, parts: Sequence[Part], size: int) -> None:
        """Send the parts that the server does not have, and have it put all together."""
        from s3transfer.utils import ReadFileChunk

        where = {"Bucket": self._bucket, "Key": self._key}
        upload, kept = self._found(client, parts)
        if not upload:
            upload, kept = client.create_multipart_upload(**where)["UploadId"], {}
        missing = [part for part in parts if part.number not in kept]
        done = size - sum(part.length for part in missing)
        self._settings.progress(done, size)

        def send(part: Part) -> tuple[Part, str]:
            with ReadFileChunk.from_filename(str(path), part.start, part.length) as body:
                reply = client.upload_part(
                    **where, UploadId=upload, PartNumber=part.number, Body=body, ContentMD5=aws.encoded(part.md5)
                )
            return part, str(reply["ETag"])

        for part, etag in parallel.each(send, missing, _WORKERS):
            kept[part.number] = etag
            done += part.length
            self._settings.progress(done, size)
            failpoints.reach("publish.piece")
        failpoints.reach("publish.sent")
        listed = [{"PartNumber": number, "ETag": kept[number]} for number in sorted(kept)]
        client.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": listed})

    def _found(self, client: Any, parts: Sequence[Part]) -> tuple[str, dict[int, str]]:
        """The unfinished upload with the most of these parts, and the ETags of its parts; "" if there is none.

        An upload with a part of something else cannot be used.
        """
        best: tuple[str, dict[int, str]] = ("", {})
        reply = client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._key)
        wanted = {part.number: part for part in parts}
        for upload in reply.get("Uploads", []):
            if upload["Key"] != self._key:
                continue
            kept: dict[int, str] = {}
            pages = client.get_paginator("list_parts").paginate(
                Bucket=self._bucket, Key=self._key, UploadId=upload["UploadId"]
            )
            listed = [each for page in pages for each in page.get("Parts", [])]
            for each in listed:
                part = wanted.get(each["PartNumber"])
                if part and each["Size"] == part.length and each["ETag"].strip('"') == part.md5.hex():
                    kept[part.number] = each["ETag"]
            if len(kept) == len(listed) > len(best[1]):
                best = upload["UploadId"], kept
        return best


def split(path: Path) -> list[Part]:
    """The parts of a file. An empty file has one."""
    size = path.stat().st_size
    length = max(PART, (size // MOST >> 20) + 1 << 20)
    parts = []
    with path.open("rb") as file:
        for number, start in enumerate(range(0, max(size, 1), length), 1):
            md5, left = hashlib.md5(usedforsecurity=False), min(length, size - start)
            while left and (data := file.read(min(_CHUNK, left))):
                md5.update(data)
                left -= len(data)
            parts.append(Part(number, start, min(length, size - start), md5.digest()))
    return parts


def _is_same(there: dict[str, Any], parts: Sequence[Part], size: int, *, unknown: bool) -> bool:
    """Whether an object is this file, by its size and its ETag; `unknown` if the ETag is no MD5.

    It is none where S3 has encrypted the object with a key.
    """
    if there["ContentLength"] != size:
        return False
    etag = str(there.get("ETag", "")).strip('"')
    if there.get("SSEKMSKeyId") or there.get("SSECustomerAlgorithm") or not _ETAG.fullmatch(etag):
        return unknown
    if len(parts) == 1:
        return etag == parts[0].md5.hex()
    whole = hashlib.md5(b"".join(part.md5 for part in parts), usedforsecurity=False).hexdigest()
    return etag == f"{whole}-{len(parts)}"
