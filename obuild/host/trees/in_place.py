"""File systems that keep the data of a file as it is, in places of the disk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from obuild.host.blocks import Blocks
from obuild.host.trees.damage import damaged
from obuild.host.trees.nodes import Node

#: A part of a file: its offset in the file, that on the disk, and its length, in bytes.
Place = tuple[int, int, int]

_CHUNK = 1 << 20

#: In bytes: several million names.
_LARGEST_FOLDER = 256 << 20


class InPlace(ABC):
    """What such file systems have in common, on the disk `disk`."""

    disk: Blocks

    @abstractmethod
    def runs(self, file: Node) -> Iterable[Place]:
        """Where the data of a file is, in order. The last ones may reach beyond its end."""

    def places(self, file: Node) -> list[Place]:
        """Where the data of a file is, in order. Runs that follow each other on the disk, too, are one."""
        found: list[Place] = []
        for offset, place, length in self.runs(file):
            if found and offset < found[-1][0] + found[-1][2]:
                raise damaged(f"parts of /{file.path} overlap")
            length = min(length, file.size - offset)
            if length <= 0:  # blocks that are reserved beyond the end
                continue
            if found and (offset, place) == (found[-1][0] + found[-1][2], found[-1][1] + found[-1][2]):
                found[-1] = (found[-1][0], found[-1][1], found[-1][2] + length)
            else:
                found.append((offset, place, length))
        return found

    def pieces(self, file: Node) -> Iterator[tuple[int, bytes]]:
        """See `FileSystem.pieces`."""
        yield from self._pieces(self.places(file))

    def _pieces(self, places: list[Place]) -> Iterator[tuple[int, bytes]]:
        for offset, place, length in places:
            for done in range(0, length, _CHUNK):
                yield offset + done, self.disk.read(place + done, min(_CHUNK, length - done))

    def whole(self, folder: Node) -> bytes:
        """All the data of a folder. ObuildError if that is more than any folder has."""
        places = self.places(folder)
        if sum(length for _, _, length in places) > _LARGEST_FOLDER:
            raise damaged(f"the folder /{folder.path} is too large")
        return b"".join(piece for _, piece in self._pieces(places))

    def extents(self, file: Node) -> Iterator[tuple[int, int]]:
        """See `FileSystem.extents`."""
        for offset, _, length in self.places(file):
            yield offset, length
