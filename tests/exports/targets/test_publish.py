"""Layers are published to files and registries."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.exports.all import FORMATS
from obuild.exports.targets.all import KINDS, kind_of
from obuild.exports.targets.target import Settings, file_type_of, filled, stem_of, type_of
from obuild.store import fsck
from obuild.store.layers import Store
from tests.support.openssl import check, pem
from tests.support.program import Program
from tests.support.registry import Identity, Running, login, password_file, registry

#: The points that publishing to a registry passes.
POINTS = (
    *(pytest.param(point, marks=pytest.mark.long) for point in ("export.made", "publish.exported")),
    "publish.sent",
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry with a password and TLS."""
    folder = tmp_path_factory.mktemp("registry")
    with registry(folder, auth=password_file(folder), tls=Identity(folder)) as running:
        yield running


@pytest.fixture
def known(running: Running, tmp_path: Path) -> dict[str, str]:
    """An environment that trusts this registry and has its password."""
    return {**login(tmp_path / "docker", running.host), "SSL_CERT_FILE": str(running.folder / "ca.crt")}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def skopeo(running: Running, known: dict[str, str], *words: str) -> bytes:
    auth = f"--authfile={known['DOCKER_CONFIG']}/config.json"
    return subprocess.check_output(
        ["skopeo", words[0], auth, *words[1:]], env={**os.environ, **known}, stderr=subprocess.STDOUT
    )


def test_a_layer_arrives_in_a_registry(
    obuild: Program, running: Running, known: dict[str, str], tmp_path: Path
) -> None:
    target = f"oci://{running.host}/team/pg:16"
    done = obuild("publish", "pg16", target, "--json", env=known)
    (record,) = json.loads(done.stdout)
    assert record["target"] == target
    raw = skopeo(running, known, "inspect", "--raw", f"docker://{running.host}/team/pg:16")
    assert record["reference"] == f"{running.host}/team/pg@{digest(raw)}"
    assert record["digest"] == digest(raw)
    copied = tmp_path / "copied"
    skopeo(running, known, "copy", f"docker://{record['reference']}", f"oci:{copied}")
    exported = Path(obuild("export", "pg16", "--type", "containerdisk", "-o", tmp_path).stdout.strip())
    names = {path.name for path in (exported / "blobs/sha256").iterdir()}
    assert {path.name for path in (copied / "blobs/sha256").iterdir()} == names
    again = obuild("publish", "pg16", target, env=known)
    assert again.stdout.strip() == record["reference"]
    assert again.stderr.count("is there already") == 2


def test_several_layers_become_an_index(obuild: Program, running: Running, known: dict[str, str]) -> None:
    target = f"oci://{running.host}/multi:{{version}}"
    done = obuild("publish", "pg16", "pg16-arm", target, "--version", "2", env=known)
    raw = skopeo(running, known, "inspect", "--raw", f"docker://{running.host}/multi:2")
    assert done.stdout.strip() == f"{running.host}/multi@{digest(raw)}"
    index = json.loads(raw)
    assert [each["platform"]["architecture"] for each in index["manifests"]] == ["amd64", "arm64"]
    for arch in ("amd64", "arm64"):
        told = skopeo(running, known, "inspect", f"--override-arch={arch}", f"docker://{running.host}/multi:2")
        assert json.loads(told)["Architecture"] == arch


def test_two_layers_for_the_same_machines_are_no_index(
    obuild: Program, running: Running, known: dict[str, str]
) -> None:
    tagged = obuild("inspect", "pg16", "--json")
    base = json.loads(tagged.stdout)["parents"][0]["id"]
    done = obuild("publish", "pg16", base, f"oci://{running.host}/same:1", env=known, code=2)
    assert "two of the layers are for x86_64" in done.stderr


