"""What lies beside an image that is published as a file or an object: documents, and signatures of all files.

They are called like the image, and a suffix: several images of a layer may be in one place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from obuild.exports import signing
from obuild.exports.signing import Signer
from obuild.exports.targets import attached
from obuild.exports.targets.target import Image, Target
from obuild.store import mtree


def send(image: Image, stem: str, open: Callable[[str], Target], signer: Signer | None) -> None:
    """Send what the export has left beside an image that has arrived. Its file is called `stem` and a suffix.

    `open` returns the target for a suffix, which replaces what is there.
    """
    with tempfile.TemporaryDirectory(prefix="obuild-beside-") as folder:
        for suffix, path in _files(image, stem, signer, Path(folder)):
            open(suffix).send([image._replace(path=path, sha256=mtree.digest(path))])


def _files(image: Image, stem: str, signer: Signer | None, folder: Path) -> Iterator[tuple[str, Path]]:
    """The files by suffix. Signatures, which only files get, are made in `folder`."""
    documents = {f".{suffix}": image.path.with_name(f"{stem}.{suffix}") for suffix in attached.KINDS}
    found = {suffix: path for suffix, path in documents.items() if path.is_file()}
    yield from found.items()
    if signer is None:
        return
    for suffix, path in {"": image.path, **found}.items():
        if path.is_file():
            signature = folder / (path.name + signing.SUFFIX)
            signature.write_bytes(signer.sign(bytes.fromhex(mtree.digest(path))))
            yield suffix + signing.SUFFIX, signature
