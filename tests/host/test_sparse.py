"""Files with holes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from obuild.host import sparse


@pytest.mark.parametrize(
    "parts",
    [{}, {0: b"x"}, {5 << 20: b"y" * 5000}, {4096: b"z", (3 << 20) + 7: os.urandom(3 << 20), 9 << 20: b"end"}],
    ids=["empty", "start", "middle", "several"],
)
@pytest.mark.parametrize("size", [0, 12 << 20])
def test_the_digest_of_a_file_with_holes(tmp_path: Path, parts: dict[int, bytes], size: int) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        for at, data in parts.items():
            file.seek(at)
            file.write(data)
        file.truncate(max(size, file.tell()))
    assert sparse.sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
