"""Sign as `cosign sign-blob --key` does: ECDSA on P-256 over SHA-256, the signature as base64 in its own file.

A key is a PEM file of OpenSSL, or one of `cosign generate-key-pair`, which is encrypted: JSON with the parameters
of scrypt and NaCl's secretbox (https://github.com/secure-systems-lab/go-securesystemslib, encrypted). Libraries
are imported late: few exports sign.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.errors import UsageError, words

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SUFFIX = ".sig"

_COSIGN = re.compile(rb"-----BEGIN ENCRYPTED (?:COSIGN|SIGSTORE) PRIVATE KEY-----(.*?)-----END", re.DOTALL)
_HINT = "`cosign generate-key-pair` or `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` makes one"

#: More memory than cosign's keys need for scrypt, and the most that a wrong file may make us use.
_MOST_MEMORY = 256 << 20


class Signer:
    """A private key. The same key makes the same signature of the same bytes, where OpenSSL is 3.2 or newer."""

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key

    @property
    def hint(self) -> str:
        """Which key it is, as Sigstore says it: the sha256 of the public key in DER, as base64."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(hashlib.sha256(public).digest()).decode()

    def sign(self, digest: bytes) -> bytes:
        """The signature, as base64, of what has this sha256."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, utils

        hashed = utils.Prehashed(hashes.SHA256())
        try:
            made = self._key.sign(digest, ec.ECDSA(hashed, deterministic_signing=True))
        except (TypeError, UnsupportedAlgorithm):  # an older library
            made = self._key.sign(digest, ec.ECDSA(hashed))
        return base64.b64encode(made)


def load(path: Path, password: Callable[[], str]) -> Signer:
    """Read a private key; `password` is called if it is encrypted. UsageError if it cannot be used."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {words(error)}", hint=_HINT) from error
    try:
        if found := _COSIGN.search(data):
            key = serialization.load_der_private_key(_opened(found[1], password()), None)
        elif b"BEGIN ENCRYPTED PRIVATE KEY" in data:
            key = serialization.load_pem_private_key(data, password().encode())
        else:
            key = serialization.load_pem_private_key(data, None)
    except UsageError:  # there is no password
        raise
    except Exception as error:  # the libraries raise many kinds for a wrong file or password
        raise UsageError(f"cannot use the key {path}: {words(error) or 'wrong password?'}", hint=_HINT) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise UsageError(f"the key {path} is not an ECDSA key on P-256", hint=_HINT)
    return Signer(key)


def _opened(text: bytes, password: str) -> bytes:
    """The content of an encrypted key of cosign."""
    from nacl.secret import SecretBox

    box = json.loads(base64.b64decode(text))
    kdf, cipher = box["kdf"], box["cipher"]
    if (kdf["name"], cipher["name"]) != ("scrypt", "nacl/secretbox"):
        raise ValueError(f"it is encrypted by {kdf['name']} and {cipher['name']}")
    salt, cost = base64.b64decode(kdf["salt"]), kdf["params"]
    derived = hashlib.scrypt(
        password.encode(),
        salt=salt,
        n=cost["N"],
        r=cost["r"],
        p=cost["p"],
        maxmem=_MOST_MEMORY,
        dklen=SecretBox.KEY_SIZE,
    )
    return SecretBox(derived).decrypt(base64.b64decode(box["ciphertext"]), base64.b64decode(cipher["nonce"]))
