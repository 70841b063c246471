"""Reading recipes: every key, and mistakes, which are reported with file, line and column."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from obuild.bases import recipe, sources
from obuild.bases.all import KINDS
from obuild.bases.kind import File, Recipe, digest
from obuild.bases.scratch.options import Options
from obuild.errors import UsageError
from obuild.guests.profile import ARCHES, Card
from tests.support.recipes import recipe_of

WHOLE = """
kind = "scratch"
arch = "amd64"
size = "1G"
tried = false

[card]
login = "builder"
memory = "512M"

[scratch]
suite = "bookworm"
updates = false
variant = "extract"
packages = ["bash", "g++"]
kernel = ["linux-image-amd64"]
tools = ["cpio"]
cmdline = " quiet "
script = "true\\n"

[[scratch.file]]
path = "/etc/motd"
text = "hello\\n"

[[scratch.file]]
path = "/usr/bin/hello"
mode = "4755"
text = "#!/bin/sh"
"""

SMALLEST = """
kind = "scratch"
size = "1G"
[scratch]
suite = "bookworm"
"""


def test_every_key_is_read() -> None:
    made = recipe_of(WHOLE)
    assert (made.name, made.kind, made.size, made.tried) == ("mine", "scratch", 1 << 30, False)
    assert made.card == Card(login="builder", memory=512 << 20, arch="x86_64")
    assert made.options == Options(
        layout="mbr-grub",
        suite="bookworm",
        updates=False,
        variant="extract",
        packages=("bash", "g++", "linux-image-amd64"),
        cmdline="quiet",
        tools=("cpio",),
        files=(File("/etc/motd", 0o644, "hello\n"), File("/usr/bin/hello", 0o4755, "#!/bin/sh")),
        script="true\n",
    )


def test_most_keys_have_defaults() -> None:
    made = recipe_of(SMALLEST)
    options: Options = made.options
    assert (options.variant, options.packages, options.files, options.script) == ("minbase", (), (), "")
    assert options.updates
    assert made.tried
    assert made.card == Card()


def with_line(line: str, under: str = "") -> str:
    """The smallest recipe with one more line at the end of a table, in place of one for the same key."""
    key = line.split(" ", maxsplit=1)[0]
    tables = SMALLEST.split("[scratch]\n")
    parts = ["\n".join(each for each in part.split("\n") if not each.startswith(f"{key} =")) for part in tables]
    parts[bool(under)] += f"{line}\n"
    return "[scratch]\n".join(parts)


@pytest.mark.parametrize(
    ("under", "line", "message", "hint"),
    [
        ("", "kind = ", "not a TOML file: ", ""),
        ("", 'colour = "red"', "4:1: unknown key 'colour'", "known: kind, arch"),
        ("", 'siez = "1G"', "4:1: unknown key 'siez'", "did you mean 'size'?"),
        ("", 'kind = "scrach"', "3:1: kind is 'scrach'", "did you mean 'scratch'?"),
        ("", "kind = 1", "3:1: kind must be a string", ""),
        ("", 'arch = "vax"', "4:1: arch is 'vax'", "x86_64"),
        ("", 'size = "big"', "3:1: size: 'big' is not a size", "4G"),
        ("", 'size = "1M"', "3:1: size must be", "4G"),
        ("", 'size = "1000000001"', "3:1: size must be whole MiB", "4G"),
        ("", "card = 1", "4:1: card must be a table", "[card]"),
        ("", 'tried = "no"', "4:1: tried must be true or false", ""),
        ("scratch", 'pakages = ["bash"]', "6:1: unknown key 'pakages'", "did you mean 'packages'?"),
        ("scratch", 'suite = "-o"', "5:1: suite is '-o'", "bookworm"),
        ("scratch", 'updates = "no"', "6:1: updates must be true or false", ""),
        ("scratch", 'variant = "tiny"', "6:1: variant is 'tiny'", "minbase"),
        ("scratch", 'packages = "bash"', "6:1: packages must be a list", '["sudo"'),
        ("scratch", 'packages = ["a b"]', "6:1: packages: 'a b' is not the name", "Debian"),
        ("scratch", "packages = [1]", "6:1: packages must be a list of strings", "sudo"),
        ("scratch", 'cmdline = "a\\nb"', "6:1: cmdline must be one line", ""),
        ("scratch", "script = 1", "6:1: script must be a string", ""),
        ("scratch", "file = 1", "6:1: file must be tables", "[[file]]"),
        ("scratch", "file = [1]", "6:1: file must be tables", "[[file]]"),
    ],
)
def test_a_mistake_is_named_with_its_place(under: str, line: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_of(with_line(line, under))
    assert f"mine.toml:{message}" in caught.value.message.replace(".toml: not", ".toml:not")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[card]\ncolour = "red"', "mine.toml:7:1: unknown key 'colour'"),
        ('[card]\nkey = "id_rsa"', "mine.toml:7:1: unknown key 'key'"),
        ("[card]\nmemory = 1", "mine.toml:7:1: memory must be a string"),
        ('[card]\nos = "plan9"', "mine.toml:6:2: [card]: os is 'plan9'"),
        ("[cards]", "mine.toml:6:2: unknown key 'cards'"),
        ('[[scratch.file]]\npath = "/a"', "mine.toml:6:3: [scratch.file]: text is missing"),
        ('[[scratch.file]]\ntext = ""', "mine.toml:6:3: [scratch.file]: path is missing"),
        ('[[scratch.file]]\npath = "a"\ntext = ""', "mine.toml:7:1: path 'a' is not"),
        ('[[scratch.file]]\npath = "/a/"\ntext = ""', "mine.toml:7:1: path '/a/' is not"),
        ('[[scratch.file]]\npath = "/../a"\ntext = ""', "mine.toml:7:1: path '/../a' is not"),
        ('[[scratch.file]]\npath = "/a"\nmode = "rwx"\ntext = ""', "mine.toml:8:1: mode is 'rwx'"),
        ('[[scratch.file]]\npath = "/a"\nowner = "me"\ntext = ""', "mine.toml:8:1: unknown key 'owner'"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_place(table: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_of(SMALLEST + table)
    assert message in caught.value.message


@pytest.mark.parametrize("missing", ["kind", "suite", "size"])
def test_a_missing_key_is_reported(missing: str) -> None:
    lines = [line for line in SMALLEST.splitlines() if not line.startswith(missing)]
    with pytest.raises(UsageError, match=rf"mine.toml.*: {missing} is missing"):
        recipe_of("\n".join(lines))


def test_a_recipe_has_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "other", KINDS["scratch"])
    with pytest.raises(
        UsageError,
        match=r"mine.toml:6:2: a recipe has one kind: this one is scratch, so it cannot have a table \[other\]",
    ):
        recipe_of(SMALLEST + "[other]\n")


def test_the_name_is_that_of_a_base() -> None:
    with pytest.raises(UsageError, match="not a name"):
        recipe_of(SMALLEST, name=".evil")


def changed(made: Recipe, **changes: object) -> Recipe:
    return replace(made, options=replace(made.options, **changes))


def test_the_digest_covers_every_input_but_the_name() -> None:
    made = recipe_of(WHOLE)
    assert digest(replace(made, name="other", tried=True)) == digest(made)
    changes = (
        changed(made, script="false\n"),
        changed(made, updates=True),
        changed(made, packages=("bash",)),
        changed(made, files=made.options.files[:1]),
        replace(made, size=2 << 30),
        replace(made, card=Card()),
    )
    assert len({digest(each) for each in (made, *changes)}) == 1 + len(changes)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the recipe"):
        recipe.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        recipe.load(tmp_path / "binary.toml")


@pytest.mark.parametrize("name", sources.names())
def test_every_recipe_that_comes_with_obuild_is_sound(name: str) -> None:
    path = sources.find(name)
    assert path is not None
    made = recipe.load(path)
    assert made.name == name
    if made.kind != "scratch":
        return
    options: Options = made.options
    assert options.packages
    paths = [file.path for file in options.files]
    assert len(paths) == len(set(paths))
    for file in options.files:
        assert file.text.startswith("#!") == bool(file.mode & 0o111), file.path


@pytest.mark.parametrize("name", sources.names())
def test_a_recipe_that_is_shown_is_the_same_recipe(name: str) -> None:
    path = sources.find(name)
    assert path is not None
    made = recipe.load(path)
    assert digest(recipe_of(recipe.show(made))) == digest(made)


@pytest.mark.parametrize("arch", [arch for arch in ARCHES if arch != "x86_64"])
def test_there_is_a_micro_for_each_architecture(arch: str) -> None:
    path = sources.find(f"micro-{arch}")
    assert path is not None
    made = recipe.load(path)
    assert (made.card.arch, made.card.firmware) == (arch, "kernel")
    assert {"cpio", "depmod"} <= set(made.options.tools)
