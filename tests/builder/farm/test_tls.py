"""Addresses of schedulers, and certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from obuild.builder.farm import tls
from obuild.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "new"
    tls.make(folder)
    return folder


@pytest.mark.parametrize(
    ("url", "insecure"),
    [
        ("tls://farm.example:8786", False),
        ("tcp://127.0.0.1:8786", False),
        ("tcp://localhost:1", False),
        ("tcp://[::1]:8786", False),
        ("tcp://10.0.0.1:8786", True),
    ],
)
def test_an_address_that_nobody_can_listen_at_is_taken(folder: Path, url: str, insecure: bool) -> None:
    assert tls.checked(url, folder, insecure=insecure).url == url


@pytest.mark.parametrize(
    ("url", "certificates", "message"),
    [
        ("tcp://farm.example:8786", "", "has no TLS"),
        ("tcp://10.0.0.1:8786", "", "has no TLS"),
        ("tcp://127.0.0.1.evil.example:8786", "", "has no TLS"),
        ("farm.example:8786", "", "is not the address of a scheduler"),
        ("http://farm.example:8786", "", "is not the address of a scheduler"),
        ("tls://farm.example", "", "is not the address of a scheduler"),
        ("tls://farm.example:port", "", "is not the address of a scheduler"),
        ("tls://farm.example:8786", "", "needs certificates"),
        ("tls://farm.example:8786", "nowhere", "there is no ca.pem in nowhere"),
    ],
)
def test_others_are_refused(url: str, certificates: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tls.checked(url, Path(certificates) if certificates else None, insecure=False)


def test_the_certificates_are_good_on_both_sides(folder: Path) -> None:
    for purpose in (ssl.Purpose.SERVER_AUTH, ssl.Purpose.CLIENT_AUTH):
        context = ssl.create_default_context(purpose, cafile=str(folder / tls.AUTHORITY))
        context.load_cert_chain(folder / tls.CERTIFICATE, folder / tls.KEY)
    assert (folder / tls.KEY).stat().st_mode & 0o777 == 0o600


def test_nothing_is_overwritten(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"cannot write .*farm\.key: File exists"):
        tls.make(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
