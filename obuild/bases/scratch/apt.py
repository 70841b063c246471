"""Debian's package archive: its addresses, its lists of packages, and the packages themselves.

apt does the work, from a folder of its own: nothing of this host's apt is read or changed. The format of what it
reads is described in https://wiki.debian.org/DebianRepository/Format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from obuild.host import process

#: The archive's own name, which leads to a mirror nearby.
MIRROR = "http://deb.debian.org/debian"
SECURITY = "http://security.debian.org/debian-security"

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

#: A snapshot of the archive, like those of snapshot.debian.org. Its signatures may have expired.
_SNAPSHOT = re.compile(r"/[0-9]{8}T[0-9]{6}Z(?![^/\s])")

#: Suites without suites for updates and security fixes.
_ROLLING = ("testing", "unstable", "sid", "experimental")

_SHA256 = re.compile(r"^SHA256: ([0-9a-f]{64})$", re.MULTILINE)
_FIELD = re.compile(r"^([A-Za-z0-9-]+): *(.*)$", re.MULTILINE)


def lines(mirror: str, suite: str, *, updates: bool) -> tuple[str, ...]:
    """Return the lines of sources.list for a release from a mirror, with its updates and security fixes.

    Security fixes are Debian's own; but those of a snapshot lie beside it, in debian-security.
    """
    main, security = _address(mirror), SECURITY
    if _SNAPSHOT.search(mirror):
        security = _address(re.sub(r"/debian(?=/)", "/debian-security", mirror, count=1))
    release = f"deb {main} {suite} main"
    if not updates or suite in _ROLLING:
        return (release,)
    return release, f"deb {main} {suite}-updates main", f"deb {security} {suite}-security main"


def of_folder(folder: Path, suite: str) -> str:
    """What sources.list says to take a release from a folder here, whose files somebody has verified."""
    return f"deb [trusted=yes] copy:{quote(str(folder))} {suite} main"


def _address(mirror: str) -> str:
    """The mirror as apt shall read it: files are copied, so that they are in one place with all others."""
    mirror = mirror.rstrip("/")
    return f"copy:{quote(unquote(urlsplit(mirror).path))}" if mirror.startswith("file:") else mirror


def config(sources: Iterable[str]) -> tuple[str, ...]:
    """Settings that apt needs for these sources."""
    old = any(_SNAPSHOT.search(source) for source in sources)
    return ('Acquire::Check-Valid-Until "false"',) if old else ()


class Apt:
    """apt for one architecture and some sources, in a folder of its own."""

    def __init__(self, folder: Path, arch: str, sources: Sequence[str]) -> None:
        self.folder = folder
        self.lists = folder / "state/lists"
        for name in (
            "state/lists/partial",
            "cache/archives/partial",
            "etc/apt.conf.d",
            "etc/preferences.d",
            "debs",
        ):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "etc/sources.list").write_text("".join(f"{source}\n" for source in sources))
        settings = {
            "Dir": folder,
            "Dir::Etc": folder / "etc",
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::Trusted": KEYRING,
            "Dir::Etc::TrustedParts": "/dev/null",
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
        (folder / "apt.conf").write_text(text + "".join(f"{line};\n" for line in config(sources)))

    def update(self) -> None:
        """Read what the archive has. ProcessError if it cannot be read, or nobody known has signed it."""
        self._run("update", "--error-on=any")

    def download(self, packages: Iterable[str]) -> list[Path]:
        """Have packages, named NAME=VERSION, as files. ProcessError if the archive does not give them."""
        self._run("download", *packages)
        return sorted((self.folder / "debs").glob("*.deb"))

    def _run(self, *args: str) -> None:
        env = {"APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C.UTF-8"}
        process.run(["apt-get", "--quiet", "--quiet", *args], env=env, cwd=self.folder / "debs")


def stanzas(paths: Iterable[Path], digests: Iterable[str]) -> dict[str, str]:
    """What indices say of each package with one of these digests (sha256:HEX), by digest."""
    wanted = set(digests)
    found: dict[str, str] = {}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for line in _SHA256.finditer(text):
            if (digest := f"sha256:{line[1]}") in wanted:
                begin, end = text.rfind("\n\n", 0, line.start()), text.find("\n\n", line.end())
                found.setdefault(digest, text[begin + 1 : end if end >= 0 else None].strip("\n"))
    return found


def fields(text: str) -> dict[str, str]:
    """The fields of a stanza, or at the head of a release file, that have one line."""
    return dict(_FIELD.findall(text))


def indices(lists: Path) -> list[Path]:
    """The indices among the files that apt has read."""
    return sorted(lists.glob("*_Packages"))


def releases(lists: Path) -> list[Path]:
    """The signed files of the suites among those that apt has read."""
    return sorted([*lists.glob("*_InRelease"), *lists.glob("*_Release")])
