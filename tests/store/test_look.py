"""Read-only commands change nothing in a store, and work on a read-only one."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.host import locks
from obuild.host.fs import discard
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store.index import Index
from obuild.store.layers import Store
from tests.support import odd
from tests.support.layers import make_all
from tests.support.snapshots import looks

ChainMaker = Callable[[str], Chain]

#: Read-only commands. ID is a layer, SPEC a spec, SOURCE a folder.
LOOKS = (
    ("ls",),
    ("ls", "--json"),
    ("logs", "ID"),
    ("inspect", "ID"),
    ("inspect", "web"),
    ("plan", "-f", "SPEC", "SOURCE"),
    ("df",),
    ("base", "ls"),
    ("cache", "ls"),
    ("tag", "ls"),
    ("history",),
    ("watch",),
    ("prune", "--all", "--dry-run"),
    ("fsck", "--read-data"),
)


@pytest.fixture
def ids(store: Store, chain: ChainMaker, tmp_path: Path) -> list[LayerId]:
    """The layers of a store that also has a cache, a tag, and a draft without an owner."""
    made = make_all(store, chain("(run (shell one)) (run (shell two))"))
    with Index(store) as index:
        index.add(made[2], made[1], "/: (run (shell two))", 1000.0, 2.5)
    store.caches.file("old").parent.mkdir()
    store.caches.file("old").write_bytes(bytes(10240))
    store.tag(made[1], "web")
    (store.result_tmp / ("e" * 64)).mkdir()
    (tmp_path / "test.spec").write_text("((from tiny) (run (shell one)) (run (shell three)))")
    return made


def run(root: Path, command: tuple[str, ...], id: str, folder: Path, code: int = 0) -> str:
    words = {"ID": id, "SPEC": str(folder / "test.spec"), "SOURCE": str(folder / "source")}
    where = f"--store=qemu:{root}"
    ended, out, err = odd.run([*(words.get(word, word) for word in command), where])
    assert "Traceback" not in err
    assert ended == code, out + err
    return out


@pytest.fixture
def mounted(store: Store, ids: list[LayerId], tmp_path: Path) -> Iterator[Path]:
    """The store, mounted read-only at another place."""
    place = tmp_path / "mounted"
    place.mkdir()
    for options in (["--bind", str(store.root), str(place)], ["-o", "remount,bind,ro", str(place)]):
        if subprocess.run(["mount", *options], check=False, capture_output=True).returncode:
            subprocess.run(["umount", place], check=False, capture_output=True)
            pytest.skip("mount(8) cannot mount a folder read-only here: it takes root, and CAP_SYS_ADMIN")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("database", ["closed", "open elsewhere", "missing", "damaged", "laid out otherwise"])
def test_a_read_only_store_can_be_read(
    store: Store, ids: list[LayerId], mounted: Path, tmp_path: Path, database: str
) -> None:
    path = store.state / "db" / "db.sqlite"
    with Index(store) as index:
        if database == "laid out otherwise":
            index._db.execute("PRAGMA user_version=77")
    if database == "damaged":
        path.write_bytes(path.read_bytes()[:4096] + b"x" * 8192)
    elif database == "missing":
        discard(path.parent)
    other = Index(store) if database == "open elsewhere" else None
    before = looks(store.root)
    for command in LOOKS:
        code = int(command[0] == "fsck")  # there is a draft without an owner
        out = run(mounted, command, ids[2], tmp_path, code)
        if command == ("ls", "--json"):
            listed = {layer["id"]: layer for layer in json.loads(out)}
            assert set(listed) == set(ids)
            known = database in ("closed", "open elsewhere", "laid out otherwise")
            assert listed[ids[2]]["seconds"] == (2.5 if known else None)
        elif command[0] == "plan":
            assert "2 of 3 steps are in the store" in out
        elif command[0] == "fsck":
            assert "a draft that no living process owns" in out
    assert looks(store.root) == before
    if other is not None:
        other.__exit__(None, None, None)


def test_commands_that_change_a_read_only_store_are_refused(
    mounted: Path, ids: list[LayerId], tmp_path: Path
) -> None:
    for command in (
        *(("rm", "ID"), ("prune",), ("tag", "ID", "x"), ("tag", "rm", "web"), ("fsck", "--repair")),
        *(("base", "rm", "tiny"), ("cache", "rm", "old"), ("build", "-f", "SPEC", "SOURCE")),
    ):
        words = {"ID": ids[2], "SPEC": str(tmp_path / "test.spec"), "SOURCE": str(tmp_path / "source")}
        argv = [words.get(word, word) for word in command]
        ended, _, err = odd.run([*argv, f"--store=qemu:{mounted}"])
        assert (ended, "Read-only file system" in err) == (2, True), (command, err)


def test_read_only_commands_sweep_nothing_and_leave_no_lock(
    store: Store, ids: list[LayerId], tmp_path: Path
) -> None:
    (store.root / "README").unlink()
    kept = [path for path in looks(store.root) if not path.startswith("state")]
    for command in LOOKS:
        run(store.root, command, ids[2], tmp_path, code=int(command[0] == "fsck"))
    assert [path for path in looks(store.root) if not path.startswith("state")] == kept
    assert os.listdir(store.locks) == []
    Store.open(store.root)
    assert os.listdir(store.result_tmp) == []


def test_read_only_commands_do_not_take_a_draft_that_is_being_made_for_rubbish(
    store: Store, ids: list[LayerId]
) -> None:
    draft = store.result_tmp / ("e" * 64)
    with store.claim(LayerId(draft.name)):
        assert not Store.look(store.root).is_rubbish(draft)
    assert Store.look(store.root).is_rubbish(draft)
    with locks.folder_lock(store.cache_tmp):
        assert not store.is_rubbish(store.cache_tmp)


def test_a_mistyped_path_creates_nothing(tmp_path: Path) -> None:
    for command in LOOKS:
        run(tmp_path / "none", command, "f" * 64, tmp_path, code=2)
    assert list(tmp_path.iterdir()) == []


def test_commands_that_may_change_a_store_create_a_missing_folder(store: Store) -> None:
    discard(store.cache_tmp)
    with pytest.raises(UsageError, match="lacks its folder cache-tmp") as caught:
        Store.look(store.root)
    assert "fsck --repair" in caught.value.hint
    assert not store.cache_tmp.exists()
    assert run(store.root, ("fsck", "--repair"), "", store.root) == "clean: 0 layers\n"
    assert Store.look(store.root).ids() == []


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can be somebody else for a moment")
def test_another_users_store_can_be_read(
    store: Store, ids: list[LayerId], enterable: Path, tmp_path: Path
) -> None:
    place = enterable / "store"
    subprocess.run(["cp", "-a", store.root, place], check=True)
    (place / "warm").mkdir(mode=0o700)
    before = looks(place)

    def become_nobody() -> None:  # this user may not be able to import modules later
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    for command in (("ls",), ("inspect", ids[2]), ("logs", ids[2]), ("df",), ("tag", "ls")):
        ended, _, err = odd.run([*command, f"--store=qemu:{place}"], before=become_nobody)
        assert (ended, err) == (0, ""), command
    ended, _, err = odd.run(["rm", ids[2], f"--store=qemu:{place}"], before=become_nobody)
    assert (ended, "Permission denied" in err) == (2, True)
    assert looks(place) == before
