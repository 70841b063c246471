"""Wrong numbers in a structure of a file system end in one message."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from obuild.errors import ObuildError, UsageError

P = ParamSpec("P")
T = TypeVar("T")


def guarded(mender: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Turn what wrong numbers lead to into an ObuildError, whose hint names the program that can mend it."""

    def guard(method: Callable[P, T]) -> Callable[P, T]:
        @wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return method(*args, **kwargs)
            except (struct.error, IndexError, ValueError) as error:
                raise damaged(str(error), mender) from error

        return call

    return guard


def once(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """A reader of numbered blocks that raises ValueError instead of reading one twice.

    A tree whose blocks are there more than once, because it is damaged or made so, could take for ever.
    """
    seen: set[int] = set()

    def read_once(number: int) -> bytes:
        if number in seen:
            raise ValueError(f"block {number} is in two places of a tree")
        seen.add(number)
        return read(number)

    return read_once


def damaged(why: str, mender: str = "") -> ObuildError:
    """The error for a damaged file system."""
    return ObuildError(f"the file system is damaged: {why}", hint=f"{mender} can mend it" if mender else "")


def unreadable(kind: str, feature: str) -> UsageError:
    """The error for a feature of a file system that changes how files are read."""
    return UsageError(f"the {kind} file system has the feature {feature}, which obuild cannot read")


class Unfinished(UsageError):
    """The file system was not unmounted, and its journal is still needed."""

    def __init__(self, called: str = "") -> None:
        where = f"{called}: " if called else ""
        super().__init__(
            f"{where}the file system was not unmounted: changes in its journal are not in its files yet",
            hint="a step on this layer, (run (shell true)), makes a layer where they are",
        )