def test_provenance_and_a_signature_are_attached(
    obuild: Program, running: Running, known: dict[str, str], tmp_path: Path
) -> None:
    key = pem(tmp_path / "key")
    where = f"{running.host}/team/signed"
    done = obuild("publish", "pg16", f"oci://{where}:16", f"--sign={key}", "--json", env=known)
    (published,) = json.loads(done.stdout)
    assert "there is no list of packages" in done.stderr
    tag = published["digest"].replace(":", "-")

    listed = json.loads(skopeo(running, known, "inspect", "--raw", f"docker://{where}:{tag}"))
    entry, signature = listed["manifests"]
    assert entry["artifactType"] == "application/vnd.in-toto+json"
    manifest = json.loads(skopeo(running, known, "inspect", "--raw", f"docker://{where}@{entry['digest']}"))
    assert manifest["subject"]["digest"] == published["digest"]
    skopeo(running, known, "copy", f"docker://{where}@{entry['digest']}", f"dir:{tmp_path}/provenance")
    (blob,) = (layer["digest"].removeprefix("sha256:") for layer in manifest["layers"])
    statement = json.loads((tmp_path / "provenance" / blob).read_bytes())
    (subject,) = statement["subject"]
    assert f"sha256:{subject['digest']['sha256']}" == published["digest"]

    skopeo(running, known, "copy", f"docker://{where}:{tag}.sig", f"dir:{tmp_path}/signature")
    (layer,) = json.loads((tmp_path / "signature/manifest.json").read_bytes())["layers"]
    payload = (tmp_path / "signature" / layer["digest"].removeprefix("sha256:")).read_bytes()
    check(payload, layer["annotations"]["dev.cosignproject.cosign/signature"].encode(), key)
    assert json.loads(payload)["critical"]["image"] == {"docker-manifest-digest": published["digest"]}

    assert signature["artifactType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert signature["annotations"]["dev.sigstore.bundle.predicateType"] == "https://sigstore.dev/cosign/sign/v1"
    skopeo(running, known, "copy", f"docker://{where}@{signature['digest']}", f"dir:{tmp_path}/bundle")
    (layer,) = json.loads((tmp_path / "bundle/manifest.json").read_bytes())["layers"]
    bundle = json.loads((tmp_path / "bundle" / layer["digest"].removeprefix("sha256:")).read_bytes())
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    check(signed, envelope["signatures"][0]["sig"].encode(), key)
    assert json.loads(payload)["subject"] == [{"digest": {"sha256": published["digest"].removeprefix("sha256:")}}]
    der = ["openssl", "pkey", "-pubin", "-in", str(key.with_suffix(".pub")), "-outform", "DER"]
    hashed = hashlib.sha256(subprocess.check_output(der)).digest()
    assert base64.b64decode(bundle["verificationMaterial"]["publicKey"]["hint"]) == hashed


def test_a_registry_refuses_before_anything_is_exported(
    obuild: Program, running: Running, known: dict[str, str], tmp_path: Path
) -> None:
    nobody = {**known, "DOCKER_CONFIG": str(tmp_path / "none")}
    done = obuild("publish", "pg16", f"oci://{running.host}/pg:16", env=nobody, code=1)
    assert "says 401" in done.stderr
    assert "`docker login" in done.stderr
    assert "unpacking" not in done.stderr


@pytest.mark.parametrize("point", POINTS)
def test_a_publisher_that_is_killed_leaves_the_tag_as_it_was(
    obuild: Program, running: Running, known: dict[str, str], point: str
) -> None:
    where = f"oci://{running.host}/killed-{point}:1"
    obuild("publish", "pg16-arm", where, env=known)
    before = skopeo(running, known, "inspect", "--raw", f"docker://{where.removeprefix('oci://')}")
    obuild("publish", "pg16", where, env={**known, "OBUILD_KILL_AT": point}, code=-9)
    assert skopeo(running, known, "inspect", "--raw", f"docker://{where.removeprefix('oci://')}") == before
    done = obuild("publish", "pg16", where, env=known)
    assert done.stdout.strip() != f"{running.host}/killed-{point}@{digest(before)}"
    assert list(fsck.check(Store(obuild.store))) == []
    assert list((obuild.store / "outbox").iterdir()) == []
    assert ("unpacking" in done.stderr) == (point == "export.made")


def test_files_are_placed_with_their_checksums(obuild: Program, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("1.4.9\n")
    out = tmp_path / "out"
    targets = [f"file:{out}/{{name}}-{{version}}-{{arch}}.{suffix}" for suffix in ("qcow2", "raw", "oci")]
    done = obuild("publish", "pg16", "pg16-arm", *targets, "--version-file", version)
    names = [f"{name}-1.4.9-{arch}" for name, arch in (("pg16", "x86_64"), ("pg16-arm", "aarch64"))]
    assert done.stdout.splitlines() == [
        f"{out}/{name}.{suffix}" for suffix in ("qcow2", "raw", "oci") for name in names
    ]
    assert version.read_text() == "1.4.10\n"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True)
    for name in names:
        images = [out / f"{name}.{suffix}" for suffix in ("raw", "qcow2")]
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", *images], check=True)
        statement = json.loads((out / f"{name}.qcow2.provenance.json").read_bytes())
        assert digest((out / f"{name}.qcow2").read_bytes()) in {
            f"sha256:{each['digest']['sha256']}" for each in statement["subject"]
        }
    assert list(out.glob("*making*")) == []


def test_files_have_signatures_beside_them(obuild: Program, tmp_path: Path) -> None:
    key = pem(tmp_path / "key")
    obuild("publish", "pg16", f"file:{tmp_path}/out/a.raw", f"file:{tmp_path}/out/a.oci", f"--sign={key}")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        *("SHA256SUMS", "a.raw", "a.raw.sig", "a.raw.provenance.json", "a.raw.provenance.json.sig"),
        *("a.oci", "a.oci.provenance.json", "a.oci.provenance.json.sig"),
    }
    for name in ("a.raw", "a.raw.provenance.json"):
        check((tmp_path / "out" / name).read_bytes(), (tmp_path / f"out/{name}.sig").read_bytes(), key)
    obuild("publish", "pg16", f"file:{tmp_path}/bare/a.raw", "--no-sbom")
    assert {path.name for path in (tmp_path / "bare").iterdir()} == {"SHA256SUMS", "a.raw"}


