"""Databases of packages, and what is made of them."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from spdx_tools.spdx.parser.parse_anything import parse_file
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from obuild.errors import ObuildError, UsageError
from obuild.exports import sbom
from obuild.exports.packages.all import Inventory, inventory
from obuild.exports.packages.package import Package, Release, purl
from obuild.host.trees.folder import Folder
from obuild.host.trees.nodes import Tree
from obuild.plan.keys import LayerId

ID = LayerId("5" * 64)

DPKG = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.36-9)
Version: 2.36-9+deb12u10
Description: GNU C Library
 Version: not this one
Conffiles:
 /etc/ld.so.conf 1

Package: removed
Status: deinstall ok config-files
Version: 1

Package: adduser
Status: hold ok installed
Architecture: all
Version: 1:3.134~x
"""

APK = """\
C:Q1abc=
P:musl
V:1.2.4-r2
A:x86_64
L:MIT
o:musl
F:lib
R:ld-musl-x86_64.so.1

P:libcrypto3
V:3.1.4-r5
A:x86_64
L:Apache-2.0
o:openssl
"""

PACMAN = "%NAME%\nbash\n\n%VERSION%\n5.2.026-2\n\n%BASE%\nbash\n\n%ARCH%\nx86_64\n\n%LICENSE%\nGPL-3.0\nMIT\n"

SPEC = """\
Name: hello
Epoch: 2
Version: 1.0
Release: 3
Summary: A test
License: MIT and BSD
BuildArch: noarch
%description
%files
"""


def tree(top: Path, **files: str) -> Tree:
    """A tree with these files; __ stands for a slash."""
    for name, content in files.items():
        path = top / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Tree({"": Folder(top)})


def test_dpkg(tmp_path: Path) -> None:
    found = inventory(tree(tmp_path, var__lib__dpkg__status=DPKG, etc__x=""))
    assert found.packages == (
        Package("deb", "adduser", "1:3.134~x", "all"),
        Package("deb", "libc6", "2.36-9+deb12u10", "amd64", source="glibc"),
    )
    assert found.databases == ("dpkg",)


def test_dpkg_without_dpkg(tmp_path: Path) -> None:
    folder = tmp_path / "var/lib/dpkg/status.d"
    folder.mkdir(parents=True)
    (folder / "tzdata").write_text("Package: tzdata\nVersion: 2024a\nArchitecture: all\n")
    (folder / "tzdata.md5sums").write_text("0 x\n")
    assert inventory(tree(tmp_path)).packages == (Package("deb", "tzdata", "2024a", "all"),)


def test_apk(tmp_path: Path) -> None:
    assert inventory(tree(tmp_path, lib__apk__db__installed=APK)).packages == (
        Package("apk", "libcrypto3", "3.1.4-r5", "x86_64", license="Apache-2.0", source="openssl"),
        Package("apk", "musl", "1.2.4-r2", "x86_64", license="MIT", source="musl"),
    )


def test_pacman(tmp_path: Path) -> None:
    folder = tmp_path / "var/lib/pacman/local/bash-5.2.026-2"
    folder.mkdir(parents=True)
    (folder / "desc").write_text(PACMAN)
    (folder.parent / "ALPM_DB_VERSION").write_text("9\n")
    expected = Package("alpm", "bash", "5.2.026-2", "x86_64", license="GPL-3.0 AND MIT", source="bash")
    assert inventory(tree(tmp_path)).packages == (expected,)


