"""The records of builds as files: names, locks, and how many stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from obuild.store import builds, fsck
from obuild.store.layers import Store
from tests.support import odd
from tests.support.fakes import other_process

#: 2023-11-14 22:13:20 UTC
BEGAN = 1_700_000_000.9


def test_a_record_is_named_by_its_time_and_held_until_its_build_ends(store: Store) -> None:
    with store.builds.begin(BEGAN) as (name, file):
        file.write(b"{}\n")
        assert name == "20231114-221320"
        assert store.builds.is_running(name)
    assert not store.builds.is_running(name)
    with store.builds.open(name) as record:
        assert record.read() == b"{}\n"


def test_builds_that_begin_in_one_second_have_numbers(store: Store) -> None:
    for _ in range(11):
        with store.builds.begin(BEGAN):
            pass
    assert store.builds.names()[::5] == ["20231114-221320", "20231114-221320-6", "20231114-221320-11"]


def test_the_newest_records_stay_and_those_of_running_builds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "KEPT", 3)
    with store.builds.begin(BEGAN) as (running, _):
        for later in range(1, 6):
            with store.builds.begin(BEGAN + later):
                pass
        assert [name[-2:] for name in store.builds.names()] == ["20", "23", "24", "25"]
    with store.builds.begin(BEGAN + 6):
        assert running not in store.builds.names()


def test_large_records_go_earlier(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "MOST", 1000)
    for later in range(3):
        with store.builds.begin(BEGAN + later) as (_, file):
            file.write(bytes(600))
    with store.builds.begin(BEGAN + 3):
        assert [name[-2:] for name in store.builds.names()] == ["22", "23"]


def test_the_record_of_a_killed_build_is_not_running(store: Store) -> None:
    code = f"""
from pathlib import Path
from obuild.store.layers import Store
with Store(Path({str(store.root)!r})).builds.begin(1.0) as (name, file):
    print(name, flush=True)
    input()
"""
    with other_process(code) as child:
        assert child.stdout
        name = child.stdout.readline().strip()
        assert store.builds.is_running(name)
        child.kill()
        child.wait()
        assert not store.builds.is_running(name)
    assert store.builds.names() == [name]


def test_what_is_not_a_record_is_not_listed_and_fsck_reports_it(store: Store) -> None:
    with store.builds.begin(BEGAN) as (name, _):
        pass
    (store.builds.folder / "notes").touch()
    os.mkfifo(store.builds.folder / "20240101-000000")
    assert store.builds.names() == [name, "20240101-000000"]
    with pytest.raises(FileNotFoundError):
        store.builds.open("20240101-000000")
    assert {finding.where for finding in fsck.check(store)} == {
        "state/builds/notes",
        "state/builds/20240101-000000",
    }


def test_a_store_without_records_has_no_history(store: Store) -> None:
    assert store.builds.names() == []
    assert odd.run(["history", f"--store=qemu:{store.root}"]) == (0, "", "")


def test_a_folder_that_is_no_store_gets_none(tmp_path: Path) -> None:
    code, _, said = odd.run(["history", f"--store=qemu:{tmp_path}"])
    assert (code, list(tmp_path.iterdir())) == (2, [])
    assert "is not a store" in said
