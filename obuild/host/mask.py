"""Keep the values of secrets out of what a step prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import TracebackType

STARS = b"***"

#: A shorter line of a secret is not masked by itself: it would blot out half the log.
SHORTEST = 4


class Mask:
    """Passes output on with every secret, and every longer line of one, replaced by stars.

    A context manager: what may be the beginning of a secret is held back, and passed on at the end.
    """

    def __init__(self, secrets: Iterable[bytes], output: Callable[[bytes], object]) -> None:
        self._output = output
        self._words = sorted({word for secret in secrets for word in _words(secret)}, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, self._words))) if self._words else None
        self._held = b""

    def __enter__(self) -> Mask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held and self._pattern:
            self._output(self._pattern.sub(STARS, self._held))

    def __call__(self, data: bytes) -> None:
        if self._pattern is None:
            self._output(data)
            return
        data = self._held + data
        safe = len(data) - max(overlap(data, word) for word in self._words)
        for match in self._pattern.finditer(data):
            if match.end() > safe:  # it may be the beginning of a longer secret
                safe = min(safe, match.start())
        self._held = data[safe:]
        if safe:
            self._output(self._pattern.sub(STARS, data[:safe]))


def overlap(data: bytes, word: bytes) -> int:
    """How many bytes at the end of `data` could be the beginning of `word`."""
    for length in range(min(len(data), len(word) - 1), 0, -1):
        if word.startswith(data[-length:]):
            return length
    return 0


def _words(secret: bytes) -> list[bytes]:
    stripped = secret.strip()
    lines = [line.strip() for line in secret.splitlines()]
    return [word for word in (stripped, *lines) if len(word) >= SHORTEST]
