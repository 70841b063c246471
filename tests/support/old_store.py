"""A store made by a development version: keys of format 1, and no STORE/format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from obuild.plan import keys
from obuild.spec import sexp
from obuild.spec.sexp import Sexp
from obuild.store import format
from obuild.store.layers import Store


def _write(*fields: tuple[str, Sexp]) -> str:
    """A key of format 1, which always has the executor, before the parent."""
    rest = [field for field in fields if field[0] != "executor"]
    return sexp.dumps((("format", "1"), ("executor", "qemu"), *rest))


@contextmanager
def as_development_version(store: Store) -> Iterator[None]:
    """Plan and build in the block with keys of format 1; afterwards the store has no format."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_write", _write)
        yield
    (store.root / format.NAME).unlink(missing_ok=True)
