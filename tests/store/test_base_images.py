"""Base images take their places whole, whatever happens on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from obuild.host import failpoints, locks
from obuild.store.base_images import Places


class Killed(BaseException):
    """In place of a SIGKILL."""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("images", "locks"):
        (tmp_path / name).mkdir()
    return Places(tmp_path / "images", tmp_path / "keys", tmp_path / "locks")


def put(places: Places, content: str, *suffixes: str) -> None:
    with places.staged("b") as folder:
        for suffix in suffixes:
            (folder / f"b{suffix}").write_text(content)


def there(places: Places) -> dict[str, str]:
    """What is in place, and what it holds."""
    files = [*places.images.iterdir(), *(places.keys.iterdir() if places.keys.exists() else ())]
    return {path.name: path.read_text() for path in files if path.is_file() and not path.name.startswith(".b")}


def test_all_files_take_their_places(places: Places) -> None:
    put(places, "one", ".qcow2", ".toml", ".key", ".vmlinuz")
    assert there(places) == dict.fromkeys(["b.qcow2", "b.toml", "b.key", "b.vmlinuz"], "one")
    assert (places.keys / "b.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in places.images.iterdir() if path.is_dir()] == []


def test_what_the_new_one_has_not_got_goes(places: Places) -> None:
    put(places, "one", ".qcow2", ".toml", ".key", ".vmlinuz", ".initrd")
    put(places, "two", ".img", ".toml")
    assert there(places) == {"b.img": "two", "b.toml": "two"}


def test_a_failure_leaves_the_old_one(places: Places) -> None:
    put(places, "one", ".qcow2", ".toml")
    with pytest.raises(FileNotFoundError), places.staged("b") as folder:
        (folder / "nosuch" / "b.qcow2").write_text("two")
    places.sweep()
    assert there(places) == {"b.qcow2": "one", "b.toml": "one"}
    assert not list(places.images.glob(".*"))


@pytest.mark.parametrize("replaced", range(12))
def test_a_crash_after_the_decision_is_made_good(
    places: Places, replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies at each of the file operations in turn; whoever comes next finishes."""
    put(places, "one", ".qcow2", ".toml", ".key", ".vmlinuz", ".initrd")
    left = [replaced]

    def counted(method: str) -> None:
        real = getattr(Path, method)

        def act(path: Path, *args: object, **options: object) -> object:
            if decided and left[0] == 0:
                raise Killed
            left[0] -= bool(decided)
            return real(path, *args, **options)

        monkeypatch.setattr(Path, method, act)

    decided: list[str] = []
    monkeypatch.setattr(
        failpoints, "reach", lambda point: decided.append(point) if point == "base.placed" else None
    )
    for method in ("replace", "unlink", "rename"):
        counted(method)
    try:
        put(places, "two", ".img", ".toml", ".key")
    except Killed:
        pass
    monkeypatch.undo()
    assert decided
    places.sweep()
    assert there(places) == {"b.img": "two", "b.toml": "two", "b.key": "two"}
    assert not list(places.images.glob(".*"))


def test_who_is_at_it_is_left_alone(places: Places) -> None:
    with locks.file_lock(places.lock("b")), places.staged("b") as folder:
        (folder / "b.qcow2").write_text("one")
        places.sweep()
        assert (folder / "b.qcow2").exists()
    assert there(places) == {"b.qcow2": "one"}


def test_files_of_others_stay(places: Places) -> None:
    (places.images / ".gitignore").write_text("*")
    places.sweep()
    assert there(places) == {".gitignore": "*"}
