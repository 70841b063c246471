"""What an uplosi.conf says of AWS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.exports.targets import uplosi
from obuild.exports.targets.ami import Wish
from obuild.exports.targets.target import Settings
from obuild.remotes import aws
from tests.support.aws import environment
from tests.support.program import Program

BASE = """
[base]
imageVersion = "1.2.3"
name = "my-image"
provider = "aws"

[base.aws]
region = "eu-central-1"
replicationRegions = ["us-east-2", "ap-south-1"]
bucket = "my-bucket"
publish = true

[base.azure]
location = "northeurope"
"""

VARIANTS = (
    BASE
    + """
[variant.foo]
imageVersionFile = "{folder}/version"

[variant.foo.aws]
replicationRegions = []
publish = false
amiName = '{{{{.Name}}}}/{{{{ .VersionMajor }}}}.{{{{.VersionMinor}}}}-{{{{replaceAll .Version "." "-"}}}}'

[variant.bar]
name = "other"
"""
)


@pytest.fixture
def said() -> list[str]:
    return []


def wishes(path: Path, said: list[str], *chosen: str, **changes: str) -> list[Wish]:
    settings = Settings(Path("/nonexistent"), {}, said.append, print)._replace(**changes)  # type: ignore[arg-type]
    return list(uplosi.wishes(path, chosen, settings))


def conf(folder: Path, text: str) -> Path:
    path = folder / "uplosi.conf"
    path.write_text(text)
    return path


def test_a_file_without_variants_is_one_image(tmp_path: Path, said: list[str]) -> None:
    name = "my-image-1.2.3"
    path = conf(tmp_path, BASE)
    assert wishes(path, said) == [Wish(name, name, name, "eu-central-1", ("us-east-2", "ap-south-1"), True)]
    assert said == [f"{path}:10:1: bucket is not needed: the disk is written directly"]


def test_variants_are_merged_onto_the_base(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "version").write_text("4.5.6\n")
    foo, bar = wishes(conf(tmp_path, VARIANTS.format(folder=tmp_path)), said)
    assert foo == Wish("my-image/4.5-4-5-6", "my-image-4.5.6", "my-image-4.5.6", "eu-central-1", (), False)
    assert (bar.name, bar.public, len(bar.regions)) == ("other-1.2.3", True, 2)


def test_variants_are_chosen_and_the_command_line_has_the_last_word(tmp_path: Path, said: list[str]) -> None:
    path = conf(tmp_path, VARIANTS.format(folder=tmp_path))
    (bar,) = wishes(path, said, "bar", version="7.8.9", regions=("sa-east-1",))  # type: ignore[arg-type]
    assert (bar.name, bar.regions[-1]) == ("other-7.8.9", "sa-east-1")
    with pytest.raises(UsageError, match="has no variant 'baz'") as caught:
        wishes(path, said, "baz")
    assert caught.value.hint == "did you mean 'bar'?"


def test_files_in_the_folder_beside_come_after(tmp_path: Path, said: list[str]) -> None:
    path = conf(tmp_path, BASE)
    folder = tmp_path / "uplosi.conf.d"
    folder.mkdir()
    (folder / "2.conf").write_text('[base]\nname = "last"\n')
    (folder / "1.conf").write_text('[base]\nname = "first"\n[base.aws]\nregion = "us-east-1"\n')
    (folder / "no.txt").write_text("not TOML")
    (wish,) = wishes(path, said)
    assert (wish.name, wish.region) == ("last-1.2.3", "us-east-1")


def test_what_cannot_be_acted_on_is_refused_line_by_line(tmp_path: Path, said: list[str]) -> None:
    text = (
        BASE + '\n[variant.a]\nprovider = "azure"\n[variant.b.aws]\namiNam = "x"\n[variant.c]\nprovider = "gcp"\n'
    )
    path = conf(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        wishes(path, said)
    assert caught.value.message.splitlines() == [
        f"{path}:17:1: provider 'azure': obuild publishes to aws only",
        f"{path}:19:1: unknown key 'amiNam' (did you mean 'amiName'?)",
        f"{path}:21:1: provider 'gcp': obuild publishes to aws only",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[base]\nname = 'a'\n", "region is missing"),
        ("[base.aws]\nregion = 'x'\n", "name is missing"),
        (
            "[base]\nname = 'a'\nimageVersion = '1.2'\n[base.aws]\nregion = 'x'\n",
            ":3:1: the version '1.2' is not like",
        ),
        ("[bas]\n", "unknown key 'bas'"),
        (
            "[base]\nname = 'a'\n[base.aws]\nregion = 'x'\namiName = '{{.Nam}}'\n",
            r":5:1: .* cannot be read: {{.Nam}}",
        ),
        ("[base]\nname = 'a'\n[base.aws]\nregion = 'x'\npublish = 'yes'\n", ":5:1: publish must be true or false"),
        ("base", "not a TOML file"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, said: list[str], text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        wishes(conf(tmp_path, text), said)


@pytest.mark.long
def test_the_program_makes_the_images_of_a_file(
    server: str, obuild: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version").write_text("4.5.6\n")
    path = conf(tmp_path, VARIANTS.format(folder=tmp_path))
    version = tmp_path / "version"
    words = ("publish", "pg16", f"uplosi:{path}#foo", "--version-file", version)
    (record,) = json.loads(obuild(*words, "--json", env=environment(server)).stdout)
    assert record["target"] == "ami:my-image/4.5-4-5-6"
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    (image,) = aws.client("ec2").describe_images(ImageIds=[record["reference"]])["Images"]
    assert image["Name"] == "my-image/4.5-4-5-6"
    assert version.read_text() == "4.5.7\n"
    assert "cannot read" in obuild("publish", "pg16", "uplosi:/nonexistent", code=2).stderr
