"""Files that are not obuild's: a store is only created where there are none, and ignores those that come later."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.host import failpoints, qemu_img
from obuild.host.fs import discard
from obuild.plan.keys import LayerId
from obuild.store import fsck, parts
from obuild.store.layers import Store
from obuild.store.usage import no_space
from tests.support import forked, odd
from tests.support.snapshots import looks

ID = "a" * 64

Run = Callable[..., tuple[int, str]]

#: Read-only commands, and those that create a store. FILE is a disk, SPEC a spec, SOURCE a folder.
LOOK = (
    ("ls",),
    ("logs", ID),
    ("inspect", ID),
    ("plan", "-f", "SPEC", "SOURCE"),
    ("df",),
    ("base", "ls"),
    ("base", "rm", "tiny"),
    ("cache", "ls"),
    ("cache", "rm", "c"),
    ("cache", "export", "c", "OUT"),
    ("fsck",),
    ("fsck", "--repair"),
    ("prune",),
    ("prune", "--dry-run"),
    ("prune", "--before=1d"),
    ("rm", ID),
    ("clean",),
    ("tag", "ls"),
    ("history",),
    ("tag", "rm", "web"),
    ("tag", ID, "web"),
    ("run", ID, "--", "true"),
    ("shell", ID),
    ("cp", f"{ID}:/x", "OUT"),
)
MAKE = (
    ("build", "-f", "SPEC", "SOURCE"),
    ("base", "add", "FILE", "--name=tiny"),
    ("base", "make", "micro"),
    ("cache", "import", "c", "FILE"),
    ("healthcheck",),
)

#: All folders of obuild in a store.
FOLDERS = (*parts.PARTS, *parts.LATER)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with somebody's work."""
    folder = tmp_path / "project"
    for name in ("result-tmp", "cache-tmp", "src"):
        (folder / name).mkdir(parents=True)
        (folder / name / "precious").write_text("precious")
    (folder / "README").write_text("my project\n")
    return folder


@pytest.fixture
def words(tmp_path: Path, qcow2_disk: Path) -> dict[str, str]:
    (tmp_path / "source").mkdir(exist_ok=True)
    (tmp_path / "test.spec").write_text("((from tiny) (run (shell true)))")
    return {
        "SPEC": str(tmp_path / "test.spec"),
        "SOURCE": str(tmp_path / "source"),
        "FILE": str(qcow2_disk),
        "OUT": str(tmp_path / "out"),
    }


@pytest.fixture
def run(words: dict[str, str]) -> Run:
    """Run a command on a store; returns its exit code and output. There must be no traceback."""

    def run(store: Path | str, *command: str, cwd: Path | None = None) -> tuple[int, str]:
        args = [words.get(word, word) for word in command]
        count = 2 if command[0] in ("base", "cache") else 1
        args.insert(count, f"--store=qemu:{store}")
        done = forked.run(args, module="tests.support.fake_obuild", cwd=cwd, limit=odd.LIMIT)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    return run


# -- where a store can be created


@pytest.mark.parametrize("create", [True, False])
def test_a_folder_with_other_files_is_refused_and_not_changed(project: Path, create: bool) -> None:
    before = looks(project)
    with pytest.raises(UsageError, match="is not a store") as caught:
        Store.open(project, create=create)
    if create:
        assert "it contains README, cache-tmp, result-tmp and 1 more" in caught.value.message
        assert f"--store=qemu:{project}/store" in caught.value.hint
    assert looks(project) == before


@pytest.mark.parametrize("command", [*MAKE, ("base", "ls"), ("ls",)])
def test_the_program_refuses_it_with_exit_code_2(project: Path, run: Run, command: list[str]) -> None:
    before = looks(project)
    code, said = run(".", *command, cwd=project)
    assert (code, "is not a store" in said) == (2, True), said
    assert looks(project) == before


@pytest.mark.parametrize("name", ["x", ".hidden", "result", "state", "cache", "README", "line\nbreak"])
def test_one_other_file_is_enough(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match="is not a store, and not empty") as caught:
        Store.open(tmp_path)
    assert "\n" not in caught.value.message
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("name", ["result", "result-tmp", "cache", "cache-tmp", "state", "state/locks"])
def test_a_non_empty_folder_with_our_name_is_not_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / ID).write_text("precious")
    with pytest.raises(UsageError, match="is not a store, and not empty"):
        Store.open(tmp_path)
    assert (tmp_path / name / ID).read_text() == "precious"


