"""A file as a page blob of Azure, the only kind that Azure makes disks from. Pages of zeros are not sent.

obstore, which finds the credentials, signs URLs for Microsoft's library. Pages are written in place, so they go to
another blob, and Azure copies it when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import sleep
from typing import Any, Literal

from obuild.errors import UsageError
from obuild.host import failpoints

#: How many pieces of 4 MiB are sent at once.
_WORKERS = 4

#: How long signed URLs are good for.
_SIGNED = timedelta(days=1)

#: How long to wait before Azure is asked again whether it has copied a blob, in seconds.
_PAUSE = 1.0

Method = Literal["GET", "PUT"]


def send(store: Any, key: str, file: Path, sha256: str, progress: Callable[[int, int], object]) -> None:
    """Send a file of whole 512 bytes to the blob `key` of obstore's container, and replace what is there.

    Its metadata has the sha256. OSError with what Azure says: PermissionError and FileNotFoundError if we may not
    do that, or if there is no container.
    """
    from obstore.exceptions import BaseError

    part, size = f"{key}.{sha256[:12]}.part", file.stat().st_size
    with _explained():
        try:
            with file.open("rb") as opened, _client(store, part, "PUT") as blob:
                blob.upload_blob(
                    opened,
                    blob_type="PageBlob",
                    length=size,
                    metadata={"sha256": sha256},
                    overwrite=True,
                    max_concurrency=_WORKERS,
                    progress_hook=lambda done, total: progress(done, size),
                )
            failpoints.reach("publish.sent")
            _copy(store, part, key)
        finally:
            with suppress(OSError, BaseError):  # it may not be there, and the next try writes it anew
                store.delete(part)


def _copy(store: Any, source: str, key: str) -> None:
    with _client(store, key, "GET") as there, _client(store, key, "PUT") as blob:
        if there.exists() and there.get_blob_properties().blob_type != "PageBlob":
            store.delete(key)  # a blob of another kind cannot be replaced by a copy
        blob.start_copy_from_url(_signed(store, source, "GET"))
        while (copy := there.get_blob_properties().copy).status == "pending":
            sleep(_PAUSE)
    if copy.status != "success":
        raise OSError(f"Azure could not copy it: {copy.status_description}")


def _client(store: Any, key: str, method: Method) -> Any:
    from azure.storage.blob import BlobClient

    return BlobClient.from_blob_url(_signed(store, key, method))


def _signed(store: Any, key: str, method: Method) -> str:
    import obstore

    return str(obstore.sign(store, method, key, _SIGNED))


@contextmanager
def _explained() -> Iterator[None]:
    """Turn an error of Azure's library into an OSError. UsageError if the library is missing."""
    try:
        from azure.core.exceptions import AzureError
    except ImportError:
        raise UsageError(
            "the Python package azure-storage-blob is missing", hint="pip install 'obuild[publish]'"
        ) from None

    kinds: dict[int, type[OSError]] = {401: PermissionError, 403: PermissionError, 404: FileNotFoundError}
    try:
        yield
    except AzureError as error:
        kind = kinds.get(getattr(error, "status_code", 0), OSError)
        raise kind(str(error.message)) from error
