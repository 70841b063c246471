"""The text of JSON documents that people may read: indented, and the same for the same value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def dump(value: Mapping[str, Any]) -> bytes:
    """The document in UTF-8. What a name has that is not text becomes an escape."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