def test_what_is_there_stays_unless_replaced(obuild: Program, tmp_path: Path) -> None:
    version = tmp_path / "version"
    version.write_text("7")
    there = tmp_path / "pg.raw"
    there.write_text("mine")
    done = obuild("publish", "pg16", f"file:{there}", "--version-file", version, code=2)
    assert "exists already" in done.stderr
    assert "it has other content" in done.stderr
    assert (there.read_text(), version.read_text()) == ("mine", "7")
    (record,) = json.loads(obuild("publish", "pg16", f"file:{there}", "--replace", "--json").stdout)
    assert record["digest"] == digest(there.read_bytes())
    assert (record["size"], record["reference"]) == (there.stat().st_size, str(there))
    before = there.stat().st_ino
    assert "is there already" in obuild("publish", "pg16", f"file:{there}").stderr
    assert there.stat().st_ino == before


def test_layers_are_cleaned_unless_the_user_says_no(obuild: Program, tmp_path: Path) -> None:
    done = obuild("publish", "pg16", f"file:{tmp_path}/a.raw", "--sysprep=-logs")
    assert "cleaning: ssh-hostkeys" in done.stderr
    assert "logs" not in done.stderr
    plain = obuild("publish", "pg16", f"file:{tmp_path}/b.raw", "--no-sysprep")
    assert "pg16 is published as it is, with its keys and logs" in plain.stderr
    assert "cleaning" not in plain.stderr


