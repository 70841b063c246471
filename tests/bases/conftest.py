"""What tests of base images share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import gnupg


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A GnuPG home with one key, and keyring.gpg with its public half."""
    home = tmp_path_factory.mktemp("gnupg")
    with gnupg.one_key(home):
        yield home
