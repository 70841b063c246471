"""Lists of packages, provenance and signatures beside exported images."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nacl.secret import SecretBox

from obuild import spec
from obuild.bases import making
from obuild.errors import UsageError
from obuild.exports import signing
from obuild.exports.export import Wanted, export
from obuild.guests.profile import Card
from obuild.host import qemu_img
from obuild.plan.keys import LayerId
from obuild.plan.planner import plan
from obuild.store.layers import Store
from tests.support import odd
from tests.support.disks import ext4_disk
from tests.support.layers import make_all
from tests.support.openssl import check, pem

STATUS = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2\n"
OPS = '(env WHO me) (copy (src a) (dst /a)) (run (secrets (token (target /token))) (shell "make"))'


@pytest.fixture
def ids(store: Store, tiny: Path, tmp_path: Path) -> list[LayerId]:
    """A base, a copy and a command, all with the same disk, on which a package is installed."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_text("a")
    stage = spec.parse(f"((from tiny) {OPS})".encode())
    bases = {"tiny": making.find(store, "tiny", say=print)}
    ids = make_all(store, plan(stage, source=tmp_path / "source", bases=bases, secrets=["token"]).chain())
    (tmp_path / "status").write_text(STATUS)
    folders = (f"mkdir {name}" for name in ("etc", "usr", "var", "var/lib", "var/lib/dpkg"))
    disk = ext4_disk(tmp_path / "disk.raw", *folders, f"write {tmp_path}/status var/lib/dpkg/status", size=8 << 20)
    for id in ids:
        qemu_img.pack(disk, store.layer(id).image.with_name("new"))
        store.layer(id).image.with_name("new").replace(store.layer(id).image)
    return ids


def wanted(out: Path, *types: str, **changes: Any) -> Wanted:
    return Wanted(types, out, "pg", Card(), documented=True)._replace(**changes)


def silent(text: str) -> None:
    pass


def statement(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "pg.provenance.json").read_bytes())
    return found


