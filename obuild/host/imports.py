"""Import a package without the parts that it can do without and we do not use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*optional: str) -> Iterator[None]:
    """In the block, these modules cannot be imported, unless they are already: who finds none loads sooner.

    Afterwards they can be again. No other thread may import them meanwhile.
    """
    missing = [name for name in optional if name not in sys.modules]
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)
