"""Objects of Google, on a fake, and blobs of Azure, on Azurite (`make test-long`)."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.exports.targets import buckets, page_blob
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


@pytest.fixture
def vhd(image: Image) -> Image:
    """A disk with a hole, whose pieces have different lengths."""
    with image.path.open("r+b") as file:
        file.seek(10 << 20)
        file.write(os.urandom(5 << 20))
        file.truncate((20 << 20) + 512)
    return image._replace(sha256=hashlib.sha256(image.path.read_bytes()).hexdigest())


def blob_types(target: Bucket) -> dict[str, str]:
    """The kind of each blob of the container."""
    store = target._store()
    names = [each["path"] for page in store.list() for each in page]
    found = {}
    for name in names:
        with page_blob._client(store, name, "GET") as blob:
            found[name] = blob.get_blob_properties().blob_type
    return found


@pytest.mark.long
@pytest.mark.parametrize("before", ["nothing", "block", "page"])
def test_a_vhd_becomes_a_page_blob(
    emulator: dict[str, str], vhd: Image, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    for name, value in emulator.items():
        monkeypatch.setenv(name, value)
    told: list[tuple[int, int]] = []
    target = Azure(f"images/{before}.vhd", settings(progress=lambda *each: told.append(each), replace=True))
    if before == "block":
        target._store().put(f"{before}.vhd", b"something else")
    elif before == "page":
        other = vhd.path.with_name("other")
        other.write_bytes(bytes(512))
        target.send([vhd._replace(path=other, sha256=hashlib.sha256(bytes(512)).hexdigest())])
    for _ in range(2):
        (published,) = target.send([vhd])
    assert published.digest == f"sha256:{vhd.sha256}"
    assert content(target, f"{before}.vhd") == vhd.path.read_bytes()
    assert told[-1] == ((20 << 20) + 512,) * 2
    types = blob_types(target)
    assert types[f"{before}.vhd"] == "PageBlob"
    assert not any(name.endswith(".part") for name in types)
    with page_blob._client(target._store(), f"{before}.vhd", "GET") as blob:
        pages = [page for page in blob.list_page_ranges() if not page.cleared]
    assert sum(page.end - page.start + 1 for page in pages) < 15 << 20


@pytest.mark.long
def test_a_vhd_that_cannot_be_copied_leaves_nothing(
    emulator: dict[str, str], vhd: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in emulator.items():
        monkeypatch.setenv(name, value)
    target = Azure("images/broken.vhd", settings())

    def fail(*args: object) -> None:
        raise OSError("the copy failed")

    monkeypatch.setattr(page_blob, "_copy", fail)
    with pytest.raises(ObuildError, match=r"sending to az://images/broken\.vhd: the copy failed"):
        target.send([vhd])
    assert not any(name.startswith("broken") for name in blob_types(target))


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "key", "said", "hint"),
    [
        ("none/a.vhd", KEY, "there is no bucket none", "make it first"),
        ("images/a.vhd", "c3dvcmRmaXNo", "sending to az://images/a.vhd: ", "AZURE_STORAGE_ACCOUNT_KEY"),
    ],
)
def test_a_vhd_that_is_refused(
    emulator: dict[str, str],
    vhd: Image,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    key: str,
    said: str,
    hint: str,
) -> None:
    for name, value in {**emulator, "AZURE_STORAGE_ACCOUNT_KEY": key}.items():
        monkeypatch.setenv(name, value)
    target = Azure(place, settings())
    monkeypatch.setattr(target, "_there", lambda store: None)
    with pytest.raises(ObuildError) as caught:
        target.send([vhd])
    assert said in caught.value.message
    assert "sig=" not in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.long
@pytest.mark.parametrize("type", ["qcow2", "vhd"])
def test_the_program_sends_a_blob(emulator: dict[str, str], layers: Path, type: str) -> None:
    """In a new process: obstore's threads do not survive a fork."""
    done = Program(layers)(
        "publish", "pg16", f"az://images/{{name}}.{type}", "-v", "--json", "--no-sysprep", env=emulator
    )
    assert json.loads(done.stdout)[0]["reference"] == f"az://images/pg16.{type}"
    assert not [secret for secret in (KEY, "sig=") if secret in done.stdout + done.stderr]


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


def test_without_azures_library_a_vhd_is_not_sent(vhd: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.core.exceptions", None)
    with pytest.raises(UsageError, match="azure-storage-blob is missing") as caught:
        page_blob.send(None, "a.vhd", vhd.path, vhd.sha256, lambda done, total: None)
    assert "obuild[publish]" in caught.value.hint


def test_an_error_does_not_show_a_signature() -> None:
    error = Exception(
        "error sending request for url (https://a.example/c/b.raw?sv=1&sig=swordfish)\n\nDebug source: …"
    )
    assert buckets._first(error) == "error sending request for url (https://a.example/c/b.raw)"
