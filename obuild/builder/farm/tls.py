"""Certificates for a farm: one authority, and one certificate that scheduler, workers and clients share.

Dask's TLS is mutual: who has no certificate by the authority gets no connection. Names are not compared, so the
certificate is good for all hosts.
"""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from obuild.errors import UsageError, words

#: The files in a folder with certificates.
AUTHORITY, CERTIFICATE, KEY = "ca.pem", "farm.pem", "farm.key"

#: How long new certificates are valid, in days.
DAYS = 3650


class Address(NamedTuple):
    """The address of a scheduler, and the folder with the certificates to use with it, if it is a TLS address."""

    url: str
    folder: Path | None = None

    @property
    def is_sealed(self) -> bool:
        return self.url.startswith("tls://")


def checked(url: str, folder: Path | None, *, insecure: bool) -> Address:
    """UsageError if this is no address of a scheduler, or one where others could read and change what is sent."""
    found = urlsplit(url)
    try:
        port = found.port
    except ValueError:
        port = None
    if found.scheme not in ("tls", "tcp") or not found.hostname or not port or found.path.strip("/"):
        raise UsageError(
            f"{url!r} is not the address of a scheduler", hint="write it like tls://farm.example:8786"
        )
    if found.scheme == "tcp":
        if not insecure and not _is_here(found.hostname):
            raise UsageError(
                f"{url} has no TLS: whoever is on the network could run programs on all workers",
                hint="`obuild key tls FOLDER` makes certificates; --insecure goes without",
            )
        return Address(url)
    if folder is None:
        hint = "--tls FOLDER names them; `obuild key tls FOLDER` makes some"
        raise UsageError(f"{url} needs certificates", hint=hint)
    for name in (AUTHORITY, CERTIFICATE, KEY):
        if not (folder / name).is_file():
            raise UsageError(f"there is no {name} in {folder}", hint="`obuild key tls FOLDER` makes certificates")
    return Address(url, folder)


def _is_here(host: str) -> bool:
    """Whether an address is on this computer only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make(folder: Path) -> None:
    """Make an authority and a certificate. Its key is thrown away, so nobody can make another.

    UsageError if one of the files is there already, or cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    now = datetime.now(UTC)
    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(name: str, public: ec.EllipticCurvePublicKey, *, authority: bool) -> bytes:
        built = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named("obuild farm"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=DAYS))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False)
            .sign(root, hashes.SHA256())
        )
        return built.public_bytes(serialization.Encoding.PEM)

    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = {
        KEY: private,
        CERTIFICATE: certificate("obuild", key.public_key(), authority=False),
        AUTHORITY: certificate("obuild farm", root.public_key(), authority=True),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            mode = 0o600 if name == KEY else 0o644
            with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
                out.write(content)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename}: {words(error)}") from error
