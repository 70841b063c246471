"""A farm's certificates as Dask takes them."""

from __future__ import annotations

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
