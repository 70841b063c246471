"""Images are sent to object stores with S3's interface: to moto's server, and to Swift (`make test-long`)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.exports.targets import s3
from obuild.exports.targets.s3 import S3
from obuild.exports.targets.target import Image, Settings
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId
from obuild.remotes import aws
from tests.support.aws import environment
from tests.support.program import Program
from tests.support.swift import swift

PART = 5 << 20


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with swift(tmp_path_factory.mktemp("swift")) as variables:
        yield variables


@pytest.fixture(params=["moto", pytest.param("swift", marks=pytest.mark.long)])
def variables(request: pytest.FixtureRequest) -> dict[str, str]:
    """An environment whose S3 is moto's, or Swift's."""
    if request.param == "swift":
        return environment("", **request.getfixturevalue("real"))
    return environment(request.getfixturevalue("server"))


@pytest.fixture
def client(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of the server, which has a bucket `images`; parts are as small as S3 allows."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "PART", PART)
    made = aws.client("s3")
    region = variables["AWS_REGION"]
    location = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    made.create_bucket(Bucket="images", **location)
    yield made
    for each in made.list_objects_v2(Bucket="images").get("Contents", []):
        made.delete_object(Bucket="images", Key=each["Key"])
    for each in made.list_multipart_uploads(Bucket="images").get("Uploads", []):
        made.abort_multipart_upload(Bucket="images", Key=each["Key"], UploadId=each["UploadId"])
    made.delete_bucket(Bucket="images")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    path = tmp_path_factory.mktemp("image") / "image.raw"
    path.write_bytes(random.Random(1).randbytes(2 * PART + 1000))
    return Image(path, LayerId("5" * 64), Card(), hashlib.sha256(path.read_bytes()).hexdigest())


def target(place: str = "images/pg/16.raw", **changes: Any) -> S3:
    settings = Settings(Path("/nonexistent"), os.environ, print, lambda done, total: None)
    return S3(place, settings._replace(**changes))


def test_a_file_arrives_in_parts(client: Any, image: Image) -> None:
    told: list[tuple[int, int]] = []
    (published,) = target(progress=lambda *each: told.append(each)).send([image])
    data = image.path.read_bytes()
    assert client.get_object(Bucket="images", Key="pg/16.raw")["Body"].read() == data
    assert published.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert (published.reference, published.size) == ("s3://images/pg/16.raw", len(data))
    assert (told[0], told[-1]) == ((0, len(data)), (len(data), len(data)))
    assert client.head_object(Bucket="images", Key="pg/16.raw")["ETag"].endswith('-3"')


@pytest.mark.parametrize("size", [0, 100])
def test_a_small_file_arrives_in_one_request(client: Any, image: Image, tmp_path: Path, size: int) -> None:
    small = tmp_path / "small.raw"
    small.write_bytes(b"x" * size)
    target().send([image._replace(path=small)])
    assert client.get_object(Bucket="images", Key="pg/16.raw")["Body"].read() == b"x" * size


def test_what_is_there_is_not_sent_again(client: Any, image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    target().send([image])
    before = client.head_object(Bucket="images", Key="pg/16.raw")["LastModified"]
    target().send([image])
    assert "is there already" in capsys.readouterr().out
    assert client.head_object(Bucket="images", Key="pg/16.raw")["LastModified"] == before


def test_other_content_stays_unless_replaced(client: Any, image: Image) -> None:
    client.put_object(Bucket="images", Key="pg/16.raw", Body=b"mine")
    with pytest.raises(UsageError, match="exists already") as caught:
        target().send([image])
    assert "--replace" in caught.value.hint
    assert client.get_object(Bucket="images", Key="pg/16.raw")["Body"].read() == b"mine"
    target(replace=True).send([image])
    assert client.head_object(Bucket="images", Key="pg/16.raw")["ContentLength"] == image.path.stat().st_size


def killed(image: Image, point: str) -> int:
    """Have another process send the image, and be killed at a point."""
    code = (
        "import os, sys; from pathlib import Path; from obuild.host import failpoints; "
        "from obuild.exports.targets import s3; from obuild.exports.targets.target import *; "
        f"s3.PART = {PART}; s3._WORKERS = 1; failpoints.kill_at(sys.argv[2]); "
        "settings = Settings(Path('/'), os.environ, print, lambda done, total: None); "
        "s3.S3('images/pg/16.raw', settings).send([Image(Path(sys.argv[1]), '', Card())])"
    )
    return subprocess.run([sys.executable, "-c", code, str(image.path), point]).returncode


@pytest.mark.parametrize(
    ("point", "kept"), [("publish.piece", 1), pytest.param("publish.sent", 3, marks=pytest.mark.long)]
)
def test_an_upload_goes_on_after_a_kill(
    client: Any, image: Image, monkeypatch: pytest.MonkeyPatch, point: str, kept: int
) -> None:
    assert killed(image, point) == -9
    assert "Contents" not in client.list_objects_v2(Bucket="images")
    (upload,) = client.list_multipart_uploads(Bucket="images")["Uploads"]
    there = client.list_parts(Bucket="images", Key="pg/16.raw", UploadId=upload["UploadId"])["Parts"]
    # With one worker, the second part may be there before the first is noted.
    assert kept <= len(there) <= 3
    told: list[tuple[int, int]] = []
    target(progress=lambda *each: told.append(each)).send([image])
    assert told[0][0] == sum(each["Size"] for each in there)
    data = client.get_object(Bucket="images", Key="pg/16.raw")["Body"].read()
    assert data == image.path.read_bytes()
    assert "Uploads" not in client.list_multipart_uploads(Bucket="images")


def test_an_upload_of_something_else_is_not_used(client: Any, image: Image) -> None:
    upload = client.create_multipart_upload(Bucket="images", Key="pg/16.raw")["UploadId"]
    client.upload_part(Bucket="images", Key="pg/16.raw", UploadId=upload, PartNumber=1, Body=b"other")
    client.create_multipart_upload(Bucket="images", Key="pg/16.raw.other")
    target().send([image])
    data = client.get_object(Bucket="images", Key="pg/16.raw")["Body"].read()
    assert data == image.path.read_bytes()


def test_parts_are_larger_for_a_huge_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MOST", 4)
    monkeypatch.setattr(s3, "PART", 1 << 20)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(9 << 20)
    parts = s3.split(huge)
    assert [part.length for part in parts] == [3 << 20] * 3
    assert [part.start for part in parts] == [0, 3 << 20, 6 << 20]


def test_a_bucket_that_is_not_there(client: Any) -> None:
    with pytest.raises(ObuildError, match="looking for the bucket other: 404: Not Found") as caught:
        target("other/a.raw").check([])
    assert "make the bucket first" in caught.value.hint
    target().check([])


def test_an_error_is_named_with_what_to_do(client: Any) -> None:
    from botocore.stub import Stubber

    hints = {
        "ExpiredToken": "have expired",
        "InvalidAccessKeyId": "check the credentials",
        "AccessDenied": "no right",
        "AuthorizationHeaderMalformed": "in another region",
        "SlowDown": "",
    }
    for code, hint in hints.items():
        with Stubber(client) as stub:
            stub.add_client_error("head_bucket", code, "no")
            with pytest.raises(ObuildError, match=f"sending: {code}: no") as caught, aws.explained("sending"):
                client.head_bucket(Bucket="images")
        assert hint in caught.value.hint


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [("AWS_ACCESS_KEY_ID", "test:nobody", "credentials"), ("AWS_SECRET_ACCESS_KEY", "wrong", "credentials")],
)
def test_a_login_that_is_refused(
    real: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, value: str, hint: str
) -> None:
    for each, right in environment("", **real).items():
        monkeypatch.setenv(each, right)
    monkeypatch.setenv(name, value)
    with pytest.raises(ObuildError, match="looking for the bucket images: 403") as caught:
        target().check([])
    assert hint in caught.value.hint


def test_missing_credentials_and_a_server_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("http://127.0.0.1:1", AWS_MAX_ATTEMPTS="1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *args: 0)
    with pytest.raises(ObuildError, match="Could not connect to the endpoint URL"):
        target().check([])
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ObuildError, match="there are no credentials") as caught:
        target().check([])
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_the_program_sends_to_a_bucket(client: Any, variables: dict[str, str], obuild: Program) -> None:
    done = obuild("publish", "pg16", "s3://images/{name}.qcow2", "-v", "--json", env=variables)
    (record,) = json.loads(done.stdout)
    data = client.get_object(Bucket="images", Key="pg16.qcow2")["Body"].read()
    assert record["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    beside = client.get_object(Bucket="images", Key="pg16.qcow2.provenance.json")["Body"].read()
    assert json.loads(beside)["subject"][0]["digest"] == {"sha256": hashlib.sha256(data).hexdigest()}
    assert "swordfish" not in done.stdout + done.stderr
    assert "the bucket none" in obuild("publish", "pg16", "s3://none/a.raw", env=variables, code=1).stderr


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("images", "does not name an object"),
        ("images/", "does not name an object"),
        ("images/a/", "does not name an object"),
        ("i/a.raw", "'i' cannot be a bucket"),
        ("images/a", "no type of image has this suffix"),
        ("images/a.oci", "this type is a folder"),
    ],
)
def test_a_wrong_place_is_refused(place: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        target(place)
