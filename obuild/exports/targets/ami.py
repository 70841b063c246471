"""`ami:NAME`: an image of AWS's EC2, from a snapshot that is written directly; copied to other regions.

What a run has made is removed if it does not get to its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, NamedTuple

from obuild.errors import ObuildError, UsageError
from obuild.exports.targets import ebs
from obuild.exports.targets.target import Image, Published, Settings
from obuild.guests.profile import Card
from obuild.host import failpoints
from obuild.remotes import aws

#: What EC2 calls an architecture.
ARCHES = {"x86_64": "x86_64", "aarch64": "arm64"}

_NAME = re.compile(r"[A-Za-z0-9()\[\] ./'@_-]{3,128}")

#: What EC2 calls the root disk of Linux.
_ROOT = "/dev/xvda"

#: How often a request to EBS is sent: it limits the number of blocks for each second.
_ATTEMPTS = 12


class Wish(NamedTuple):
    """An image: in which region it is made, "" for that of AWS's own settings, and where it is copied.

    With `public`, every account may use it.
    """

    name: str
    description: str
    snapshot: str
    region: str = ""
    regions: Sequence[str] = ()
    public: bool = False


class Ami:
    """An image of EC2 by its name, in one or several regions."""

    type = "raw"
    stem = "image"

    def __init__(self, place: str, settings: Settings, wish: Wish | None = None) -> None:
        self._settings = settings
        self._wish = wish or Wish(place, place, place, regions=settings.regions)
        if not _NAME.fullmatch(self._wish.name):
            hint = "3 to 128 letters, digits, spaces and ( ) [ ] . / - ' @ _"
            raise UsageError(f"{self._wish.name!r} cannot be the name of an AMI", hint=hint)
        if settings.type not in ("", self.type):
            raise UsageError(f"ami: takes --type {self.type} only")

    def check(self, cards: Sequence[Card]) -> None:
        for card in cards:
            boot_of(card)
        for client in self._clients().values():
            there = self._there(client)
            if there and not self._settings.replace:
                where = client.meta.region_name
                hint = "--replace deregisters it, and removes its snapshot, when the new one is ready"
                raise UsageError(f"an AMI {self._wish.name} exists in {where}: {there[0]['ImageId']}", hint=hint)

    def send(self, images: Sequence[Image]) -> list[Published]:
        (image,) = images
        boot = boot_of(image.card)
        clients = self._clients()
        (region, client), *others = clients.items()
        size = image.path.stat().st_size
        made: dict[str, str] = {}
        with ExitStack() as undo, aws.explained(f"making the AMI {self._wish.name}"):
            direct = aws.client("ebs", region, attempts=_ATTEMPTS)
            tags = {"obuild:layer": image.layer}
            snapshot = ebs.start(direct, self._wish.snapshot, size, tags)
            undo.callback(self._undo, "delete_snapshot", client, SnapshotId=snapshot)
            ebs.write(direct, snapshot, image.path, self._settings.progress)
            _wait(client, "snapshot_completed", SnapshotIds=[snapshot])
            failpoints.reach("publish.sent")
            old = self._deregister(client)
            made[region] = self._register(client, snapshot, boot, tags)
            undo.callback(self._undo, "deregister_image", client, ImageId=made[region])
            _wait(client, "image_available", ImageIds=[made[region]])
            for other, there in others:
                self._settings.say(f"copying it to {other}")
                old += self._deregister(there)
                made[other] = self._copy(there, region, made[region])
                undo.callback(self._undo_copy, there, made[other])
            for other, there in others:
                _wait(there, "image_available", ImageIds=[made[other]])
            for other, there in clients.items():
                self._allow(there, made[other])
            undo.pop_all()
            for remove in old:
                remove()
        return [
            Published(f"ami:{self._wish.name}", id, f"sha256:{image.sha256}", size, where)
            for where, id in made.items()
        ]

    def _clients(self) -> dict[str, Any]:
        """A client for each region, first that where the image is made."""
        first = aws.client("ec2", self._wish.region)
        others = [each for each in dict.fromkeys(self._wish.regions) if each != first.meta.region_name]
        return {first.meta.region_name: first, **{each: aws.client("ec2", each) for each in others}}

    def _there(self, client: Any) -> list[dict[str, Any]]:
        """Our images of this name in a region."""
        with aws.explained(f"looking for AMIs in {client.meta.region_name}"):
            found = client.describe_images(
                Owners=["self"], Filters=[{"Name": "name", "Values": [self._wish.name]}]
            )
        images: list[dict[str, Any]] = found["Images"]
        return images

    def _deregister(self, client: Any) -> list[Callable[[], object]]:
        """Free the name; returns what removes the snapshots of the images that had it."""
        found: list[Callable[[], object]] = []
        for image in self._there(client):
            if not self._settings.replace:
                where = client.meta.region_name
                raise ObuildError(f"an AMI {self._wish.name} has appeared in {where}: {image['ImageId']}")
            client.deregister_image(ImageId=image["ImageId"])
            found += [partial(client.delete_snapshot, SnapshotId=id) for id in snapshots_of(image)]
        return found

    def _register(self, client: Any, snapshot: str, boot: dict[str, str], tags: Mapping[str, str]) -> str:
        disk = {"SnapshotId": snapshot, "VolumeType": "gp3", "DeleteOnTermination": True}
        named = [{"Key": key, "Value": value} for key, value in {"Name": self._wish.name, **tags}.items()]
        reply = client.register_image(
            Name=self._wish.name,
            Description=self._wish.description,
            RootDeviceName=_ROOT,
            BlockDeviceMappings=[{"DeviceName": _ROOT, "Ebs": disk}],
            VirtualizationType="hvm",
            EnaSupport=True,
            ImdsSupport="v2.0",
            TagSpecifications=[{"ResourceType": "image", "Tags": named}],
            **boot,
        )
        return str(reply["ImageId"])

    def _copy(self, client: Any, region: str, id: str) -> str:
        reply = client.copy_image(
            Name=self._wish.name,
            Description=self._wish.description,
            SourceImageId=id,
            SourceRegion=region,
            CopyImageTags=True,
        )
        return str(reply["ImageId"])

    def _allow(self, client: Any, id: str) -> None:
        if self._wish.public:
            client.modify_image_attribute(ImageId=id, LaunchPermission={"Add": [{"Group": "all"}]})

    def _undo(self, method: str, client: Any, **what: str) -> None:
        """Remove what a failed run has made; the failure stays the error that is reported."""
        try:
            getattr(client, method)(**what)
        except Exception as error:  # of many kinds, and the failure itself matters more
            (id,) = what.values()
            self._settings.say(f"{id} of this run is left in {client.meta.region_name}: {error}")

    def _undo_copy(self, client: Any, id: str) -> None:
        found: dict[str, Any] = {}
        with suppress(Exception):  # it may not be there yet
            found = client.describe_images(ImageIds=[id])["Images"][0]
        self._undo("deregister_image", client, ImageId=id)
        for snapshot in snapshots_of(found):
            self._undo("delete_snapshot", client, SnapshotId=snapshot)


def _wait(client: Any, state: str, **what: Sequence[str]) -> None:
    """Wait until something has a state, for two hours at most: a copy to another region takes long."""
    client.get_waiter(state).wait(**what, WaiterConfig={"Delay": 15, "MaxAttempts": 480})


def boot_of(card: Card) -> dict[str, str]:
    """How EC2 boots a disk. UsageError if it cannot."""
    arch = ARCHES.get(card.arch)
    if arch is None:
        raise UsageError(f"EC2 has no machines for {card.arch}", hint=f"there are: {', '.join(ARCHES)}")
    if card.firmware == "kernel":
        raise UsageError("EC2 cannot boot the layer: its base is booted by a kernel outside of the disk")
    if card.firmware == "bios" and arch == "x86_64":
        return {"Architecture": arch, "BootMode": "legacy-bios"}
    tpm = {"TpmSupport": "v2.0"} if arch == "x86_64" else {}
    return {"Architecture": arch, "BootMode": "uefi", **tpm}


def snapshots_of(image: dict[str, Any]) -> Iterator[str]:
    """The ids of an image's snapshots."""
    for disk in image.get("BlockDeviceMappings", []):
        if id := disk.get("Ebs", {}).get("SnapshotId"):
            yield str(id)
