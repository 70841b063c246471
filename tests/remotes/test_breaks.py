"""Pushing and pulling that breaks off: killed at each point, on a full disk, or by the server."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from obuild.errors import ObuildError, StoreError
from obuild.host import failpoints
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.remotes import manifests, pull, push, registry_http
from obuild.remotes.all import Access, open_remote
from obuild.remotes.layer import Blob
from obuild.remotes.protocol import Remote
from obuild.spec import UnixUser
from obuild.store import fsck
from obuild.store.layers import Store
from tests.support import images, odd
from tests.support.disks import small_file_system
from tests.support.fake_obuild import fill
from tests.support.registry import Between, Trouble, between
from tests.support.remotes import Watched


def points(short: Sequence[str], *others: str) -> list[ParameterSet | str]:
    """Failpoints; the others are for make test-long."""
    return [*short, *(pytest.param(point, marks=pytest.mark.long) for point in others)]


PUSH = points(["push.blob:3", "push.tagging:2"], "push.blob", "push.tagging", "push.tagged")
PULL = points(["pull.blob:3", "pull.filled:2"], "pull.blob", "pull.filled", "commit.sealed:2", "commit.renamed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, LayerId]:
    """A store, and its last of two layers."""
    store = Store.open(tmp_path_factory.mktemp("source") / "store")
    base = images.make(store, images.Plain(keys.of_base("0" * 64)), random.Random(1))
    key = keys.of_copy(base, dest="/", user=UnixUser(0, 0), files=())
    return store, images.make(store, images.Plain(key, base), random.Random(2))


@contextmanager
def opened(name: str) -> Iterator[Remote]:
    with open_remote(name, Access({"HOME": "/nonexistent"}, insecure=True)) as remote:
        yield remote


def fetch(store: Store, remote: Remote, id: LayerId) -> None:
    tip = manifests.find(remote, id)
    assert tip
    pull.pull(store, remote, pull.chain(remote, tip), lambda card: [])


def command(store: Path, *args: str, kill: str = "") -> int:
    """Run the program, which is killed at a point; returns how it ended."""
    before = partial(failpoints.kill_at, kill) if kill else lambda: None
    ended, out, err = odd.run([*args, f"--store=qemu:{store}"], before=before)
    assert ended in (0, -signal.SIGKILL), out + err
    return ended


@pytest.mark.parametrize("point", PUSH)
def test_a_killed_push_goes_on(source: tuple[Store, LayerId], tmp_path: Path, point: str) -> None:
    store, id = source
    name = f"dir:{tmp_path / 'remote'}"
    assert command(store.root, "push", id, name, kill=point) == -signal.SIGKILL
    with opened(name) as remote:
        for whole in remote.tags():
            fetch(Store.open(tmp_path / "early"), remote, LayerId(whole))
        before = {each.name for each in (tmp_path / "remote/blobs/sha256").iterdir()}
        watched = Watched(remote)
        push.push(store, id, watched)
        assert not {each.digest.removeprefix("sha256:") for each in watched.sent} & before, "nothing goes twice"
        fetch(Store.open(tmp_path / "other"), remote, id)


@pytest.mark.parametrize("point", PULL)
def test_a_killed_pull_goes_on(source: tuple[Store, LayerId], tmp_path: Path, point: str) -> None:
    store, id = source
    name = f"dir:{tmp_path / 'remote'}"
    with opened(name) as remote:
        push.push(store, id, remote)
    other = tmp_path / "other"
    assert command(other, "pull", id, name, kill=point) == -signal.SIGKILL
    assert command(other, "pull", id, name) == 0
    found = [each.where for each in fsck.check(Store.open(other), read_data=True)]
    assert [each for each in found if not each.endswith(".lock")] == [], "the lock of a killed process is rubbish"
    seen = [images.visible(Store(root).layer(id).image, tmp_path) for root in (store.root, other)]
    assert seen[0] == seen[1]


class Cut(Watched):
    """A remote that goes away when `left` blobs have been read."""

    left = 6

    def get(self, blob: Blob) -> bytes:
        if len(self.read) >= self.left:
            raise ObuildError("the cable was cut")
        return super().get(blob)


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_pull_that_is_cut_off_fetches_no_slice_twice(tmp_path: Path, *, spoilt: bool) -> None:
    store, other = Store.open(tmp_path / "store"), Store.open(tmp_path / "other")
    id = images.make(store, images.Plain(keys.of_base("1" * 64)), random.Random(3), size=80 << 20)
    with opened(f"dir:{tmp_path / 'remote'}") as remote:
        (pushed,) = push.push(store, id, remote)
        cut, rest = Cut(remote), Watched(remote)
        with pytest.raises(ObuildError, match="the cable was cut"):
            fetch(other, cut, id)
        (part,) = (other.root / "downloads").iterdir()
        assert list(fsck.check(other, read_data=True)) == []
        if spoilt:
            part.write_bytes(random.Random(4).randbytes(part.stat().st_size))
        fetch(other, rest, id)
    slices = {each.digest for each in pushed.manifest.blobs[1:]}  # after the log
    first, second = (slices & {each.digest for each in remote.read} for remote in (cut, rest))
    assert first
    assert second == (slices if spoilt else slices - first)
    assert images.visible(store.layer(id).image, tmp_path) == images.visible(other.layer(id).image, tmp_path)
    assert list((other.root / "downloads").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_at_either_end(source: tuple[Store, LayerId], tmp_path: Path) -> None:
    store, id = source
    with small_file_system(tmp_path / "small.img", tmp_path / "small", 8 << 20) as small:
        other = Store.open(small / "store")
        fill(small)
        with opened(f"dir:{small / 'remote'}") as remote, pytest.raises(ObuildError, match="No space left"):
            push.push(store, id, remote)
        with opened(f"dir:{tmp_path / 'remote'}") as remote:
            push.push(store, id, remote)
            with pytest.raises(StoreError, match="space"):
                fetch(other, remote, id)
            assert list(other.result_tmp.iterdir()) == []
            (small / "filler").unlink()
            fetch(other, remote, id)
        with opened(f"dir:{small / 'remote'}") as remote:
            push.push(store, id, remote)
            assert len(remote.tags()) == 2


class TestRegistry:
    """A registry that makes trouble."""

    @pytest.fixture
    def middle(self, registry_host: str) -> Iterator[Between]:
        with between(registry_host) as state:
            yield state

    @pytest.fixture
    def waits(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """How long the client has waited; it does not."""
        waits: list[float] = []
        monkeypatch.setattr(registry_http, "sleep", waits.append)
        return waits

    def test_what_passes_by_itself_is_waited_for(
        self, source: tuple[Store, LayerId], middle: Between, waits: list[float], tmp_path: Path
    ) -> None:
        store, id = source
        middle.troubles = [
            Trouble("GET .*/manifests/", status=429, headers={"Retry-After": "7"}),
            Trouble("HEAD .*/blobs/", status=500),
            Trouble("POST .*/uploads/", status=503),
            Trouble("PUT .*/uploads/", how="cut"),
            Trouble("PUT .*/manifests/", how="lost"),
            Trouble("GET .*/blobs/", status=502),
            Trouble("GET .*/blobs/", how="lost"),
            Trouble("GET .*/blobs/", how="short"),
        ]
        with opened(f"oci://{middle.host}/breaks/waits") as remote:
            push.push(store, id, remote)
            fetch(Store.open(tmp_path / "other"), remote, id)
        assert middle.troubles == []
        assert 7.0 in waits

    def test_a_server_that_dies_is_named_and_the_next_try_goes_on(
        self, source: tuple[Store, LayerId], middle: Between, registry_host: str, waits: list[float]
    ) -> None:
        store, id = source
        with opened(f"oci://{middle.host}/breaks/dies") as remote:
            watched = Watched(remote)
            middle.troubles = [Trouble("PUT .*/manifests/", how="cut") for _ in range(registry_http.TRIES)]
            with pytest.raises(ObuildError, match=f"cannot reach {middle.host}"):
                push.push(store, id, watched)
        sent = {each.digest for each in watched.sent}
        with opened(f"oci://{registry_host}/breaks/dies") as remote:
            watched = Watched(remote)
            push.push(store, id, watched)
        assert sent
        assert not sent & {each.digest for each in watched.sent}

    def test_blobs_may_be_elsewhere(
        self, source: tuple[Store, LayerId], middle: Between, registry_host: str, tmp_path: Path
    ) -> None:
        store, id = source
        with opened(f"oci://{middle.host}/breaks/elsewhere") as remote:
            there = push.push(store, id, remote)
            digest = there[-1].manifest.blobs[0].digest
            place = f"http://{registry_host}/v2/breaks/elsewhere/blobs/{digest}"
            middle.troubles = [Trouble(f"GET .*/blobs/{digest}", status=307, headers={"Location": place})]
            fetch(Store.open(tmp_path / "other"), remote, id)
            assert middle.troubles == []

    def test_an_answer_without_an_end_is_not_read(
        self, source: tuple[Store, LayerId], middle: Between, tmp_path: Path
    ) -> None:
        store, id = source
        with opened(f"oci://{middle.host}/breaks/long") as remote:
            push.push(store, id, remote)
            middle.troubles = [Trouble("GET .*/blobs/", how="endless")]
            with pytest.raises(ObuildError, match="sends more than"):
                fetch(Store.open(tmp_path / "other"), remote, id)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("oci://127.0.0.1:1/x/y", "cannot reach 127.0.0.1:1"),
            ("s3://nothing/x", "reading from s3://nothing/x"),
        ],
    )
    def test_a_remote_that_is_not_there(
        self, waits: list[float], monkeypatch: pytest.MonkeyPatch, name: str, message: str
    ) -> None:
        for key, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "REGION": "eu-central-1"}.items():
            monkeypatch.setenv(f"AWS_{key}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with opened(name) as remote, pytest.raises(ObuildError, match=message):
            manifests.find(remote, LayerId("a" * 64))
