"""`uplosi:FILE` or `uplosi:FILE#VARIANT,…`: the AMIs that a configuration of uplosi describes.

The format is that of github.com/edgelesssys/uplosi: FILE, then FILE.d/*.conf by name, each with a table [base] and
tables [variant.NAME] above it. What is said of AWS is acted on; any other variant is refused, with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from obuild.bases.table import Source, Table, merged, nearest, placed
from obuild.errors import UsageError
from obuild.exports import version_file
from obuild.exports.targets.ami import Ami, Wish
from obuild.exports.targets.target import Image, Published, Settings
from obuild.guests.profile import Card
from obuild.host import toml
from obuild.host.regular import read_text

_PROVIDERS = ("azure", "gcp", "openstack")
_KEYS = ("provider", "imageVersion", "imageVersionFile", "name", "aws", *_PROVIDERS)

#: What says where uplosi uploads the image before AWS imports it: here the disk is written directly.
_NOT_NEEDED = ("bucket", "bucketLocationConstraint", "blobName")
_AWS = ("region", "replicationRegions", "amiName", "amiDescription", "snapshotName", "publish", *_NOT_NEEDED)

_VERSION = re.compile(r"([0-9]+)\.([0-9]+)\.([0-9]+)")
_TEMPLATE = re.compile(r"\{\{(.*?)\}\}")
_FIELD = re.compile(r"\s*\.(\w+)\s*")
_REPLACE = re.compile(r'\s*replaceAll\s+\.(\w+)\s+"([^"\\]*)"\s+"([^"\\]*)"\s*')
_DEFAULT = "{{.Name}}-{{.Version}}"


class Uplosi:
    """The AMIs of a file, or of some of its variants."""

    type = Ami.type
    stem = Ami.stem

    def __init__(self, place: str, settings: Settings) -> None:
        name, _, variants = place.partition("#")
        chosen = [each for each in variants.split(",") if each]
        self._amis = [Ami(wish.name, settings, wish) for wish in wishes(Path(name), chosen, settings)]

    def check(self, cards: Sequence[Card]) -> None:
        for ami in self._amis:
            ami.check(cards)

    def send(self, images: Sequence[Image]) -> list[Published]:
        return [published for ami in self._amis for published in ami.send(images)]


def wishes(path: Path, chosen: Sequence[str], settings: Settings) -> Iterator[Wish]:
    """What a file says, for the chosen variants or all. UsageError with all lines that cannot be acted on."""
    whole = _read(path)
    whole.only("base", "variant")
    base, variants = whole.table("base"), whole.table("variant")
    unknown = [each for each in chosen if each not in variants]
    if unknown:
        raise UsageError(f"{path} has no variant {unknown[0]!r}", hint=nearest(unknown[0], variants))
    configs = [merged(base, variants.table(name), add=False) for name in chosen or variants] or [base]
    problems = [problem for config in configs for problem in _problems(config)]
    if problems:
        raise UsageError("\n".join(dict.fromkeys(problems)), hint="FILE#VARIANT publishes only that variant")
    for config in configs:
        yield _wish(config, settings)


def _read(path: Path) -> Table:
    """A file, with those in its folder FILE.d merged onto it."""
    folder = path.with_name(f"{path.name}.d")
    whole = _parsed(path)
    for other in sorted(folder.glob("*.conf")):
        whole = merged(whole, _parsed(other), add=False)
    return whole


def _parsed(path: Path) -> Table:
    try:
        text = read_text(path, follow=True)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not UTF-8") from error
    return placed(Source(str(path), text, path.parent), toml.loads(text, where=str(path)))


def _problems(config: Table) -> Iterator[str]:
    """The lines of a variant that cannot be acted on."""
    for table, known in ((config, _KEYS), (config.table("aws"), _AWS)):
        for key in table:
            if key not in known:
                yield f"{table.error(key, f'unknown key {key!r}').message} ({nearest(key, known)})"
    if config.get("provider", "aws") != "aws":
        yield config.error("provider", f"provider {config['provider']!r}: obuild publishes to aws only").message


def _wish(config: Table, settings: Settings) -> Wish:
    aws = config.table("aws")
    values = {"Name": config.text("name"), **_version(config, settings)}
    for key in _NOT_NEEDED:
        if key in aws:
            settings.say(aws.error(key, f"{key} is not needed: the disk is written directly").message)
    return Wish(
        _filled(aws, "amiName", values),
        _filled(aws, "amiDescription", values),
        _filled(aws, "snapshotName", values),
        aws.text("region"),
        (*aws.strings("replicationRegions"), *settings.regions),
        aws.flag("publish", default=False),
    )


def _version(config: Table, settings: Settings) -> dict[str, str]:
    """The version and its parts: that of the command line, else of the version file, else of the configuration."""
    file = config.text("imageVersionFile", default="")
    version = settings.version or (version_file.read(Path(file)) if file else "")
    version = version or config.text("imageVersion", default="0.0.0")
    found = _VERSION.fullmatch(version)
    if not found:
        raise config.error("imageVersion", f"the version {version!r} is not like 1.2.3")
    major, minor, patch = found.groups()
    return {"Version": version, "VersionMajor": major, "VersionMinor": minor, "VersionPatch": patch}


def _filled(table: Table, key: str, values: dict[str, str]) -> str:
    """A template of uplosi, which is one of Go, with its values. UsageError for what is not read here."""

    def value(found: re.Match[str]) -> str:
        inner = found[1]
        if (field := _FIELD.fullmatch(inner)) and field[1] in values:
            return values[field[1]]
        if (replace := _REPLACE.fullmatch(inner)) and replace[1] in values:
            return values[replace[1]].replace(replace[2], replace[3])
        hint = 'known: {{.Name}}, {{.Version}}, {{.VersionMajor}} …, {{replaceAll .Version "." "-"}}'
        raise table.error(key, f"{key} has a template that cannot be read: {found[0]}", hint=hint)

    return _TEMPLATE.sub(value, table.text(key, default=_DEFAULT))
