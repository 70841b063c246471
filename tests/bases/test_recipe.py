"""Recipes: what they read as, and that every mistake names its file and its entry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from obuild.bases import recipe
from obuild.bases.recipe import File, Recipe
from obuild.errors import UsageError
from obuild.guests.profile import ARCHES, Card

WHOLE = """
kind = "debian"
suite = "bookworm"
updates = false
variant = "extract"
size = "1G"
packages = ["bash", "g++"]
kernel = ["linux-image-amd64"]
tools = ["cpio"]
cmdline = " quiet "
script = "true\\n"

[card]
login = "builder"
memory = "512M"

[[file]]
path = "/etc/motd"
text = "hello\\n"

[[file]]
path = "/usr/bin/hello"
mode = "4755"
text = "#!/bin/sh"
"""

SMALLEST = """
kind = "debian"
suite = "bookworm"
size = "1G"
"""


def parse(text: str, name: str = "mine") -> Recipe:
    return recipe.parse(text, name=name, where="mine.toml")


def test_every_entry_is_read() -> None:
    assert parse(WHOLE) == Recipe(
        name="mine",
        kind="debian",
        card=Card(login="builder", memory=512 << 20),
        suite="bookworm",
        updates=False,
        variant="extract",
        size=1 << 30,
        packages=("bash", "g++", "linux-image-amd64"),
        cmdline="quiet",
        tools=("cpio",),
        files=(File("/etc/motd", 0o644, "hello\n"), File("/usr/bin/hello", 0o4755, "#!/bin/sh")),
        script="true\n",
    )


def test_little_must_be_said() -> None:
    made = parse(SMALLEST)
    assert (made.variant, made.packages, made.files, made.script) == ("minbase", (), (), "")
    assert made.updates
    assert made.card == Card()


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        ("kind = ", "mine.toml: not a TOML file: ", ""),
        ('colour = "red"', "mine.toml: unknown entry 'colour'", "kind, suite"),
        ('kind = "gentoo"', "mine.toml: kind is 'gentoo'", "debian"),
        ("kind = 1", "mine.toml: kind must be a string", ""),
        ('suite = "-o"', "mine.toml: suite is '-o'", "bookworm"),
        ('updates = "no"', "mine.toml: updates must be true or false", ""),
        ('variant = "tiny"', "mine.toml: variant is 'tiny'", "minbase"),
        ('size = "big"', "mine.toml: size: 'big' is not a size", "4G"),
        ('size = "1M"', "mine.toml: size must be", "4G"),
        ('size = "1000000001"', "mine.toml: size must be whole MiB", "4G"),
        ('packages = "bash"', "mine.toml: packages must be a list", '["sudo"'),
        ('packages = ["a b"]', "mine.toml: packages: 'a b' is not the name", "Debian"),
        ("packages = [1]", "mine.toml: packages: 1 is not the name", "Debian"),
        ('cmdline = "a\\nb"', "mine.toml: cmdline must be one line", ""),
        ("script = 1", "mine.toml: script must be a string", ""),
        ("card = 1", "mine.toml: card must be a table", "[card]"),
        ("file = 1", "mine.toml: file must be tables", "[[file]]"),
        ("file = [1]", "mine.toml: file must be tables", "[[file]]"),
    ],
)
def test_a_mistake_is_named(entry: str, message: str, hint: str) -> None:
    name = entry.split(" ", maxsplit=1)[0]
    lines = [line for line in SMALLEST.splitlines() if not line.startswith(f"{name} =")]
    with pytest.raises(UsageError) as caught:
        parse("\n".join([*lines, entry]))
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[card]\ncolour = "red"', "mine.toml: [card]: unknown entry 'colour'"),
        ('[card]\nkey = "id_rsa"', "mine.toml: [card]: unknown entry 'key'"),
        ("[card]\nmemory = 1", "mine.toml: [card]: memory must be a string"),
        ('[card]\nos = "plan9"', "mine.toml: [card]: os is 'plan9'"),
        ('[[file]]\npath = "/a"', "mine.toml: [[file]] number 1: text is missing"),
        ('[[file]]\ntext = ""', "mine.toml: [[file]] number 1: path is missing"),
        ('[[file]]\npath = "a"\ntext = ""', "mine.toml: [[file]] number 1: path 'a' is not"),
        ('[[file]]\npath = "/a/"\ntext = ""', "mine.toml: [[file]] number 1: path '/a/' is not"),
        ('[[file]]\npath = "/../a"\ntext = ""', "mine.toml: [[file]] number 1: path '/../a' is not"),
        ('[[file]]\npath = "/a"\nmode = "rwx"\ntext = ""', "mine.toml: [[file]] number 1: mode is 'rwx'"),
        ('[[file]]\npath = "/a"\nowner = "me"\ntext = ""', "mine.toml: [[file]] number 1: unknown entry 'owner'"),
    ],
)
def test_a_mistake_in_a_table_says_in_which(table: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(SMALLEST + table)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("missing", ["kind", "suite", "size"])
def test_what_is_missing_is_said(missing: str) -> None:
    lines = [line for line in SMALLEST.splitlines() if not line.startswith(missing)]
    with pytest.raises(UsageError, match=f"mine.toml: {missing} is missing"):
        parse("\n".join(lines))


def test_the_name_is_that_of_a_base() -> None:
    with pytest.raises(UsageError, match="not a name"):
        parse(SMALLEST, name="../evil")


def test_the_digest_follows_every_input_but_the_name() -> None:
    made = parse(WHOLE)
    assert recipe.digest(replace(made, name="other")) == recipe.digest(made)
    changes = (
        replace(made, script="false\n"),
        replace(made, size=2 << 30),
        replace(made, updates=True),
        replace(made, packages=("bash",)),
        replace(made, files=made.files[:1]),
        replace(made, card=Card()),
    )
    assert len({recipe.digest(each) for each in (made, *changes)}) == 1 + len(changes)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the recipe"):
        recipe.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        recipe.load(tmp_path / "binary.toml")


def test_only_a_name_is_looked_up() -> None:
    assert recipe.find("no-such-recipe") is None
    assert recipe.find("../base-images/micro") is None


def test_obuild_comes_with_its_recipes() -> None:
    assert {"debian-12", "micro"} <= set(recipe.names())


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_that_comes_with_obuild_is_sound(name: str) -> None:
    path = recipe.find(name)
    assert path is not None
    made = recipe.load(path)
    assert made.name == name
    assert made.packages
    paths = [file.path for file in made.files]
    assert len(paths) == len(set(paths))
    for file in made.files:
        assert file.text.startswith("#!") == bool(file.mode & 0o111), file.path


def test_a_recipe_begins_with_the_one_it_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "FOLDERS", (tmp_path,))
    (tmp_path / "whole.toml").write_text(WHOLE)
    made = parse(
        'extend = "whole"\nkernel = ["linux-image-arm64"]\n[card]\narch = "aarch64"\n'
        '[[file]]\npath = "/etc/motd"\ntext = "bye"\n'
    )
    whole = parse(WHOLE)
    assert made.packages == ("bash", "g++", "linux-image-arm64")
    assert made.card == Card(login="builder", memory=512 << 20, arch="aarch64")
    assert made.files == (*whole.files, File("/etc/motd", 0o644, "bye"))
    assert (made.script, made.size) == (whole.script, whole.size)


@pytest.mark.parametrize("below", ["none", "chain"])
def test_only_a_whole_recipe_can_be_extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    monkeypatch.setattr(recipe, "FOLDERS", (tmp_path,))
    (tmp_path / "chain.toml").write_text('extend = "chain"\n')
    with pytest.raises(UsageError, match=r"no recipe 'none'|unknown entry 'extend'"):
        parse(f'extend = "{below}"')


def test_a_kernel_that_is_loaded_from_outside_is_told_where_the_root_is() -> None:
    made = parse('cmdline = "quiet"\n' + SMALLEST + '[card]\narch = "s390x"\nfirmware = "kernel"\n')
    assert made.card == Card(arch="s390x", firmware="kernel", cmdline="root=/dev/vda1 rw quiet")


@pytest.mark.parametrize("arch", [arch for arch in ARCHES if arch != "x86_64"])
def test_there_is_a_micro_for_each_architecture(arch: str) -> None:
    path = recipe.find(f"micro-{arch}")
    assert path is not None
    made = recipe.load(path)
    assert (made.card.arch, made.card.firmware) == (arch, "kernel")
    assert {"cpio", "depmod"} <= set(made.tools)
