"""A package archive on disk, with the packages that a test makes: signed, as Debian's is."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.support.gnupg import signed

SUITE = "testsuite"

#: What the package `one` has: enough to be somebody's root.
FILES = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "usr/share/doc/one/changelog": "one\n"}

#: A recipe for an image of the packages `one` and `two`; URL stands for the address of the archive.
RECIPE = f"""
kind = "scratch"
size = "64M"
[scratch]
suite = "{SUITE}"
updates = false
variant = "extract"
epoch = "release"
packages = ["one", "two"]
mirror = "URL"
"""


class DebianArchive:
    """In `folder`; signed by the key of the GnuPG home `keys`."""

    def __init__(self, folder: Path, keys: Path) -> None:
        self.folder = folder
        self.keys = keys

    @property
    def url(self) -> str:
        return self.folder.as_uri()

    def add(self, name: str, version: str, files: dict[str, str]) -> Path:
        """Make a package, in the place of its older version; returns its file."""
        root = self.folder.parent / f"{name}_{version}"
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        control = {
            "Package": name,
            "Version": version,
            "Architecture": "all",
            "Maintainer": "Me <me@example.org>",
            "Description": "for a test",
        }
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in control.items()))
        pool = self.folder / f"pool/{name}"
        pool.mkdir(parents=True, exist_ok=True)
        for old in pool.iterdir():
            old.unlink()
        deb = pool / f"{name}_{version}_all.deb"
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, deb], check=True, capture_output=True)
        return deb

    def publish(self) -> None:
        """Write the index of all packages, and sign it."""
        stanzas = []
        for deb in sorted(self.folder.glob("pool/*/*.deb")):
            control = subprocess.run(
                ["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True
            ).stdout
            data = deb.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            where = deb.relative_to(self.folder)
            stanzas.append(f"{control}Filename: {where}\nSize: {len(data)}\nSHA256: {digest}\n")
        dist = self.folder / "dists" / SUITE
        (dist / "main/binary-amd64").mkdir(parents=True, exist_ok=True)
        index = "\n".join(stanzas).encode()
        (dist / "main/binary-amd64/Packages").write_bytes(index)
        digest = hashlib.sha256(index).hexdigest()
        release = (
            f"Suite: {SUITE}\nCodename: {SUITE}\nDate: Sat, 11 Jul 2026 10:16:37 UTC\nArchitectures: amd64\n"
            f"Components: main\nSHA256:\n {digest} {len(index)} main/binary-amd64/Packages\n"
        )
        (dist / "InRelease").write_bytes(signed(self.keys, release.encode(), "--clear-sign"))
