"""The grammar for editors knows the language."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from obuild.spec import fields, parser

ROOT = Path(__file__).parents[2]
VSCODE = ROOT / "editors" / "vscode"
GRAMMAR = json.loads((VSCODE / "syntaxes" / "obuild.tmLanguage.json").read_text())


@pytest.mark.parametrize("word", ["build", "from", *parser.OPS, *(op.capitalize() for op in parser.OPS)])
def test_each_op_is_a_keyword(word: str) -> None:
    (found,) = re.findall(GRAMMAR["repository"]["op"]["match"], f"({word} x)")
    assert found == ("(", word)


#: `from` and `shell` are ops, too.
FIELDS = {field for names in fields.FIELDS.values() for field in names} - {"from", "shell"}


@pytest.mark.parametrize("word", sorted({*FIELDS, "uid", "gid", "name"}))
def test_each_field_is_an_attribute(word: str) -> None:
    (found,) = re.findall(GRAMMAR["repository"]["field"]["match"], f"({word} x)")
    assert found == ("(", word)


def test_other_words_are_neither() -> None:
    for rule in ("op", "field"):
        assert not re.search(GRAMMAR["repository"][rule]["match"], "(running (sources (run-parts x)))")


def test_the_extension_names_files_that_exist() -> None:
    contributes = json.loads((VSCODE / "package.json").read_text())["contributes"]
    for path in (contributes["languages"][0]["configuration"], contributes["grammars"][0]["path"]):
        json.loads((VSCODE / path).read_text())
    assert contributes["grammars"][0]["scopeName"] == GRAMMAR["scopeName"]


def test_the_hooks_call_commands_that_exist() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [hook["entry"] for hook in hooks] == ["obuild fmt --check", "obuild fmt --write"]
    assert all(re.search(hook["files"], "specs/hello/hello.spec") for hook in hooks)