def sums(out: Path) -> None:
    """Every file in the folder is in the list of checksums, with its own."""
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    listed = {line.split()[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in out.iterdir() if path.is_file()} - {"SHA256SUMS"}


def test_an_export_has_its_packages_and_its_provenance(store: Store, ids: list[LayerId], tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = export(store, ids[2], wanted(out, "qcow2", "containerdisk"), say=silent)
    assert [path.name for path in paths] == ["pg.qcow2", "pg.oci"]
    sums(out)
    (component,) = json.loads((out / "pg.cdx.json").read_bytes())["components"]
    assert component["purl"] == "pkg:deb/linux/bash@5.2?arch=amd64&distro=linux"
    assert len(json.loads((out / "pg.spdx.json").read_bytes())["packages"]) == 2

    found = statement(out)
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    index = json.loads((out / "pg.oci/index.json").read_bytes())
    assert {each["name"]: each["digest"]["sha256"] for each in found["subject"]} == {
        "pg.qcow2": hashlib.sha256((out / "pg.qcow2").read_bytes()).hexdigest(),
        "pg.oci": index["manifests"][0]["digest"].removeprefix("sha256:"),
    }
    definition = found["predicate"]["buildDefinition"]
    parameters = definition["externalParameters"]
    assert parameters["layer"] == ids[2]
    assert [step["id"] for step in parameters["steps"]] == ids
    base, copy, run = (step["key"] for step in parameters["steps"])
    base_digest = base["base"].removeprefix("sha256:")
    assert copy["copy"] == "/"
    assert run["env"] == [["WHO", "me"]]
    assert run["secrets"] == [["token", "/token"]]
    assert [each["digest"]["sha256"] for each in definition["resolvedDependencies"]] == [
        base_digest,
        copy["files"]["sha256"],
    ]
    assert str(tmp_path) not in (out / "pg.provenance.json").read_text()


def test_the_documents_are_the_same_each_time(store: Store, ids: list[LayerId], tmp_path: Path) -> None:
    for out in (tmp_path / "one", tmp_path / "two"):
        export(store, ids[2], wanted(out, "raw"), say=silent)
    for suffix in ("cdx.json", "spdx.json", "provenance.json"):
        one, two = ((tmp_path / out / f"pg.{suffix}").read_bytes() for out in ("one", "two"))
        assert one == two


def test_a_later_export_of_the_same_layer_is_added(store: Store, ids: list[LayerId], tmp_path: Path) -> None:
    export(store, ids[2], wanted(tmp_path / "out", "raw"), say=silent)
    export(store, ids[2], wanted(tmp_path / "out", "tar"), say=silent)
    assert [each["name"] for each in statement(tmp_path / "out")["subject"]] == ["pg.raw", "pg.tar"]
    sums(tmp_path / "out")


def test_documents_of_another_layer_are_not_replaced(store: Store, ids: list[LayerId], tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(store, ids[2], wanted(out, "raw"), say=silent)
    for change in (wanted(out, "tar", size=16 << 20), wanted(out, "tar")):
        with pytest.raises(UsageError, match=r"pg\.provenance\.json is about another layer"):
            export(store, ids[2] if change.size else ids[1], change, say=silent)
    assert not (out / "pg.tar").exists()
    export(store, ids[1], wanted(out, "tar", force=True), say=silent)
    assert [each["name"] for each in statement(out)["subject"]] == ["pg.tar"]


@pytest.mark.parametrize(
    ("os", "said"), [("windows", "windows has no database"), ("linux", "no root file system")]
)
def test_a_layer_without_packages_is_exported(
    store: Store, ids: list[LayerId], tmp_path: Path, os: str, said: str
) -> None:
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(1 << 20))
    image = store.layer(ids[2]).image
    image.unlink()
    qemu_img.pack(empty, image)
    notes: list[str] = []
    export(store, ids[2], wanted(tmp_path / "out", "qcow2", card=Card(os=os)), say=notes.append)
    assert any(said in note for note in notes)
    names = {"pg.qcow2", "pg.provenance.json", "SHA256SUMS"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


# -- signatures


def cosign_key(path: Path) -> Path:
    """A key as `cosign generate-key-pair` writes it, with the password sesame."""
    plain = pem(path.with_name("plain"))
    der = subprocess.check_output(["openssl", "pkcs8", "-topk8", "-nocrypt", "-in", plain, "-outform", "DER"])
    salt, nonce = os.urandom(32), os.urandom(24)
    cost = {"N": 32768, "r": 8, "p": 1}
    derived = hashlib.scrypt(b"sesame", salt=salt, n=32768, r=8, p=1, maxmem=1 << 28, dklen=32)
    text = {
        "kdf": {"name": "scrypt", "params": cost, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(SecretBox(derived).encrypt(der, nonce).ciphertext).decode(),
    }
    body = base64.encodebytes(json.dumps(text).encode()).decode()
    kind = "ENCRYPTED SIGSTORE PRIVATE KEY"
    path.write_text(f"-----BEGIN {kind}-----\n{body}-----END {kind}-----\n")
    plain.with_suffix(".pub").rename(path.with_suffix(".pub"))
    return path


def verify(path: Path, key: Path) -> None:
    """Let OpenSSL check a signature in its file."""
    check(path.read_bytes(), path.with_name(f"{path.name}.sig").read_bytes(), key)


KEYS: dict[str, Callable[[Path], Path]] = {
    "openssl": pem,
    "encrypted": lambda path: pem(path, "-aes256", "-pass", "pass:sesame"),
    "cosign": cosign_key,
}


@pytest.mark.parametrize("kind", KEYS)
def test_openssl_verifies_every_file(store: Store, ids: list[LayerId], tmp_path: Path, kind: str) -> None:
    key, out = KEYS[kind](tmp_path / "key"), tmp_path / "out"
    where = ("export", ids[2], f"--store=qemu:{store.root}", "-o", str(out), "--name=pg", f"--sign={key}")
    os.environ["COSIGN_PASSWORD"] = "sesame"
    try:
        ended, shown, err = odd.run((*where, "--type=raw", "--type=containerdisk"))
    finally:
        del os.environ["COSIGN_PASSWORD"]
    assert ended == 0, err
    assert shown.splitlines() == [str(out / "pg.raw"), str(out / "pg.oci")]
    for suffix in ("raw", "cdx.json", "spdx.json", "provenance.json"):
        verify(out / f"pg.{suffix}", key)
    sums(out)
    assert b"sesame" not in b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_a_signature_of_what_was_replaced_goes(store: Store, ids: list[LayerId], tmp_path: Path) -> None:
    signer = signing.load(pem(tmp_path / "key"), lambda: "")
    out = tmp_path / "out"
    export(store, ids[2], wanted(out, "raw", signer=signer), say=silent)
    assert (out / "pg.raw.sig").is_file()
    export(store, ids[2], wanted(out, "raw", force=True), say=silent)
    assert not list(out.glob("*.sig"))
    sums(out)


@pytest.mark.parametrize(
    ("options", "password", "said"),
    [
        (("EC", "-pkeyopt", "ec_paramgen_curve:P-384"), "", "is not an ECDSA key on P-256"),
        (("ed25519",), "", "is not an ECDSA key on P-256"),
        (("EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-aes256", "-pass", "pass:x"), "y", "cannot use the key"),
    ],
)
def test_a_key_that_cannot_sign_is_refused(
    tmp_path: Path, options: tuple[str, ...], password: str, said: str
) -> None:
    argv = ["openssl", "genpkey", "-algorithm", *options, "-out", str(tmp_path / "key")]
    subprocess.run(argv, check=True, capture_output=True)
    with pytest.raises(UsageError, match=said) as caught:
        signing.load(tmp_path / "key", lambda: password)
    assert "cosign generate-key-pair" in caught.value.hint


def test_a_wrong_key_file_is_refused(tmp_path: Path) -> None:
    cosign_key(tmp_path / "key")
    with pytest.raises(UsageError, match="cannot use the key"):
        signing.load(tmp_path / "key", lambda: "wrong")
    (tmp_path / "text").write_text("text")
    with pytest.raises(UsageError, match="cannot use the key"):
        signing.load(tmp_path / "text", lambda: "")
    with pytest.raises(UsageError, match=r"cannot read the key .*No such file"):
        signing.load(tmp_path / "gone", lambda: "")


def test_an_encrypted_key_wants_a_password(store: Store, ids: list[LayerId], tmp_path: Path) -> None:
    key = cosign_key(tmp_path / "key")
    where = (f"--store=qemu:{store.root}", "-o", str(tmp_path / "out"), f"--sign={key}", "--type=raw")
    ended, _, err = odd.run(("export", ids[2], *where))
    assert (ended, "COSIGN_PASSWORD" in err) == (2, True)
    assert not (tmp_path / "out").exists()
