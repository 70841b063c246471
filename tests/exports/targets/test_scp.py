"""Images are sent to other computers, by OpenSSH's sftp to its sftp-server."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.exports.targets.scp import CONFIG, Scp
from obuild.exports.targets.target import Image, Settings
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId
from tests.support.program import Program
from tests.support.sftp_server import Sftp, sftp_server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def there(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sftp]:
    with sftp_server(home, tmp_path_factory.mktemp("ssh")) as running:
        yield running


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(300_000))
    return Image(path, LayerId("5" * 64), Card(), hashlib.sha256(path.read_bytes()).hexdigest())


def target(there: Sftp, place: str, **changes: Any) -> Scp:
    settings = Settings(Path("/nonexistent"), {CONFIG: str(there.config)}, print, print)
    return Scp(place, settings._replace(**changes))


def test_a_file_arrives(there: Sftp, home: Path, image: Image) -> None:
    (home / "my images").mkdir()
    made = target(there, "there:my images/pg 16.raw")
    made.check([])
    (published,) = made.send([image])
    assert (home / "my images/pg 16.raw").read_bytes() == image.path.read_bytes()
    assert published.reference == "there:my images/pg 16.raw"
    assert published.digest == f"sha256:{image.sha256}"
    assert os.listdir(home / "my images") == ["pg 16.raw"]


def test_an_upload_goes_on(there: Sftp, home: Path, image: Image) -> None:
    """What is there under the hidden name is not sent again."""
    part = home / f".on.raw.{image.sha256[:16]}.part"
    for kept in (100_000, 300_000):
        part.write_bytes(b"x" * kept)
        target(there, "there:on.raw", replace=True).send([image])
        assert (home / "on.raw").read_bytes() == b"x" * kept + image.path.read_bytes()[kept:]
        assert not part.exists()


def test_what_exists_stays_unless_replaced(there: Sftp, home: Path, image: Image) -> None:
    (home / "old.raw").write_text("mine")
    with pytest.raises(UsageError, match=r"scp:there:old\.raw exists already"):
        target(there, "there:old.raw").check([])
    made = target(there, f"there:{home}/old.raw", replace=True)
    made.check([])
    made.send([image])
    assert (home / "old.raw").read_bytes() == image.path.read_bytes()


def test_what_cannot_be_reached_is_named(there: Sftp, image: Image, tmp_path: Path) -> None:
    with pytest.raises(ObuildError, match="No such file or directory"):
        target(there, "there:nowhere/a.raw").check([])
    (tmp_path / "config").write_text("Host gone\nHostName 127.0.0.1\nPort 1\n")
    with pytest.raises(ObuildError, match=r"scp:gone:a\.raw: ") as caught:
        target(there, "gone:a.raw", environment={CONFIG: str(tmp_path / "config")}).check([])
    assert "without a password" in caught.value.hint


@pytest.mark.parametrize(
    "place",
    ["there", "there:", "there:a/", "-oProxyCommand=x:a.raw", "there:a*.raw", 'there:"a.raw', "there:a\nb.raw"],
)
def test_a_place_that_sftp_would_misread_is_refused(there: Sftp, place: str) -> None:
    with pytest.raises(UsageError, match="does not name a file on another computer"):
        target(there, place)


def test_the_program_sends_a_file(there: Sftp, home: Path, obuild: Program) -> None:
    done = obuild("publish", "pg16", "scp:there:{name}.qcow2", env={CONFIG: str(there.config)})
    assert done.stdout.strip() == "there:pg16.qcow2"
    assert (home / "pg16.qcow2").read_bytes()[:4] == b"QFI\xfb"
    assert "subject" in json.loads((home / "pg16.qcow2.provenance.json").read_bytes())
