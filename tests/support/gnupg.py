"""Signatures by a GnuPG key of our own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def one_key(home: Path) -> Iterator[None]:
    """Make `home` a GnuPG home with one key, and keyring.gpg with its public half."""
    home.chmod(0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-generate-key", "me@example.org", "ed25519"], check=True, capture_output=True)
    exported = subprocess.run([*gpg, "--export"], check=True, capture_output=True).stdout
    (home / "keyring.gpg").write_bytes(exported)
    yield
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=True)


def signed(home: Path, text: bytes, how: str) -> bytes:
    """`how` is --detach-sign or --clear-sign."""
    argv = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--passphrase", "", how, "--output", "-"]
    return subprocess.run(argv, input=text, check=True, capture_output=True).stdout
