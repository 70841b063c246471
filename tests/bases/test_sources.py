"""The files of a recipe: extend, drop-ins, profiles and variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from obuild.bases import recipe, sources
from obuild.bases.kind import File, Recipe
from obuild.bases.scratch.options import Options
from obuild.bases.sources import Choices
from obuild.errors import UsageError

BASE = """
kind = "scratch"
size = "1G"
[card]
memory = "512M"
[scratch]
suite = "bookworm"
packages = ["bash"]
kernel = ["linux-image-amd64"]
cmdline = "quiet"
script = "true"
[[scratch.file]]
path = "/etc/motd"
text = "hello"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the recipes that come with obuild, with one called `base`."""
    monkeypatch.setattr(sources, "FOLDERS", (tmp_path,))
    (tmp_path / "base.toml").write_text(BASE)
    return tmp_path


def load(folder: Path, text: str = "", *, profile: str = "", **values: str) -> Recipe:
    if text:
        (folder / "mine.toml").write_text(text)
    return recipe.load(folder / ("mine.toml" if text else "base.toml"), Choices(profile, values))


def mistake(folder: Path, text: str = "", **choices: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(folder, text, **choices)
    return caught.value


# -- extend


def test_a_recipe_begins_with_the_one_it_extends(folder: Path) -> None:
    made = load(
        folder,
        'extend = "base"\narch = "arm64"\n[scratch]\nkernel = ["linux-image-arm64"]\n'
        '[[scratch.file]]\npath = "/etc/issue"\ntext = "bye"\n',
    )
    options: Options = made.options
    assert options.packages == ("bash", "linux-image-arm64")
    assert (made.card.memory, made.card.arch, made.size) == (512 << 20, "aarch64", 1 << 30)
    assert options.files == (File("/etc/motd", 0o644, "hello"), File("/etc/issue", 0o644, "bye"))
    assert options.script == "true"


def test_a_recipe_can_extend_one_that_extends_another(folder: Path) -> None:
    (folder / "middle.toml").write_text('extend = "base"\nsize = "2G"\n[scratch]\ncmdline = "loud"')
    made = load(folder, 'extend = "middle"\n[scratch]\nsuite = "trixie"')
    assert (made.size, made.options.cmdline, made.options.suite) == (2 << 30, "loud", "trixie")


def test_a_recipe_extends_its_neighbour_before_one_that_comes_with_obuild(folder: Path) -> None:
    mine = folder / "mine"
    mine.mkdir()
    (mine / "base.toml").write_text(BASE.replace("1G", "3G"))
    assert load(mine, 'extend = "base"').size == 3 << 30


def test_the_extended_recipe_must_exist(folder: Path) -> None:
    error = mistake(folder, '\nextend = "bsae"')
    assert "mine.toml:2:1: there is no recipe 'bsae'" in error.message
    assert error.hint == "did you mean 'base'?"


@pytest.mark.parametrize("name", ["mine", "other"])
def test_a_cycle_of_recipes_is_refused(folder: Path, name: str) -> None:
    (folder / "other.toml").write_text('extend = "mine"')
    assert "a recipe cannot extend itself: mine extends" in mistake(folder, f'extend = "{name}"').message


# -- drop-ins


@pytest.fixture
def drop_ins(folder: Path) -> Path:
    (folder / "base.d").mkdir()
    return folder / "base.d"


def test_drop_ins_add_to_lists_and_replace_the_rest_in_the_order_of_their_names(
    folder: Path, drop_ins: Path
) -> None:
    (drop_ins / "20.toml").write_text('size = "3G"\n[scratch]\npackages = ["less"]\n')
    (drop_ins / "10.toml").write_text(
        'size = "2G"\n[card]\nlogin = "me"\n[scratch]\npackages = ["vim"]\ncmdline = "debug"\nscript = "false"\n'
        '[[scratch.file]]\npath = "/x"\ntext = ""\n'
    )
    (drop_ins / "30.txt").write_text("nothing to us")
    made = load(folder)
    assert made.options.packages == ("bash", "vim", "less", "linux-image-amd64")
    assert (made.size, made.card.login, made.card.memory) == (3 << 30, "me", 512 << 20)
    assert (made.options.cmdline, made.options.script) == ("quiet debug", "false")
    assert [file.path for file in made.options.files] == ["/etc/motd", "/x"]


def test_drop_ins_also_apply_where_their_recipe_is_extended(folder: Path, drop_ins: Path) -> None:
    (drop_ins / "1.toml").write_text('[scratch]\npackages = ["vim"]\n')
    assert load(folder, 'extend = "base"').options.packages == ("bash", "vim", "linux-image-amd64")


def test_a_mistake_in_a_drop_in_names_the_drop_in(folder: Path, drop_ins: Path) -> None:
    (drop_ins / "1.toml").write_text('[scratch]\npackage = ["vim"]\n')
    error = mistake(folder)
    assert "base.d/1.toml:2:1: unknown key 'package'" in error.message
    assert error.hint == "did you mean 'packages'?"
    (drop_ins / "1.toml").write_text('extend = "base"')
    assert "1.toml:1:1: a drop-in cannot extend" in mistake(folder).message


def test_drop_ins_without_a_recipe_are_an_error(folder: Path) -> None:
    (folder / "other.d").mkdir()
    with pytest.raises(UsageError, match=r"other.d has drop-ins for a recipe 'other' that does not exist"):
        sources.find("other")


# -- profiles


PROFILES = """
extend = "base"
[profile.debug]
size = "2G"
packages = ["strace"]
cmdline = "debug"
card = { memory = "1G" }
[[profile.debug.file]]
path = "/etc/debug"
text = "yes"
"""


def test_a_profile_adds_to_the_table_of_the_kind(folder: Path) -> None:
    made = load(folder, PROFILES, profile="debug")
    assert made.options.packages == ("bash", "strace", "linux-image-amd64")
    assert made.options.cmdline == "quiet debug"
    assert [file.path for file in made.options.files] == ["/etc/motd", "/etc/debug"]
    assert (made.card.memory, made.size) == (1 << 30, 2 << 30)


def test_a_profile_applies_only_if_it_is_chosen(folder: Path) -> None:
    assert load(folder, PROFILES).options == load(folder).options


def test_an_unknown_profile_is_named_with_those_there_are(folder: Path) -> None:
    assert mistake(folder, PROFILES, profile="debgu").hint == "the recipe has debug"
    assert mistake(folder, profile="debug").hint == "the recipe has no profiles"


def test_a_mistake_in_a_profile_is_named_with_its_place(folder: Path) -> None:
    text = 'extend = "base"\n[profile.debug]\npackage = []\n'
    assert "mine.toml:3:1: unknown key 'package'" in mistake(folder, text, profile="debug").message


# -- variables


VARS = """
extend = "base"
[vars]
release = "bookworm"
disk = 2
fresh = true
[scratch]
suite = "@release@"
updates = "@fresh@"
script = 'echo ${release} @release@-@disk@ @fresh@ me@example.org @other@'
"""


def test_variables_are_replaced_as_whole_words(folder: Path) -> None:
    options: Options = load(folder, VARS).options
    assert (options.suite, options.updates) == ("bookworm", True)
    assert options.script == "echo ${release} bookworm-2 true me@example.org @other@"


def test_variables_can_be_set(folder: Path) -> None:
    options: Options = load(folder, VARS, release="trixie", disk="-7", fresh="false").options
    assert (options.suite, options.updates) == ("trixie", False)
    assert options.script == "echo ${release} trixie--7 false me@example.org @other@"


def test_values_of_variables_are_not_expanded(folder: Path) -> None:
    text = 'extend = "base"\n[vars]\na = ""\nb = ""\n[scratch]\nscript = "@a@ and @b@"\n'
    assert load(folder, text, a="@b@", b="x").options.script == "@b@ and x"


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"relaese": "x"}, "there is no variable 'relaese'", "did you mean 'release'?"),
        ({"disk": "two"}, "--set disk=two: it must be a whole number", ""),
        ({"fresh": "yes"}, "--set fresh=yes: it can be true or false", ""),
    ],
)
def test_only_declared_variables_can_be_set_and_to_their_own_type(
    folder: Path, values: dict[str, str], message: str, hint: str
) -> None:
    error = mistake(folder, VARS, **values)
    assert message in error.message
    assert error.hint == hint


def test_a_recipe_without_variables_says_so(folder: Path) -> None:
    assert "declares none" in mistake(folder, disk="1").hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[vars]\na = [1]", "mine.toml:3:1: the variable a must be a string"),
        ("[vars]\na-b = 1", "mine.toml:3:1: 'a-b' is not a name for a variable"),
        ('[vars]\nrelease = "1"\n[scratch]\nsuite = "@relase@"', "mine.toml:5:1: @relase@ is not a variable"),
    ],
)
def test_a_mistake_with_variables_is_named_with_its_place(folder: Path, text: str, message: str) -> None:
    assert message in mistake(folder, f'extend = "base"\n{text}').message


# -- finding


def test_a_path_is_not_looked_up_as_a_name(folder: Path) -> None:
    assert sources.find("no-such-recipe") is None
    assert sources.find("../base") is None


def test_obuild_comes_with_its_recipes() -> None:
    assert {"debian-12", "micro"} <= set(sources.names())
