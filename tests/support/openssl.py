"""Keys that OpenSSL makes, and signatures that it checks."""

from __future__ import annotations

import base64
import subprocess
import tempfile
from pathlib import Path


def pem(path: Path, *options: str) -> Path:
    """A new private key of OpenSSL, and its public key at the same path and .pub."""
    kind = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    subprocess.run(["openssl", "genpkey", *kind, *options, "-out", path], check=True, capture_output=True)
    _public(path, "pass:sesame")
    return path


def _public(path: Path, password: str) -> None:
    out = path.with_suffix(".pub")
    argv = ["openssl", "pkey", "-in", str(path), "-passin", password, "-pubout", "-out", str(out)]
    subprocess.run(argv, check=True, capture_output=True)


def check(data: bytes, signature: bytes, key: Path) -> None:
    """Check the signature, in base64, of some data by the public key beside `key`."""
    with tempfile.TemporaryDirectory() as folder:
        signed, raw = Path(folder) / "data", Path(folder) / "signature"
        signed.write_bytes(data)
        raw.write_bytes(base64.b64decode(signature, validate=True))
        argv = ["openssl", "dgst", "-sha256", "-verify", str(key.with_suffix(".pub")), "-signature", str(raw)]
        subprocess.run([*argv, str(signed)], check=True, capture_output=True)
