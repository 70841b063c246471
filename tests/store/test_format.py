"""The format of a store: newer stores are refused untouched, and those of development versions can be used."""

from __future__ import annotations

import errno
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.bases import catalog
from obuild.builder import inside, preview, provision
from obuild.builder.chain import Builder
from obuild.errors import UsageError
from obuild.plan.steps import Chain
from obuild.spec import UnixUser, parse
from obuild.store import format, fsck, gc, inspect, removal
from obuild.store.index import Index
from obuild.store.layers import Store
from tests.support import odd
from tests.support.fakes import FakeExecutor, Heard, Run
from tests.support.old_store import as_development_version
from tests.support.snapshots import looks

OPS = """(user (uid 7) (gid 8)) (env A 1) (workdir /w)
         (copy (src file) (dst /got))
         (run (cache (c (target /c))) (shell "make"))"""


def built(store: Store, chain: Chain, executor: FakeExecutor) -> None:
    Builder(store, lambda: executor, Heard().tell).build(chain)


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as opened:
        return opened.getnames()


def fill_cache(run: Run) -> int:
    (cache,) = run.caches
    with tarfile.open(run.new(cache), "w") as archive:
        archive.addfile(tarfile.TarInfo("./filled"))
    return 0


@pytest.fixture
def old(store: Store, chain: Callable[[str], Chain], tmp_path: Path) -> Chain:
    """Layers of a development version in the store: a base, a copy, and a command that filled a cache."""
    (tmp_path / "source" / "file").write_text("file")
    with as_development_version(store):
        made = chain(OPS)
        built(store, made, FakeExecutor({"make": fill_cache}))
        assert all(step.key.startswith("((format 1)(executor qemu)") for step in made.steps)
    return made


# -- the file


def test_a_new_store_has_a_format(store: Store) -> None:
    assert (store.root / "format").read_text() == f"{format.FORMAT}\n"
    assert (store.root / "format").stat().st_mode & 0o777 == 0o644
    assert list(fsck.check(store)) == []


def test_a_store_without_a_format_gets_one_from_commands_that_write(store: Store) -> None:
    (store.root / "format").unlink()
    assert list(fsck.check(Store.open(store.root, create=False))) == []
    assert not (store.root / "format").exists()
    Store.open(store.root)
    assert (store.root / "format").read_text() == f"{format.FORMAT}\n"


def test_the_format_of_a_newer_version_that_comes_meanwhile_is_not_replaced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.root / "format"
    path.unlink()
    seen = iter([False])  # the first check finds none: then the newer version writes its own

    def exists(self: Path) -> bool:
        if self == path and not next(seen, True):
            path.write_text("9")
            return False
        return os.path.exists(self)  # noqa: PTH110  # the function that is patched

    monkeypatch.setattr(Path, "exists", exists)
    with pytest.raises(UsageError, match="has format 9"):
        Store.open(store.root)
    assert path.read_text() == "9"


@pytest.mark.parametrize("text", ["2", "2\n", "10", "999999999"])
def test_the_error_for_a_newer_format_says_what_to_do(store: Store, text: str) -> None:
    (store.root / "format").write_text(text)
    with pytest.raises(UsageError, match=f"has format {int(text)}, but .* only supports up to 1$") as caught:
        Store.open(store.root)
    assert "newer version of obuild" in caught.value.hint


def garbage(path: Path) -> None:
    path.write_bytes(b"\xffnumber\0")


def link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("1\n")
    path.symlink_to("elsewhere")


BAD: list[Callable[[Path], object]] = [
    lambda path: path.write_text("2\n"),  # newer
    garbage,
    lambda path: path.write_text(""),
    lambda path: path.write_text("1\n1\n"),
    lambda path: path.write_text("0"),
    lambda path: path.write_text("-1"),
    lambda path: path.write_text("9" * 1000),
    lambda path: path.mkdir(),
    os.mkfifo,
    link,
    lambda path: path.symlink_to(path.name),
    lambda path: path.symlink_to("/dev/zero"),
]


@pytest.mark.parametrize("make", BAD)
@pytest.mark.parametrize("create", [True, False])
def test_a_store_with_another_format_is_refused_and_not_changed(
    store: Store, make: Callable[[Path], object], create: bool
) -> None:
    (store.root / "format").unlink()
    make(store.root / "format")
    (store.result_tmp / ("a" * 64)).mkdir()  # a sweep would remove it
    (store.root / "cache").rmdir()  # a missing part would be created
    before = looks(store.root)
    with pytest.raises(UsageError, match=r"has format 2|cannot tell the format of the store") as caught:
        Store.open(store.root, create=create)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert looks(store.root) == before