def test_a_store_can_be_created_in_a_new_or_empty_folder_and_on_a_new_file_system(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    for name in ("a/new", "empty", "disk"):
        Store.open(tmp_path / name)
        assert Store.open(tmp_path / name, create=False).layers() == []
        assert (tmp_path / name / "README").read_text().startswith("This is a store of obuild")
        assert (tmp_path / name / "CACHEDIR.TAG").read_text().startswith("Signature: ")


def test_a_store_can_be_created_around_a_users_base_images(tmp_path: Path) -> None:
    (tmp_path / "base-image").mkdir()
    (tmp_path / "base-image" / "mine.qcow2").write_text("precious")
    Store.open(tmp_path)
    assert (tmp_path / "base-image" / "mine.qcow2").read_text() == "precious"


def test_a_store_with_missing_parts_is_a_store(store: Store) -> None:
    for name in ("state", "cache", "CACHEDIR.TAG"):
        discard(store.root / name)
    assert Store.open(store.root, create=False).caches.archives() == {}
    discard(store.root / "README")
    assert Store.open(store.root, create=False).ids() == []


def test_another_readme_is_never_replaced(store: Store) -> None:
    (store.root / "README").write_text("mine")
    Store.open(store.root)
    assert (store.root / "README").read_text() == "mine"


@pytest.mark.parametrize("count", range(1, len(parts.PARTS) + 1))
def test_interrupted_while_a_store_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Here the process is only interrupted, at each part in turn; tests/store/test_crashes.py kills it."""

    def interrupt(point: str) -> None:
        nonlocal count
        count -= point == "store.making"
        if not count:
            raise KeyboardInterrupt

    root = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "reach", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Store.open(root)
    assert Store.open(root).layers() == []
    assert list(fsck.check(Store(root))) == []


def test_the_files_that_identify_a_store_may_be_incomplete(store: Store) -> None:
    """Killed between creating a file and writing to it."""
    (store.root / "README").write_text("")
    Store.open(store.root)
    assert (store.root / "README").read_text().startswith("This is a store of obuild")


def test_read_only_commands_create_nothing(tmp_path: Path, run: Run) -> None:
    for root in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for command in LOOK:
            code, said = run(root, *command)
            assert (code, "is not a store" in said) == (2, True), (command, said)
            assert not (tmp_path / "none").exists()
            assert list((tmp_path / "empty").iterdir()) == []


# -- links


def test_a_store_may_be_reached_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    store = Store.open(tmp_path / "link")
    assert store.root == tmp_path / "disk"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError, match="the store"):
        Store.open(tmp_path / "loop")


@pytest.mark.parametrize("part", FOLDERS)
def test_a_part_that_is_a_symlink_is_refused_and_its_target_is_not_touched(
    store: Store, tmp_path: Path, part: str, run: Run
) -> None:
    victim = tmp_path / "victim"
    for name in (ID, "c-x", f"0-c-{ID}", "precious", ".x.part", "x.lock"):
        (victim / name).mkdir(parents=True)
        (victim / name / "precious").write_text("precious")
    before = looks(victim)
    discard(store.root / part)
    (store.root / part).symlink_to(victim)
    for command in (("ls",), ("fsck", "--repair"), ("prune",), ("base", "add", "FILE", "--name=tiny"), ("clean",)):
        code, said = run(store.root, *command)
        assert (code, "is a symlink but must be a folder" in said) == (2, True), said
    assert looks(victim) == before


def test_a_folder_that_becomes_a_symlink_is_not_swept(store: Store, tmp_path: Path) -> None:
    """However the store was opened: removals follow no symlinks."""
    (tmp_path / "victim" / ID).mkdir(parents=True)
    discard(store.result_tmp)
    store.result_tmp.symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="Not a directory"):
        store.sweep()
    with pytest.raises(Exception, match="cannot remove"):
        discard(store.result_tmp / ID)
    assert (tmp_path / "victim" / ID).is_dir()


# -- other files among ours

#: For each folder that is swept, a name that obuild gives there, and one that it does not.
SWEPT = (
    ("result-tmp", ID, "notes"),
    ("result-tmp", f"flat-{ID}", "flat-x"),
    ("cache-tmp", "0-c-x", "c-x"),
    ("cache-tmp", f"7-scratch-{'a' * 12}", "scratch"),
    ("warm-tmp", "0-machine", "machine"),
    ("warm-tmp", "gone-17", "gone"),
)


@pytest.mark.parametrize(("part", "ours", "theirs"), SWEPT)
def test_a_sweep_removes_only_files_of_obuild(store: Store, part: str, ours: str, theirs: str) -> None:
    for name in (ours, theirs):
        (store.root / part / name / "inside").mkdir(parents=True)
    Store.open(store.root)
    assert [path.name for path in (store.root / part).iterdir()] == [theirs]
    (found,) = fsck.check(store)
    assert (found.where, found.repair) == (f"{part}/{theirs}", "move it to lost+found/")
    assert fsck.repair(store, found) == "repaired"
    assert (store.root / "lost+found" / theirs / "inside").is_dir()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *((part, ours) for part, ours, _ in SWEPT),
        ("result", ID),
        ("flat", ID),
        ("warm", ID),
        ("cache", "c-x"),
        ("cache/c-x", "cache.tar"),
        ("base-image", ".x.part"),
        ("base-image", ".x.ready"),
        ("state", "digests.json"),
        ("state/locks", "x.lock"),
        ("state/manifests", f"{ID}-{'b' * 32}.json"),
        ("state/db", "db.sqlite"),
        ("state/ssh", "id_ed25519"),
    ],
)
def test_a_repair_moves_a_symlink_and_not_its_target(store: Store, tmp_path: Path, part: str, name: str) -> None:
    victim = tmp_path / "victim"
    (victim / "inside").mkdir(parents=True)
    (victim / "cache.tar").write_text("precious")
    (victim / "link").write_text("precious")
    before = looks(victim)
    (store.root / part).mkdir(parents=True, exist_ok=True)
    (store.root / part / name).symlink_to(victim)
    Store.open(store.root)
    assert (store.root / part / name).is_symlink(), "a sweep leaves it"
    for finding in fsck.check(store, read_data=True):
        assert fsck.repair(store, finding) == "repaired", finding
    assert (store.root / "lost+found" / name).readlink() == victim
    assert list(fsck.check(store, read_data=True)) == []
    assert looks(victim) == before


def test_a_staged_folder_without_an_image_replaces_nothing(store: Store, tiny: Path) -> None:
    (store.base_image / ".tiny.ready").mkdir()
    Store.open(store.root)
    assert tiny.exists()
    (found,) = fsck.check(store)
    assert (found.where, fsck.repair(store, found)) == ("base-image/.tiny.ready", "repaired")


# -- damaged files


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> odd.Yard:
    return odd.make_yard(tmp_path_factory.mktemp("yard"))


#: One of each kind of file and folder in a store; `python -m tests.support.odd` tries all, with all damages and
#: all commands.
PLACES = (
    "README",
    "format",
    "base-image/tiny.img",
    "base-image/tiny.toml",
    "cache/c-c/cache.tar",
    "cache/c-c",
    "result/ID",
    "result/ID/key",
    "result/ID/log",
    "result/ID/mtree",
    "result/ID/rootfs/image.qcow2",
    "state/accel.json",
    "state/db/db.sqlite",
    "state/digests.json",
    "state/qemu.json",
    "state/runc.json",
    "state/ssh/id_ed25519",
)
LOOKS = [look for look in odd.LOOKS if look[0] not in ("fsck", "history", "watch")]  # slow, or only read records
QUICK = (*LOOKS, odd.CHANGES[1], ("run", "ID", "--", "true"), ("fsck", "--repair"), ("clean",))


@pytest.mark.parametrize("damage", [odd.pipe, odd.folder, odd.link_to_folder], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_commands_end_cleanly_and_change_nothing_elsewhere(yard: odd.Yard, place: str, damage: odd.Damage) -> None:
    place = place.replace("ID", yard.words()["ID"])
    assert odd.troubles(yard, place, damage, QUICK, again=False) == []


@pytest.mark.parametrize("name", ["tiny.toml", "tiny.img"])
def test_a_base_image_that_is_not_a_file_is_only_reported(store: Store, tiny: Path, name: str) -> None:
    os.mkfifo(store.base_image / name)
    (store.base_image / "tiny.vmlinuz").mkdir()
    found = {finding.where: (finding.what, finding.repair) for finding in fsck.check(store)}
    assert found["base-image/tiny.vmlinuz"] == ("it is a folder that leads to no file", "")
    assert found[f"base-image/{name}"] == ("it is a named pipe that leads to no file", "")


def test_a_named_pipe_in_a_chain_of_images_does_not_block(store: Store, qcow2_disk: Path) -> None:
    """QEMU opens all images of a chain to check one."""
    os.mkfifo(store.root / "pipe")
    image = store.root / "image.qcow2"
    qemu_img.create_overlay(image, "pipe", size=1 << 20)
    with pytest.raises(UsageError, match="pipe: it is a named pipe, not a file"):
        qemu_img.check(image)


# -- where a store may be


def test_another_users_layer_is_used_although_its_last_use_cannot_be_set(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    (store.result / ID).mkdir()
    monkeypatch.setattr(os, "utime", refuse)
    with store.use(LayerId(ID)) as layer:
        assert layer is not None


def test_a_file_system_without_free_inodes_is_reported_as_such(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = os.statvfs(store.root)
    none = os.statvfs_result((*now[:6], 0, 0, *now[8:]))
    monkeypatch.setattr(os, "statvfs", lambda path: none)
    assert "cannot hold more files" in no_space(store.root, "full").hint


@pytest.mark.parametrize(
    "name",
    [
        b"a,b",
        b"a:b",
        b"a%20b",
        b"line\nbreak",
        b"a b",
        b"x" * 200,
        b"caf\xe9\xff",
        b"'q\"$(x)`;",
        b"-dash",
        b"*?[",
        b"a\\b",
    ],
)
def test_a_store_may_have_any_name(yard: odd.Yard, tmp_path: Path, name: bytes) -> None:
    root = tmp_path / os.fsdecode(name)
    for command in (("base", "add", "DISK", "--name=tiny"), odd.BUILD, ("ls",), ("base", "ls"), ("clean",)):
        code, _, said = yard.command(root, command)
        assert (code, "Traceback" in said) == (0, False), said
