"""Azurite, Microsoft's emulator of Azure Blob Storage, from npm."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import httpx

ACCOUNT = "devstoreaccount1"

#: The key of this account, which is in Microsoft's manual.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

PROGRAM = Path(__file__).parents[2] / ".venv/azurite/node_modules/.bin/azurite-blob"


@contextmanager
def azurite() -> Iterator[dict[str, str]]:
    """Run it until the block ends, with a container `images`; yields what obstore's environment must have."""
    argv = ["node", str(PROGRAM), "--blobPort", "0", "--inMemoryPersistence"]
    argv += ["--skipApiVersionCheck", "--disableTelemetry"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout
        try:
            for line in child.stdout:
                if found := re.search(r"successfully listens on (http://127\.0\.0\.1:[0-9]+)", line):
                    break
            else:
                raise AssertionError("azurite did not start")
            threading.Thread(target=child.stdout.read, daemon=True).start()
            endpoint = f"{found[1]}/{ACCOUNT}"
            _make_container(endpoint, "images")
            yield {
                "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
                "AZURE_STORAGE_ACCOUNT_KEY": KEY,
                "AZURE_STORAGE_ENDPOINT": endpoint,
                "AZURE_ALLOW_HTTP": "true",
            }
        finally:
            child.kill()


def _make_container(endpoint: str, name: str) -> None:
    """Make a container, by a request that is signed as "Authorize with Shared Key" says."""
    date, version = formatdate(usegmt=True), "2021-12-02"
    resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    text = "\n".join(("PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{version}", resource))
    digest = hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)
    signature = base64.b64encode(digest).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {ACCOUNT}:{signature}"}
    reply = httpx.put(f"{endpoint}/{name}?restype=container", headers=headers)
    assert reply.status_code == 201, reply.text