def test_a_format_that_cannot_be_read_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(format, "open_file", refuse)
    with pytest.raises(UsageError, match="format: Permission denied"):
        Store.open(store.root)


# -- a store of a development version


def test_an_old_store_is_sound_and_can_be_read(store: Store, old: Chain) -> None:
    opened = Store.open(store.root, create=False)
    assert list(fsck.check(opened, read_data=True)) == []
    listed, more = inspect.listing(opened, None)
    assert ({each.id for each in listed}, more) == ({step.id for step in old.steps}, 0)
    (base, copy, command) = (inspect.describe(opened, step.id) for step in old.steps)
    assert base.key["base"] == f"sha256:{old.base.digest}"
    assert copy.key["copy"] == "/"
    assert [neighbour.id for neighbour in command.parents] == [copy.id, base.id]
    where = inside.command(opened, command.id, "linux", ("x",), network=False)
    assert (where.cwd, where.user, where.env) == ("/w", UnixUser(7, 8), (("A", "1"),))
    assert provision.base_below(opened, command.id).digest == old.base.digest
    assert opened.parents() == {step.id: step.parent for step in old.steps}


def test_an_index_can_be_made_for_an_old_store(store: Store, old: Chain) -> None:
    with Index(store) as index:
        index.rebuild()
        assert {id: kin.parent for id, kin in index.all_kin().items()} == {
            step.id: step.parent for step in old.steps
        }


def test_old_layers_are_rebuilt_with_the_same_base_and_caches(
    store: Store, old: Chain, chain: Callable[[str], Chain]
) -> None:
    found: list[bool] = []

    def look(run: Run) -> int:
        found.append(names(run.caches[0]) == ["./filled"])
        return 0

    again = chain(OPS)
    assert again.base.digest == old.base.digest
    assert not {step.id for step in again.steps} & {step.id for step in old.steps}
    built(Store.open(store.root), again, FakeExecutor({"make": look}))
    assert found == [True]
    assert list(fsck.check(store)) == []
    assert len(store.ids()) == 2 * len(old.steps)


def test_the_plan_explains_why_an_old_layer_is_not_used(store: Store, old: Chain, tmp_path: Path) -> None:
    stage = parse(f"((from tiny) {OPS})".encode())
    ((_, _, (base, *_)),) = preview.forecast(stage, source=tmp_path / "source", store=store, secrets=())
    assert base.nearest == old.steps[0].id
    assert base.why == ("the format of keys changed: 1 → 2", "the executor is no longer part of the key")


def test_an_old_store_can_be_pruned_collected_and_exported_from(store: Store, old: Chain, tmp_path: Path) -> None:
    base, copy, command = (step.id for step in old.steps)
    opened = Store.open(store.root, create=False)
    opened.caches.export("c", tmp_path / "c.tar")
    assert names(tmp_path / "c.tar") == ["./filled"]
    plan = gc.prune(opened, before=time.time() + 60, limit=1)
    assert [item.name for item in plan.items] == [command]  # from the leaves: its parent is read from its key
    assert gc.carry_out(opened, plan, lambda item: None) == []
    assert removal.delete(opened, base, tell=lambda id: None) == []
    assert opened.ids() == []
    assert copy not in opened.parents()
    assert list(fsck.check(opened)) == []
    assert catalog.listing(opened)[0].name == "tiny"


@pytest.mark.parametrize(
    "command",
    [
        ("ls",),
        ("logs", "ID"),
        ("inspect", "ID"),
        ("df",),
        ("prune", "--dry-run"),
        ("fsck",),
        ("base", "ls"),
        ("prune",),
    ],
)
def test_commands_work_on_an_old_store_and_refuse_a_newer_one(
    store: Store, old: Chain, command: tuple[str, ...]
) -> None:
    args = [old.steps[-1].id if word == "ID" else word for word in command]
    args.insert(2 if args[0] == "base" else 1, f"--store=qemu:{store.root}")
    code, _, said = odd.run(args)
    assert (code, said) == (0, "")
    assert not (store.root / "format").exists()
    (store.root / "format").write_text("7\n")
    before = looks(store.root)
    code, out, said = odd.run(args)
    assert (code, out) == (2, "")
    assert "has format 7" in said
    assert "Traceback" not in said
    assert looks(store.root) == before


@pytest.mark.parametrize("call", ["link", "chmod"])
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_links_or_permissions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(UsageError, match="lacks hard links or permissions") as refused:
            Store.open(tmp_path / "store")
    assert "ext4" in refused.value.hint
    assert os.listdir(tmp_path / "store" / "state" / "locks") == []
    store = Store.open(tmp_path / "store")  # it was moved to a better file system
    assert (store.root / "format").read_text() == f"{format.FORMAT}\n"
    assert list(fsck.check(store)) == []