@pytest.fixture(scope="module")
def rpm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a package that rpm itself has built and installed."""
    top = tmp_path_factory.mktemp("rpm")
    (top / "hello.spec").write_text(SPEC)
    subprocess.run(
        ["rpmbuild", "--quiet", "-D", f"_topdir {top}/build", "-bb", top / "hello.spec"],
        check=True,
        capture_output=True,
    )
    (package,) = top.glob("build/RPMS/noarch/*.rpm")
    root: Path = top / "root"
    common: list[str | Path] = ["rpm", "--root", root, "-D", "_dbpath /var/lib/rpm", "-D", "_db_backend sqlite"]
    subprocess.run([*common, "--initdb"], check=True, capture_output=True)
    subprocess.run([*common, "-i", "--nodeps", "--force-debian", package], check=True, capture_output=True)
    return root


def test_rpm(rpm_root: Path) -> None:
    expected = Package("rpm", "hello", "1.0-3", "noarch", "2", "MIT and BSD", "hello-1.0-3.src.rpm")
    assert inventory(Tree({"": Folder(rpm_root)})).packages == (expected,)


def test_a_damaged_rpm_database_is_an_error(rpm_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "var/lib/rpm/rpmdb.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ObuildError, match="rpm database is damaged"):
        inventory(tree(tmp_path))
    shutil.copy(rpm_root / "var/lib/rpm/rpmdb.sqlite", path)
    for blob in (b"short", struct.pack(">6I", 1, 4, 1000, 6, 99, 1) + b"name", "text"):
        change(path, blob)
        with pytest.raises(ObuildError, match="rpm database is damaged"):
            inventory(tree(tmp_path))


def change(database: Path, blob: bytes | str) -> None:
    """Put another header into an rpm database."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute("UPDATE Packages SET blob = ?", [blob])


@pytest.mark.parametrize(("name", "format"), [("Packages", "Berkeley DB"), ("Packages.db", "ndb")])
def test_an_older_rpm_database_is_named(tmp_path: Path, name: str, format: str) -> None:
    folder = tmp_path / "var/lib/rpm"
    folder.mkdir(parents=True)
    (folder / name).touch()
    with pytest.raises(UsageError, match=f"rpm database is in {format}, which"):
        inventory(tree(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n', Release("debian", "12", "Debian 12")),
        ("# nothing\n\n=x\nID='a b'\n", Release("a b", "", "Linux")),
        ("", Release()),
    ],
)
def test_what_a_layer_says_that_it_is(tmp_path: Path, text: str, expected: Release) -> None:
    assert inventory(tree(tmp_path, etc__other="")).release == Release()
    (tmp_path / "etc/os-release").write_text(text)
    assert inventory(tree(tmp_path)).release == expected


PACKAGES = (
    Package("deb", "libstdc++6", "12.2.0-14+deb12u1", "amd64", source="gcc-12"),
    Package("deb", "libstdc++6", "12.2.0-14+deb12u1", "i386", source="gcc-12"),
    Package("deb", "vim", "2:9.0~x", "all", license="Vim ümlaut"),
    Package("rpm", "hello", "1.0-3", "noarch", "2", "MIT and BSD", "hello-1.0-3.src.rpm"),
    Package("deb", "nothing", ""),
)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_purl_is_as_its_own_library_writes_it(package: Package) -> None:
    text = purl(package, Release("debian", "12"))
    read = PackageURL.from_string(text)
    assert read.to_string() == text
    assert (read.type, read.namespace, read.name) == (package.kind, "debian", package.name)
    assert (read.version or "") == package.version


@pytest.mark.parametrize(
    "found", [Inventory(Release("debian", "12", "Debian 12"), PACKAGES, ()), Inventory(Release(), (), ())]
)
def test_the_documents_are_valid(tmp_path: Path, found: Inventory) -> None:
    document = sbom.cyclonedx(found, ID)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.decode()) is None
    assert len(json.loads(document)["components"]) == len(found.packages)
    path = tmp_path / "layer.spdx.json"
    path.write_bytes(sbom.spdx(found, ID))
    parsed = parse_file(str(path))
    assert validate_full_spdx_document(parsed) == []
    assert len(parsed.packages) == len(found.packages) + 1
    for write in (sbom.cyclonedx, sbom.spdx):
        assert write(found, ID) == write(found, ID)
        assert write(found, ID) != write(found, LayerId("6" * 64))
