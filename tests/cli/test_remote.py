"""push, pull and remote on the command line. No guest boots."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.plan.steps import Chain
from obuild.remotes import names, trust
from obuild.store.layers import Store
from tests.support import odd
from tests.support.fakes import packed
from tests.support.layers import make_all, save


class Shared:
    """The program with two stores, of which the first has three layers, and a remote that is a folder."""

    def __init__(self, folder: Path, store: Store, ids: list[str]) -> None:
        self.store, self.ids = store, ids
        self.folder = folder / "remote"
        self.name = f"dir:{self.folder}"
        self.other = Store.open(folder / "other")

    def __call__(self, *args: str, code: int = 0, other: bool = False) -> str:
        """Run a command; return its stdout and stderr. `remote` needs no store."""
        store = [] if args[0] == "remote" else [f"--store=qemu:{(self.other if other else self.store).root}"]
        ended, out, err = odd.run([*args, *store])
        assert "Traceback" not in err, err
        assert ended == code, out + err
        return out + err


@pytest.fixture
def obuild(store: Store, chain: Callable[[str], Chain], tmp_path: Path) -> Shared:
    return Shared(tmp_path, store, [*make_all(store, chain("(run (shell one)) (run (shell two))"))])


def test_a_tag_travels_with_its_layers(obuild: Shared) -> None:
    _, one, two = obuild.ids
    obuild("tag", two, "team/web_1:2")
    said = obuild("push", "team/web_1:2", obuild.name)
    assert said.startswith(f"{two} sha256:")
    assert said.count("were sent") == 3
    assert obuild("push", "team/web_1:2", obuild.name).count("were sent") == 0
    said = obuild("pull", "team/web_1:2", obuild.name, other=True)
    assert said.splitlines()[0] == two
    assert said.splitlines()[2:] == [f"obuild: {id[:12]} is here now" for id in obuild.ids]
    assert obuild.other.tags.get("team/web_1:2") == two
    assert obuild("logs", one, other=True) == obuild("logs", one)
    ops = [line.rpartition("  ")[2] for line in obuild("ls", other=True).splitlines()]
    assert len(ops) == 3


def test_layers_are_pulled_by_the_first_digits(obuild: Shared) -> None:
    _, one, two = obuild.ids
    obuild("push", two, obuild.name)
    assert obuild("pull", one[:8], obuild.name, other=True).startswith(f"{one}\n")
    assert set(obuild.other.ids()) == set(obuild.ids[:2])
    assert obuild("pull", one, obuild.name, other=True) == f"{one}\n", "nothing is fetched again"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("push", "{two}"), "push needs a layer and a remote"),
        (("push", "{name}"), "push needs a layer and a remote"),
        (("push", "nothing", "{name}"), "no layer has the id or the tag 'nothing'"),
        (("pull", "nothing", "{name}"), "has no layer with the id or the tag 'nothing'"),
        (("pull", "abc", "{name}"), "has no layer with the id or the tag 'abc'"),
        (("pull", "{two}", "{name}"), "has no layer with the id or the tag"),
        (("pull", "x", "ftp://x"), "pull needs a layer and a remote"),
        (("pull", "x", "oci://nothing"), "does not begin with the host of a registry"),
        (("pull", "x", "oci://host/name:tag"), "has a tag"),
        (("pull", "x", "s3://x"), "cannot be a bucket"),
        (("pull", "x", "dir:{file}"), "is not a folder"),
        (("push", "{two}", "dir:{store}"), "is neither empty nor an OCI image layout"),
        (("remote", "rm", "{two}", "{name}"), "has no layer"),
        (("remote", "gc", "{name}", "--older-than=soon"), "--older-than: 'soon' is not a duration"),
    ],
)
def test_mistakes_are_named(obuild: Shared, tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    (tmp_path / "file").touch()
    words = {"two": obuild.ids[2], "name": obuild.name, "file": tmp_path / "file", "store": obuild.store.root}
    assert message in obuild(*(arg.format(**words) for arg in args), code=2)
    assert not obuild.other.ids()


def test_a_remote_is_listed_and_cleaned(obuild: Shared) -> None:
    root, one, two = obuild.ids
    obuild("tag", one, "web")
    obuild("push", two, "web", obuild.name)
    listed = obuild("remote", "ls", obuild.name).splitlines()
    assert [line[:12] for line in listed[:3]] == [id[:12] for id in obuild.ids]
    assert "[web]" in listed[1]
    assert listed[3].startswith("3 layers, ")
    records = json.loads(obuild("remote", "ls", "--json", obuild.name))
    assert [record["parent"] for record in records] == [None, root, one]
    assert [record["tags"] for record in records] == [["base/tiny"], ["web"], []]
    assert "Would remove 1 layer" in obuild("remote", "gc", "--keep-bytes=1", "--dry-run", obuild.name)
    assert "the tags web, base/tiny would lose their layers" in obuild(
        "remote", "rm", root[:9], obuild.name, code=1
    )
    assert obuild("remote", "gc", "--keep-bytes=1", obuild.name) == f"Removing {two}\nRemoved 1 layer\n"
    assert obuild("remote", "gc", "--older-than=1d", obuild.name) == "Removed 0 layers\n"
    obuild("remote", "rm", "web", "base/tiny", obuild.name)
    assert obuild("remote", "rm", root, obuild.name) == f"Removing {one}\nRemoving {root}\n"
    assert obuild("remote", "ls", obuild.name) == "0 layers, 0 B\n"


def test_caches_travel_if_asked_for(obuild: Shared) -> None:
    archive = packed({"x": b"y" * 5_000_000})
    save(obuild.store, "apt/archives", archive)
    save(obuild.store, "empty", packed({}))
    obuild("push", "--caches", obuild.name)
    save(obuild.other, "apt/archives", packed({"old": b""}))
    said = obuild("pull", "--caches", obuild.name, other=True)
    assert said.count("is here now") == 2
    assert obuild.other.caches.file("apt/archives").read_bytes() == archive


@pytest.mark.parametrize("name", ["web", "a_b", "a_s", "team/web:1.2", "a__s_c"])
def test_a_tag_has_one_name_in_a_registry(name: str) -> None:
    tag = names.tag_of(name)
    assert names.name_of(tag) == name
    assert not {"/", ":"} & set(tag)


def test_what_is_no_tag_of_a_user_is_not_taken_for_one() -> None:
    assert not any(map(names.name_of, ("a_b", "f" * 64, "sha256-abc.sig_", "_x")))


def test_signed_layers_are_pulled_with_their_key(obuild: Shared, tmp_path: Path) -> None:
    root, _, two = obuild.ids
    key, public = str(tmp_path / "our.key"), str(tmp_path / "our.key.pub")
    assert trust.make(tmp_path / "our.key") == Path(public)
    obuild("tag", two, "web")
    obuild("push", "web", obuild.name)
    assert "is not signed" in obuild("pull", "--trust", public, "web", obuild.name, code=1, other=True)
    assert "is not signed" in obuild("pull", "--trust", public, root, obuild.name, code=1, other=True)
    assert obuild.other.ids() == []
    assert "is not a private key" in obuild("push", "--sign", public, "web", obuild.name, code=2)
    obuild("push", "--sign", key, "web", obuild.name)
    assert "without a signature" not in obuild("pull", "--trust", public, "web", obuild.name, other=True)
    assert obuild("remote", "ls", obuild.name).count("\n") == 4


def test_the_first_pull_without_a_key_says_so(obuild: Shared) -> None:
    obuild("push", obuild.ids[0], obuild.name)
    told = "are believed without a signature"
    assert told in obuild("pull", obuild.ids[0], obuild.name, other=True)
    assert told not in obuild("pull", obuild.ids[0], obuild.name, other=True)
    assert obuild("fsck", other=True)
