"""Base images are put in place completely or not at all, whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from obuild.host import failpoints, locks
from obuild.store.base_images import Places


class Killed(BaseException):
    """Raised in place of a SIGKILL."""


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
    """The files in place, with their content."""
    files = [*places.images.iterdir(), *(places.keys.iterdir() if places.keys.exists() else ())]
    return {path.name: path.read_text() for path in files if path.is_file() and not path.name.startswith(".b")}


def test_all_files_are_put_in_place(places: Places) -> None:
    put(places, "one", ".qcow2", ".toml", ".key", ".vmlinuz")
    assert there(places) == dict.fromkeys(["b.qcow2", "b.toml", "b.key", "b.vmlinuz"], "one")
    assert (places.keys / "b.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in places.images.iterdir() if path.is_dir()] == []


def test_old_files_that_the_new_base_lacks_are_removed(places: Places) -> None:
    put(places, "one", ".qcow2", ".toml", ".key", ".vmlinuz", ".initrd")
    put(places, "two", ".img", ".toml")
    assert there(places) == {"b.img": "two", "b.toml": "two"}


def test_a_failure_keeps_the_old_base(places: Places) -> None:
    put(places, "one", ".qcow2", ".toml")
    with pytest.raises(FileNotFoundError), places.staged("b") as folder:
        (folder / "nosuch" / "b.qcow2").write_text("two")
    places.sweep()
    assert there(places) == {"b.qcow2": "one", "b.toml": "one"}
    assert not list(places.images.glob(".*"))


@pytest.mark.parametrize("replaced", range(12))
def test_a_crash_after_the_commit_is_completed_later(
    places: Places, replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies at each file operation in turn; the next process finishes."""
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


def test_a_base_with_a_living_owner_is_not_swept(places: Places) -> None:
    with locks.file_lock(places.lock("b")), places.staged("b") as folder:
        (folder / "b.qcow2").write_text("one")
        places.sweep()
        assert (folder / "b.qcow2").exists()
    assert there(places) == {"b.qcow2": "one"}


def test_other_files_are_kept(places: Places) -> None:
    (places.images / ".gitignore").write_text("*")
    places.sweep()
    assert there(places) == {".gitignore": "*"}
