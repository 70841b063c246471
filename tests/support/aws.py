"""moto's server, which acts as AWS. It checks little: neither signatures nor rights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def moto() -> Iterator[str]:
    """Run the server until the block ends; yields its address."""
    argv = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", "0"]
    settings = {**os.environ, "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}  # hundreds of images of others
    with subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=settings
    ) as child:
        assert child.stderr
        try:
            for line in child.stderr:
                if found := re.search(r"Running on (http://127\.0\.0\.1:[0-9]+)", line):
                    break
            else:
                raise AssertionError("moto's server did not start")
            threading.Thread(target=child.stderr.read, daemon=True).start()
            yield found[1]
        finally:
            child.kill()


def environment(address: str, **more: str) -> dict[str, str]:
    """What points AWS's tools to a server, with credentials that it takes."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "swordfish",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }
