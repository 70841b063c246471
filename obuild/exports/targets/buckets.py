"""`gs://BUCKET/NAME` and `az://CONTAINER/NAME`: objects in Google Cloud Storage and Azure Blob Storage.

obstore finds the credentials and speaks both protocols: in parts, with an object that appears as a whole. It
cannot go on with an interrupted upload. The object's metadata has the sha256 of the file. A `vhd` for Azure is a
page blob.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from obuild.errors import ObuildError, UsageError
from obuild.exports.targets import page_blob
from obuild.exports.targets.target import Image, Published, Settings, file_type_of, stem_of
from obuild.guests.profile import Card

#: The size of a part in bytes, and how many are sent at once. A blob of Azure has up to 50,000 parts, an object of
#: Google up to 10,000.
_PART, _WORKERS = 32 << 20, 4

_CHUNK = 1 << 20

#: How often, and how long in all, a request is sent again.
_RETRIES, _PATIENCE = 6, timedelta(minutes=2)

_BUCKET = re.compile(r"[a-z0-9$][a-z0-9._-]{1,220}[a-z0-9]")

_HINTS = {
    "gs://": "set GOOGLE_APPLICATION_CREDENTIALS, or call `gcloud auth application-default login`",
    "az://": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or another login of Azure",
}


class Bucket:
    """An object in a bucket, or a blob in a container."""

    def __init__(self, prefix: str, place: str, settings: Settings) -> None:
        self._bucket, _, self._key = place.partition("/")
        self._prefix, self._settings = prefix, settings
        self._shown = f"{prefix}{place}"
        if not _BUCKET.fullmatch(self._bucket) or not self._key or self._key.endswith("/"):
            raise UsageError(
                f"{self._shown} does not name an object", hint=f"write it like {prefix}images/pg16.qcow2"
            )
        self.type = file_type_of(self._key.rpartition("/")[2], settings)
        self.stem = stem_of(self._key.rpartition("/")[2], self.type)

    def check(self, cards: Sequence[Card]) -> None:
        """ObuildError if the bucket cannot be listed: it is not there, or not for us."""
        store = self._store()
        with self._explained("looking into"):
            for _ in store.list(prefix=self._key, chunk_size=1):
                break

    def send(self, images: Sequence[Image]) -> list[Published]:
        (image,) = images
        store = self._store()
        size = image.path.stat().st_size
        with self._explained("sending to"):
            there = self._there(store)
            if there == (size, image.sha256):
                self._settings.say(f"{self._shown} is there already")
            elif there and not self._settings.replace:
                raise UsageError(
                    f"{self._shown} exists already", hint="it has other content: --replace replaces it"
                )
            else:
                self._put(store, image)
                if self._there(store) != (size, image.sha256):
                    hint = "publish it again with --replace"
                    raise ObuildError(f"{self._shown} is not what was sent", hint=hint)
        return [Published(self._shown, self._shown, f"sha256:{image.sha256}", size)]

    def _put(self, store: Any, image: Image) -> None:
        if self._prefix == "az://" and self.type == "vhd":
            page_blob.send(store, self._key, image.path, image.sha256, self._settings.progress)
            return
        pieces = _pieces(image.path, self._settings.progress)
        attributes = {"sha256": image.sha256}
        store.put(self._key, pieces, attributes=attributes, chunk_size=_PART, max_concurrency=_WORKERS)

    def _there(self, store: Any) -> tuple[int, str] | None:
        """The size of the object, and the sha256 that its metadata has; None if there is none."""
        try:
            found = store.get(self._key)
        except FileNotFoundError:
            return None
        return found.meta["size"], str(found.attributes.get("sha256", ""))

    def _store(self) -> Any:
        try:
            from obstore.exceptions import BaseError
            from obstore.store import AzureStore, GCSStore
        except ImportError:
            raise UsageError(
                "the Python package obstore is missing", hint="pip install 'obuild[publish]'"
            ) from None
        made = AzureStore if self._prefix == "az://" else GCSStore
        try:
            return made(
                self._bucket, retry_config={"max_retries": _RETRIES, "retry_timeout": _PATIENCE, "backoff": {}}
            )
        except BaseError as error:
            raise UsageError(f"{self._shown}: {_first(error)}", hint=_HINTS[self._prefix]) from error

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        missing, make_it = f"there is no bucket {self._bucket}", "make it first; obuild makes none"
        try:
            yield
        except FileNotFoundError as error:
            raise ObuildError(f"{what} {self._shown}: {missing}", hint=make_it) from error
        except (BaseError, OSError) as error:
            if "404 Not Found" in str(error):
                raise ObuildError(f"{what} {self._shown}: {missing}", hint=make_it) from error
            refused = isinstance(error, PermissionError) or re.search("401 Unauthorized|403 Forbidden", str(error))
            hint = _HINTS[self._prefix] if refused else "try again later"
            raise ObuildError(f"{what} {self._shown}: {_first(error)}", hint=hint) from error


Google = partial(Bucket, "gs://")
Azure = partial(Bucket, "az://")


def _first(error: Exception) -> str:
    """The first line of an error, without the queries of URLs: they may hold a signature."""
    lines = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"\?[^\s)]*", "", lines[0])


def _pieces(path: Path, progress: Callable[[int, int], object]) -> Iterator[bytes]:
    with path.open("rb") as file:
        total, done = os.fstat(file.fileno()).st_size, 0
        progress(0, total)
        while data := file.read(_CHUNK):
            yield data
            done += len(data)
            progress(done, total)
