"""Small files that are replaced whole."""

from __future__ import annotations

from pathlib import Path


def replace_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a small file so that it appears with all of `text`, or not at all."""
    import tempfile  # late: a cached build writes nothing

    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    written = Path(file.name)
    written.chmod(mode)
    written.replace(path)
