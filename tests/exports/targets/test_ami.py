"""Images of AWS's EC2, on moto's server. It checks neither digests nor rights, so requests are compared, too."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.exports.targets import ebs
from obuild.exports.targets.ami import Ami, Wish, boot_of, snapshots_of
from obuild.exports.targets.target import Image, Settings
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId
from obuild.remotes import aws
from tests.support.aws import environment
from tests.support.program import Program

LAYER = LayerId("5" * 64)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk of 8 MiB less a sector, with data in the blocks 0, 3 and the last, and zeros in block 5."""
    path = tmp_path_factory.mktemp("disk") / "disk.raw"
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(3 * ebs.BLOCK + 100)
        file.write(b"middle")
        file.seek(5 * ebs.BLOCK)
        file.write(bytes(ebs.BLOCK))
        file.seek((8 << 20) - 512 - 3)
        file.write(b"end")
    return path


class Cloud:
    """AWS as the targets see it: `asked` has the requests, `faults` what raises which error."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.faults: dict[str, str] = {}
        self.make: Callable[..., Any] = aws.client

    def client(self, service: str, region: str = "", **options: Any) -> Any:
        made = self.make(service, region, **options)
        made.meta.events.register("provide-client-params.*.*", self._note)
        made.meta.events.register("before-call.*.*", self._fail)
        return made

    def _note(self, params: dict[str, Any], model: Any, **rest: Any) -> None:
        self.asked.append((model.name, params))

    def _fail(self, model: Any, **rest: Any) -> None:
        from botocore.exceptions import ClientError

        if code := self.faults.pop(model.name, ""):
            raise KeyboardInterrupt if code == "ctrl-c" else ClientError({"Error": {"Code": code}}, model.name)

    def params(self, operation: str) -> dict[str, Any]:
        (found,) = [params for name, params in self.asked if name == operation]
        return found

    def names(self) -> list[str]:
        return [name for name, _ in self.asked if not name.startswith(("Describe", "PutSnapshotBlock"))]


@pytest.fixture
def cloud(server: str, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    made = Cloud()
    monkeypatch.setattr(aws, "client", made.client)
    return made


def target(name: str, wish: Wish | None = None, **changes: Any) -> Ami:
    settings = Settings(Path("/nonexistent"), os.environ, print, lambda done, total: None)
    return Ami(name, settings._replace(**changes), wish)


def described(cloud: Cloud, name: str, region: str = "eu-central-1") -> list[dict[str, Any]]:
    client = cloud.make("ec2", region)
    images: list[dict[str, Any]] = client.describe_images(Filters=[{"Name": "name", "Values": [name]}])["Images"]
    return images


def snapshots(cloud: Cloud, region: str = "eu-central-1") -> set[str]:
    """All snapshots but those that moto makes for each image, whatever that is registered with."""
    found = cloud.make("ec2", region).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    return {each["SnapshotId"] for each in found if not each["Description"].startswith("Auto-created")}


def test_only_blocks_with_data_are_sent(disk: Path) -> None:
    last = 15
    found = list(ebs.blocks(disk))
    assert [each.number for each in found] == [0, 3, last]
    assert {len(each.data) for each in found} == {ebs.BLOCK}
    assert found[0].data.startswith(b"begin\0")
    assert found[2].data.endswith(b"end" + bytes(512))


def test_an_image_is_made_from_a_snapshot(cloud: Cloud, disk: Path) -> None:
    before = snapshots(cloud)
    (published,) = target("made-1").send([Image(disk, LAYER, Card())])
    (image,) = described(cloud, "made-1")
    assert (published.reference, published.region) == (image["ImageId"], "eu-central-1")
    (snapshot,) = snapshots(cloud) - before
    assert cloud.params("RegisterImage")["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"] == snapshot
    direct = cloud.make("ebs", "eu-central-1")
    listed = direct.list_snapshot_blocks(SnapshotId=snapshot)["Blocks"]
    for block in ebs.blocks(disk):
        (token,) = [each["BlockToken"] for each in listed if each["BlockIndex"] == block.number]
        reply = direct.get_snapshot_block(SnapshotId=snapshot, BlockIndex=block.number, BlockToken=token)
        assert reply["BlockData"].read() == block.data
    assert len(listed) == 3


def test_what_the_requests_say(cloud: Cloud, disk: Path) -> None:
    target("asked-1").send([Image(disk, LAYER, Card())])
    begun, ended, registered = map(cloud.params, ("StartSnapshot", "CompleteSnapshot", "RegisterImage"))
    assert (begun["VolumeSize"], begun["Timeout"]) == (1, 60)
    digests = [hashlib.sha256(block.data).digest() for block in ebs.blocks(disk)]
    sent = {each["BlockIndex"]: each for name, each in cloud.asked if name == "PutSnapshotBlock"}
    for index, digest in zip(sorted(sent), digests, strict=True):
        assert sent[index]["Checksum"] == base64.b64encode(digest).decode()
        assert (sent[index]["DataLength"], sent[index]["ChecksumAlgorithm"]) == (ebs.BLOCK, "SHA256")
    assert ended["Checksum"] == base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()
    assert (ended["ChangedBlocksCount"], ended["ChecksumAggregationMethod"]) == (3, "LINEAR")
    assert registered["Name"] == "asked-1"
    assert (registered["Architecture"], registered["BootMode"]) == ("x86_64", "legacy-bios")
    assert (registered["EnaSupport"], registered["ImdsSupport"]) == (True, "v2.0")
    assert registered["BlockDeviceMappings"][0]["DeviceName"] == registered["RootDeviceName"]
    assert registered["BlockDeviceMappings"][0]["Ebs"]["VolumeType"] == "gp3"
    assert {"Key": "obuild:layer", "Value": LAYER} in registered["TagSpecifications"][0]["Tags"]


@pytest.mark.parametrize(("size", "whole"), [(1, 1), (1 << 30, 1), ((1 << 30) + 1, 2)])
def test_volumes_are_whole_gib(size: int, whole: int) -> None:
    assert ebs.gib_of(size) == whole


@pytest.mark.parametrize(
    ("card", "boot"),
    [
        (Card(), {"Architecture": "x86_64", "BootMode": "legacy-bios"}),
        (Card(firmware="uefi"), {"Architecture": "x86_64", "BootMode": "uefi", "TpmSupport": "v2.0"}),
        (Card(arch="aarch64", firmware="uefi"), {"Architecture": "arm64", "BootMode": "uefi"}),
    ],
)
def test_how_a_layer_boots(card: Card, boot: dict[str, str]) -> None:
    assert boot_of(card) == boot


@pytest.mark.parametrize(
    ("card", "said"),
    [(Card(arch="s390x"), "no machines for s390x"), (Card(firmware="kernel"), "a kernel outside of the disk")],
)
def test_a_layer_that_ec2_cannot_boot(card: Card, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        target("never").check([card])


def test_an_image_is_copied_to_other_regions(cloud: Cloud, disk: Path) -> None:
    made = target("copied-1", regions=["us-east-1", "eu-central-1"])
    made.check([Card()])
    published = made.send([Image(disk, LAYER, Card())])
    assert [each.region for each in published] == ["eu-central-1", "us-east-1"]
    for each in published:
        (image,) = described(cloud, "copied-1", each.region)
        assert image["ImageId"] == each.reference
    copy = cloud.params("CopyImage")
    assert (copy["SourceRegion"], copy["SourceImageId"]) == ("eu-central-1", published[0].reference)
    assert copy["CopyImageTags"] is True


def test_a_name_that_exists_stays_unless_replaced(cloud: Cloud, disk: Path) -> None:
    image = Image(disk, LAYER, Card())
    (first,) = target("again-1").send([image])
    (old,) = snapshots_of(described(cloud, "again-1")[0])
    before = snapshots(cloud)
    with pytest.raises(UsageError, match=f"an AMI again-1 exists in eu-central-1: {first.reference}"):
        target("again-1").check([Card()])
    with pytest.raises(ObuildError, match="has appeared in"):
        target("again-1").send([image])
    assert snapshots(cloud) == before
    made = target("again-1", replace=True)
    made.check([Card()])
    (second,) = made.send([image])
    (there,) = described(cloud, "again-1")
    assert there["ImageId"] == second.reference != first.reference
    deleted = [params["SnapshotId"] for name, params in cloud.asked if name == "DeleteSnapshot"]
    assert deleted[-1] == old
    assert cloud.names()[-3:] == ["DeregisterImage", "RegisterImage", "DeleteSnapshot"]


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        pytest.param("PutSnapshotBlock", "RequestThrottled", marks=pytest.mark.long),
        ("CompleteSnapshot", "ctrl-c"),
        pytest.param("RegisterImage", "UnauthorizedOperation", marks=pytest.mark.long),
        pytest.param("CopyImage", "ctrl-c", marks=pytest.mark.long),
        ("ModifyImageAttribute", "UnauthorizedOperation"),
    ],
)
def test_what_a_failed_run_has_made_is_removed(cloud: Cloud, disk: Path, operation: str, code: str) -> None:
    regions = ("eu-central-1", "us-east-1")
    before = [snapshots(cloud, region) for region in regions]
    cloud.faults[operation] = code
    wish = Wish("failed-1", "", "failed-1", regions=["us-east-1"], public=True)
    with pytest.raises(KeyboardInterrupt if code == "ctrl-c" else ObuildError):
        target("failed-1", wish).send([Image(disk, LAYER, Card())])
    assert [described(cloud, "failed-1", region) for region in regions] == [[], []]
    assert [snapshots(cloud, region) for region in regions] == before


def test_what_cannot_be_removed_is_named(cloud: Cloud, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cloud.faults |= {"CompleteSnapshot": "UnauthorizedOperation", "DeleteSnapshot": "UnauthorizedOperation"}
    with pytest.raises(ObuildError, match="making the AMI left-1: UnauthorizedOperation"):
        target("left-1").send([Image(disk, LAYER, Card())])
    assert "of this run is left in eu-central-1" in capsys.readouterr().out


def test_a_wrong_name_and_type_are_refused() -> None:
    with pytest.raises(UsageError, match="'a' cannot be the name of an AMI"):
        target("a")
    with pytest.raises(UsageError, match="ami: takes --type raw only"):
        target("abc", type="qcow2")


def test_without_a_region_nothing_begins(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match="specify a region") as caught:
        target("nowhere").check([Card()])
    assert "AWS_REGION" in caught.value.hint


def test_the_program_makes_images(cloud: Cloud, server: str, obuild: Program, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("1.0.9")
    words = ("publish", "pg16", "ami:{name}-{version}", "--version-file", version, "--regions", "us-east-1")
    records = json.loads(obuild(*words, "--json", env=environment(server)).stdout)
    assert [each["region"] for each in records] == ["eu-central-1", "us-east-1"]
    assert {each["target"] for each in records} == {"ami:pg16-1.0.9"}
    assert described(cloud, "pg16-1.0.9")[0]["ImageId"] == records[0]["reference"]
    assert version.read_text() == "1.0.10\n"
