"""TOML: what is written reads back, and keys are found at their line and column."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obuild.errors import UsageError
from obuild.host import toml

TEXT = """\
# kind = "no"
kind = "x"
script = '''
size = "not a key"
[card]
'''
  "quoted key" = 1
a.b = 2
list = [
    "c = d",
]

[card] # here
login = { name = "me" }

[[scratch.file]]
path = "/a"
text = \"\"\"
path = "no"\"\"\"

[[scratch.file]]
path = "/b"
"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("kind",), (2, 1)),
        (("script",), (3, 1)),
        (("size",), None),
        (("quoted key",), (7, 3)),
        (("a", "b"), (8, 1)),
        (("card",), (13, 2)),
        (("card", "login"), (14, 1)),
        (("card", "login", "name"), (14, 1)),
        (("scratch", "file", 0, "path"), (17, 1)),
        (("scratch", "file", 1), (21, 3)),
        (("scratch", "file", 1, "path"), (22, 1)),
        (("scratch", "file", 1, "text"), (21, 3)),
    ],
)
def test_the_position_of_a_key_is_found(path: toml.KeyPath, place: tuple[int, int] | None) -> None:
    assert toml.position(TEXT, path) == place


def test_a_table_reads_back() -> None:
    table = toml.loads(TEXT, where="it")
    assert toml.loads(toml.dumps(table), where="it") == table


names = st.text(min_size=1)
values = st.recursive(
    st.text() | st.integers(-(2**63), 2**63 - 1) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
tables: Any = st.recursive(
    st.dictionaries(names, values, max_size=3),
    lambda inner: st.dictionaries(names, values | inner | st.lists(inner, min_size=1, max_size=2), max_size=3),
    max_leaves=5,
)


@given(tables)
def test_every_table_reads_back(table: dict[str, Any]) -> None:
    assert toml.loads(toml.dumps(table), where="it") == table


def test_text_of_several_lines_stays_readable() -> None:
    assert toml.dumps({"script": "a\nb\n"}) == "script = '''\na\nb\n'''\n"


def test_text_that_is_not_toml_is_refused() -> None:
    with pytest.raises(UsageError, match="it: not a TOML file"):
        toml.loads("a =", where="it")