def test_cleaned_images_are_kept_until_they_have_arrived(obuild: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ("publish", "pg16", f"file:{tmp_path}/a.raw", f"file:{tmp_path}/file/a.raw", "--sysprep")
    obuild(*words, code=1)
    first = (tmp_path / "a.raw").read_bytes()
    (tmp_path / "file").unlink()
    done = obuild(*words)
    assert "cleaning" not in done.stderr
    assert "a.raw is there already" in done.stderr
    assert (tmp_path / "file/a.raw").read_bytes() == first
    assert list((obuild.store / "outbox").iterdir()) == []


def test_what_was_published_before_a_failure_is_reported(
    obuild: Program, running: Running, tmp_path: Path
) -> None:
    """The folder of the second target can only be found wrong when the file is written."""
    (tmp_path / "file").touch()
    version = tmp_path / "version"
    version.write_text("7")
    targets = (f"file:{tmp_path}/a.raw", f"file:{tmp_path}/file/b.raw")
    done = obuild("publish", "pg16", *targets, "--json", "--version-file", version, code=1)
    assert [each["reference"] for each in json.loads(done.stdout)] == [f"{tmp_path}/a.raw"]
    assert "cannot write to" in done.stderr
    assert version.read_text() == "7"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pg16"], "needs a layer and a target"),
        (["file:a.raw"], "needs a layer and a target"),
        (["pg16", "ocl://r.example/pg:16"], "unknown target 'ocl://r.example/pg:16'"),
        (["pg16", "oci:r.example/pg:16"], "unknown target 'oci:r.example/pg:16'"),
        (["pg16", "oci://r.example/PG:16"], "'PG' cannot be a repository"),
        (["pg16", "oci://r.example/pg:16", "--type", "raw"], "oci:// takes --type containerdisk only"),
        (["pg16", "file:a.img"], "no type of image has this suffix"),
        (["pg16", "file:a.img", "--type", "qcow"], "did you mean 'qcow2'?"),
        (["pg16", "file:{name}-{version}.raw"], "{version} has no value"),
        (["pg16", "file:{nam}.raw"], "did you mean 'name'?"),
        (["pg16", "pg16-arm", "file:a.raw"], "two images would be published as file:a.raw"),
        (["pg16", "file:a.raw", "--sysprep=-log"], "did you mean 'logs'?"),
        (["none", "file:a.raw"], "no layer has the id or the tag 'none'"),
        (["pg16", "file:a.raw", "--version", "1", "--version-file", "v"], "cannot be used together"),
        (["pg16", "file:a.raw", "--version-file", "/nonexistent"], "cannot read the version"),
        (["pg16", "file:a.raw", "--version-file", "/etc/passwd"], "does not hold a version"),
    ],
)
def test_a_wrong_command_is_refused(obuild: Program, words: list[str], said: str) -> None:
    assert said in obuild("publish", *words, code=2).stderr


def settings(tmp_path: Path, type: str = "") -> Settings:
    return Settings(tmp_path, {}, print, print, type)


def test_the_suffix_of_a_target_says_the_type(tmp_path: Path) -> None:
    for type, format in FORMATS.items():
        assert type_of(f"a.b.{format.suffix}", settings(tmp_path)) == type
        assert stem_of(f"a.b.{format.suffix}", type) == "a.b"
    assert type_of("disk.img", settings(tmp_path, type="raw")) == "raw"
    assert stem_of("disk image", "raw") == "image"
    with pytest.raises(UsageError, match="this type is a folder"):
        file_type_of("a.oci", settings(tmp_path))


def test_tags_with_colons_are_layers() -> None:
    assert kind_of("web:1.2") is None
    assert kind_of("http:1.2") is None
    assert all(kind_of(f"{prefix}x") == (prefix, kind) for prefix, kind in KINDS.items())


def test_the_manual_and_the_help_name_every_target() -> None:
    root = Path(__file__).parents[3]
    for prefix in KINDS:
        assert f"`{prefix}" in (root / "docs/publish.md").read_text()
        assert prefix in (root / "docs/cli.md").read_text()


@pytest.mark.parametrize(
    ("package", "target"),
    [("httpx", "oci://r.example/a:1"), ("boto3", "s3://images/a.raw"), ("obstore.store", "gs://images/a.raw")],
)
def test_a_missing_package_is_named(
    obuild: Program, monkeypatch: pytest.MonkeyPatch, package: str, target: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = obuild("publish", "pg16", target, code=2)
    assert f"the Python package {package.partition('.')[0]} is missing" in done.stderr
    assert "pip install 'obuild[publish]'" in done.stderr


def test_placeholders() -> None:
    assert filled("a{name}-{arch}{x", {"name": "N", "arch": "A"}) == "aN-A{x"
