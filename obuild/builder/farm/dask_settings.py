"""What we tell Dask: the certificates of a farm, and to be silent."""

from __future__ import annotations

import logging

from distributed import Security

from obuild.builder.farm.tls import AUTHORITY, CERTIFICATE, KEY, Address


def security(address: Address) -> Security | None:
    """The certificates to use with an address; None if it has no TLS."""
    if address.folder is None:
        return None
    files = {"cert": CERTIFICATE, "key": KEY}
    names = {
        f"tls_{role}_{what}": str(address.folder / file)
        for role in ("client", "worker", "scheduler")
        for what, file in files.items()
    }
    return Security(tls_ca_file=str(address.folder / AUTHORITY), require_encryption=True, **names)


def silence() -> None:
    """Have Dask log nothing: what matters of it, we say. Each of its loggers has a level of its own."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
