"""Objects of Google, on a fake, and blobs of Azure, on Azurite (`make test-long`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.exports.targets import buckets
from obuild.exports.targets.buckets import Azure, Bucket
from obuild.exports.targets.target import Image, Settings
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId
from tests.support.azurite import KEY, azurite
from tests.support.google import google
from tests.support.program import Program


@pytest.fixture(scope="module")
def emulator() -> Iterator[dict[str, str]]:
    with azurite() as environment:
        yield environment


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with google(tmp_path_factory.mktemp("google")) as environment:
        yield environment


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(3_000_000))
    return Image(path, LayerId("5" * 64), Card(), hashlib.sha256(path.read_bytes()).hexdigest())


def settings(**changes: Any) -> Settings:
    return Settings(Path("/nonexistent"), os.environ, print, lambda done, total: None)._replace(**changes)


def content(target: Bucket, key: str) -> bytes:
    return bytes(target._store().get(key).bytes())


@pytest.fixture(params=["gs://", pytest.param("az://", marks=pytest.mark.long)])
def prefix(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What targets begin with whose store runs here: Azurite, and a fake of Google's."""
    if request.param == "az://":
        environment = request.getfixturevalue("emulator")
    else:
        environment = request.getfixturevalue("fake")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return str(request.param)


@pytest.mark.parametrize("part", [1 << 20, 32 << 20])
def test_an_object_arrives(prefix: str, image: Image, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(buckets, "_PART", part)
    told: list[tuple[int, int]] = []
    target = Bucket(prefix, f"images/pg/{part}.raw", settings(progress=lambda *each: told.append(each)))
    target.check([])
    (published,) = target.send([image])
    assert content(target, f"pg/{part}.raw") == image.path.read_bytes()
    assert published.reference == f"{prefix}images/pg/{part}.raw"
    assert (told[0], told[-1]) == ((0, 3_000_000), (3_000_000, 3_000_000))


def test_what_is_there_stays_unless_replaced(
    prefix: str, image: Image, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        Bucket(prefix, "images/old.raw", settings()).send([image])
    assert "is there already" in capsys.readouterr().out
    image.path.write_bytes(b"other")
    other = image._replace(sha256=hashlib.sha256(b"other").hexdigest())
    with pytest.raises(UsageError, match="exists already"):
        Bucket(prefix, "images/old.raw", settings()).send([other])
    replacing = Bucket(prefix, "images/old.raw", settings(replace=True))
    replacing.send([other])
    assert content(replacing, "old.raw") == b"other"


def test_a_bucket_that_is_not_there(prefix: str) -> None:
    with pytest.raises(ObuildError, match="there is no bucket none") as caught:
        Bucket(prefix, "none/a.raw", settings()).check([])
    assert "make it first" in caught.value.hint


@pytest.mark.long
def test_a_wrong_key_is_named_and_not_shown(emulator: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**emulator, "AZURE_STORAGE_ACCOUNT_KEY": "c3dvcmRmaXNo"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ObuildError) as caught:
        Azure("images/a.raw", settings()).check([])
    assert "AZURE_STORAGE_ACCOUNT_KEY" in caught.value.hint
    assert "c3dvcmRmaXNo" not in caught.value.message


@pytest.mark.long
def test_the_program_sends_a_blob(emulator: dict[str, str], layers: Path) -> None:
    """In a new process: obstore's threads do not survive a fork."""
    done = Program(layers)(
        "publish", "pg16", "az://images/{name}.qcow2", "-v", "--json", "--no-sysprep", env=emulator
    )
    assert json.loads(done.stdout)[0]["reference"] == "az://images/pg16.qcow2"
    assert KEY not in done.stdout + done.stderr


@pytest.mark.parametrize("scheme", ["gs://", "az://"])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("images", "does not name an object"),
        ("images/", "does not name an object"),
        ("Images/a.raw", "does not name an object"),
        ("images/a", "no type of image has this suffix"),
        ("images/a.oci", "this type is a folder"),
    ],
)
def test_a_wrong_place_is_refused(scheme: str, place: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Bucket(scheme, place, settings())


def test_without_an_account_nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UsageError, match=r"az://images/a\.raw: ") as caught:
        Azure("images/a.raw", settings()).check([])
    assert "AZURE_STORAGE_ACCOUNT_NAME" in caught.value.hint


def test_an_error_does_not_show_a_signature() -> None:
    error = Exception(
        "error sending request for url (https://a.example/c/b.raw?sv=1&sig=swordfish)\n\nDebug source: …"
    )
    assert buckets._first(error) == "error sending request for url (https://a.example/c/b.raw)"
