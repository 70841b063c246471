"""What tests of base images share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from obuild.bases.scratch import apt
from tests.support import gnupg
from tests.support.debian_archive import FILES, RECIPE, DebianArchive


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A GnuPG home with one key, and keyring.gpg with its public half."""
    home = tmp_path_factory.mktemp("gnupg")
    with gnupg.one_key(home):
        yield home


@pytest.fixture
def archive(tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> DebianArchive:
    """An archive with two packages, and mine.toml for an image of them. Its path has to be quoted."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(apt, "KEYRING", keys / "keyring.gpg")
    archive = DebianArchive(tmp_path / "an archive", keys)
    archive.add("one", "1:1.0-1", FILES)
    archive.add("two", "2.0", {"usr/bin/two": "two\n"})
    archive.publish()
    (tmp_path / "mine.toml").write_text(RECIPE.replace("URL", archive.url))
    return archive
