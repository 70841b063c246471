"""`s3://BUCKET/PREFIX`: an OCI image layout in S3, or in MinIO, R2 or others by AWS_ENDPOINT_URL."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from obuild.errors import ObuildError, UsageError
from obuild.remotes import aws
from obuild.remotes.layout import Layout

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")

#: How often index.json is written again because somebody else did so at the same time.
_TRIES = 50

#: What a server says if an object has changed since it was read, and if it does not know such conditions.
_CHANGED, _UNKNOWN = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"), ("NotImplemented", "501")


class Bucket:
    """See `Objects`."""

    def __init__(self, name: str, bucket: str, prefix: str) -> None:
        self.name, self._bucket, self._prefix = name, bucket, prefix
        self._client = aws.client("s3")

    def read(self, name: str, most: int) -> bytes | None:
        return self._read(name, most)[0]

    def _read(self, name: str, most: int) -> tuple[bytes | None, str]:
        """A file, and its ETag."""
        from botocore.exceptions import ClientError

        with aws.explained(f"reading from {self.name}"):
            try:
                found = self._client.get_object(**self._at(name))
            except ClientError as error:
                if aws.code_of(error) in ("404", "NoSuchKey"):
                    return None, ""
                raise
            data: bytes = found["Body"].read(most + 1)
        if len(data) > most:
            raise ObuildError(f"{name} in {self.name} is larger than it should be")
        return data, str(found["ETag"])

    def exists(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        with aws.explained(f"looking into {self.name}"):
            try:
                self._client.head_object(**self._at(name))
            except ClientError as error:
                if aws.code_of(error) in ("404", "NoSuchKey"):
                    return False
                raise
            return True

    def write(self, name: str, data: bytes) -> None:
        with aws.explained(f"writing to {self.name}"):
            self._client.put_object(**self._at(name), Body=data)

    def update(self, name: str, most: int, change: Callable[[bytes | None], bytes | None]) -> None:
        """It is read again after it was written: not every server knows conditions."""
        for _ in range(_TRIES):
            there, tag = self._read(name, most)
            data = change(there)
            if data is None:
                return
            self._replace(name, data, {"IfNoneMatch": "*"} if there is None else {"IfMatch": tag})
        raise ObuildError(f"{name} of {self.name} is changed by others all the time", hint="try again")

    def _replace(self, name: str, data: bytes, condition: dict[str, str]) -> None:
        from botocore.exceptions import ClientError

        with aws.explained(f"writing to {self.name}"):
            try:
                self._client.put_object(**self._at(name), Body=data, **condition)
            except ClientError as error:
                if aws.code_of(error) in _UNKNOWN:
                    self._client.put_object(**self._at(name), Body=data)
                elif aws.code_of(error) not in _CHANGED:
                    raise

    def older(self, prefix: str, seconds: float) -> Iterator[tuple[str, int]]:
        limit = time.time() - seconds
        with aws.explained(f"reading from {self.name}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}"
            )
            for each in (each for page in pages for each in page.get("Contents", ())):
                if each["LastModified"].timestamp() < limit:
                    yield str(each["Key"]).removeprefix(self._prefix), int(each["Size"])

    def delete(self, name: str) -> None:
        with aws.explained(f"removing from {self.name}"):
            self._client.delete_object(**self._at(name))

    def _at(self, name: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{name}"}


@contextmanager
def open_bucket(place: str, name: str) -> Iterator[Layout]:
    """Open the remote. UsageError if it cannot be a bucket, or boto3 is missing."""
    bucket, _, prefix = place.partition("/")
    if not _BUCKET.fullmatch(bucket) or len(prefix) > 500:
        raise UsageError(f"{bucket!r} cannot be a bucket", hint="write it like s3://bucket/prefix")
    yield Layout(Bucket(name, bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""))
