"""The targets of `obuild publish`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from obuild.bases.table import nearest
from obuild.errors import UsageError
from obuild.exports.targets.ami import Ami
from obuild.exports.targets.buckets import Azure, Google
from obuild.exports.targets.file import File
from obuild.exports.targets.oci import Oci
from obuild.exports.targets.s3 import S3
from obuild.exports.targets.scp import Scp
from obuild.exports.targets.target import Settings, Target
from obuild.exports.targets.uplosi import Uplosi


class Kind(NamedTuple):
    """A kind of target: what it is, and what opens one.

    With `together`, one target takes all layers. With `beside`, it takes other files, too, so documents and
    signatures can lie beside an image.
    """

    what: str
    open: Callable[[str, Settings], Target]
    together: bool = False
    beside: bool = False


#: By what a target begins with.
KINDS = {
    "oci://": Kind("a container registry", Oci, together=True),
    "s3://": Kind("an object in S3, MinIO, R2", S3, beside=True),
    "gs://": Kind("an object in Google Cloud Storage", Google, beside=True),
    "az://": Kind("a blob in Azure Blob Storage", Azure, beside=True),
    "ami:": Kind("an image of AWS's EC2", Ami),
    "uplosi:": Kind("the AMIs of an uplosi.conf", Uplosi),
    "scp:": Kind("a file on another computer", Scp, beside=True),
    "file:": Kind("a file on this computer", File, beside=True),
}

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//)?")


def kind_of(text: str) -> tuple[str, Kind] | None:
    """What a word of the command line begins with, and its kind; None if it is no target, but a layer.

    UsageError for one that looks like a target, and is none.
    """
    for prefix, kind in KINDS.items():
        if text.startswith(prefix):
            return prefix, kind
    found = _SCHEME.match(text)
    if not found or not (found[1] or any(prefix.startswith(found[0]) for prefix in KINDS)):
        return None
    raise UsageError(f"unknown target {text!r}", hint=nearest(found[0], KINDS))
