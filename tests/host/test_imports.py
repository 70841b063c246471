from __future__ import annotations

import importlib
import sys

import pytest

from obuild.host import imports


def test_without_a_module_a_package_finds_none_and_later_it_does() -> None:
    sys.modules.pop("colorsys", None)
    with imports.without("colorsys", "json"):
        with pytest.raises(ImportError):
            importlib.import_module("colorsys")
        assert importlib.import_module("json").dumps([]) == "[]"  # it was imported before
    assert importlib.import_module("colorsys").__name__ == "colorsys"
    del sys.modules["colorsys"]
