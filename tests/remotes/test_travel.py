"""Layers that travel: pushed to remotes of every kind, and pulled into other stores."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import ObuildError
from obuild.guests.profile import Card
from obuild.host import parallel, qemu_img
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.remotes import content, manifests, names, pull, push
from obuild.remotes.all import Access, open_remote
from obuild.remotes.layer import Blob
from obuild.remotes.oci import MANIFEST, descriptor, digest_of, packed
from obuild.remotes.protocol import Remote, Tagged
from obuild.store import flatten, fsck
from obuild.store.index import Index
from obuild.store.layers import Store
from tests.support import images
from tests.support.layers import FEW
from tests.support.registry import Identity, between, login, password_file, registry
from tests.support.remotes import Watched

OPS = '(run (shell "one")) (run (shell "two"))'


def no_keys(card: Card) -> list[tuple[int, bytes]]:
    return []


def fetch(store: Store, remote: Remote, id: LayerId) -> list[LayerId]:
    """Pull a layer with its ancestors; returns those that were fetched."""
    found = manifests.find(remote, id)
    assert found
    fetched: list[LayerId] = []
    pull.pull(store, remote, pull.chain(remote, found), no_keys, done=fetched.append)
    return fetched


def same(one: Store, other: Store, id: LayerId, scratch: Path) -> bool:
    """Whether a guest sees the same in a layer of two stores."""
    seen = [images.visible(store.layer(id).image, scratch) for store in (one, other)]
    return seen[0] == seen[1]


def test_a_layer_arrives_as_it_was(
    store: Store, chain: Callable[[str], Chain], remote: Remote, tmp_path: Path
) -> None:
    ids = images.make_all(store, chain(OPS))
    sent: list[LayerId] = []
    push.push(store, ids[-1], remote, done=lambda id, what: sent.append(id))
    assert sent == ids
    other = Store.open(tmp_path / "other")
    assert fetch(other, remote, ids[-1]) == ids
    for id in ids:
        assert same(store, other, id, tmp_path)
        assert other.layer(id).key == store.layer(id).key
        assert other.layer(id).log.read_bytes() == store.layer(id).log.read_bytes()
        assert content.of(store, id) == content.of(other, id)
        (other.manifests / f"{id}-content.json").unlink(missing_ok=True)
        assert content.of(store, id) == content.of(other, id), "it follows from the image alone"
        qemu_img.check(other.layer(id).image)
    assert not list(fsck.check(other, read_data=True))
    with Index(store) as here, Index(other) as there:
        assert [row[:4] for row in here.rows()] == [row[:4] for row in there.rows()]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
def test_random_images_of_changing_size_in_a_flattened_chain(
    store: Store,
    chain: Callable[[str], Chain],
    folder: Remote,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr(flatten, "LONGEST", FEW)
    chance = random.Random(seed)
    steps = chain(" ".join(f'(run (shell "{number}"))' for number in range(FEW + 2))).steps
    size = images.SIZE
    for step in steps:
        images.make(store, step, chance, size=size)
        size += chance.choice((0, 512, 5 << 20))
    assert list(store.flats.folder.iterdir()), "the chain is flattened"
    push.push(store, steps[-1].id, folder)
    other = Store.open(tmp_path / "other")
    fetch(other, folder, steps[-1].id)
    assert all(same(store, other, step.id, tmp_path) for step in steps)
    assert not list(fsck.check(other, read_data=True))


def test_nothing_is_sent_again(store: Store, layers: list[LayerId], remote: Remote) -> None:
    push.push(store, layers[1], remote)
    watched = Watched(remote)
    push.push(store, layers[1], watched)
    assert set(watched.calls) == {"manifests"}
    push.push(store, layers[2], watched)
    assert watched.calls.count("tag") == 1


def test_what_arrived_before_a_break_is_not_sent_again(
    store: Store, layers: list[LayerId], folder: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(folder)
    monkeypatch.setattr(watched.remote, "tag", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        push.push(store, layers[0], watched)
    monkeypatch.undo()
    before = [*watched.sent]
    push.push(store, layers[0], watched)
    assert before
    assert watched.sent == before


def test_a_slice_that_the_parent_has_is_not_sent(
    store: Store, chain: Callable[[str], Chain], folder: Remote
) -> None:
    """The child writes the same bytes to the same place."""
    first, second, third = chain(OPS).steps
    images.make(store, first, random.Random(1))
    for step in (second, third):
        with store.claim(step.id), store.draft(step) as draft:
            draft.lay()
            write = "write -q -P 9 0 4194304"
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, draft.image], check=True)
    push.push(store, second.id, folder)
    watched = Watched(folder)
    push.push(store, third.id, watched)
    assert len(watched.sent) == 1, "the config; the log is empty, too"


def test_the_keys_of_a_store_stay_there(
    store: Store, chain: Callable[[str], Chain], folder: Remote, tmp_path: Path
) -> None:
    base = chain(OPS).steps[0]
    with store.claim(base.id), store.draft(base) as draft:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", draft.image, "1M"], check=True)
        qemu_img.write_at(draft.image, 4096, b"secret" * 500 + b"\n" * 1096)
        qemu_img.write_at(draft.image, 0, b"public" * 512)
        (draft.path / "card.toml").write_text('host_key = "4096"\n')
    push.push(store, base.id, folder)
    other = Store.open(tmp_path / "other")
    found = manifests.find(folder, base.id)
    assert found
    pull.pull(other, folder, [found], lambda card: [(card.host_key, b"other!" * 512 + b"\n" * 1024)])
    seen = images.visible(other.layer(base.id).image, tmp_path)
    assert seen[:4096].startswith(b"public")
    assert seen[4096:8192] == b"other!" * 512 + b"\n" * 1024
    nobody = Store.open(tmp_path / "nobody")
    pull.pull(nobody, folder, [found], no_keys)
    assert images.visible(nobody.layer(base.id).image, tmp_path)[4096:8192] == b"\n" * 4096


def test_a_compressed_base_travels(
    store: Store, chain: Callable[[str], Chain], folder: Remote, tmp_path: Path
) -> None:
    base = chain(OPS).steps[0]
    plain = tmp_path / "plain.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", plain, str(images.SIZE)], check=True)
    images.scribble(plain, random.Random(3))
    with store.claim(base.id), store.draft(base) as draft:
        convert = ["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2"]
        subprocess.run([*convert, plain, draft.image], check=True)
    push.push(store, base.id, folder)
    other = Store.open(tmp_path / "other")
    fetch(other, folder, base.id)
    assert same(store, other, base.id, tmp_path)


def test_an_image_with_odd_sectors_travels(
    store: Store, chain: Callable[[str], Chain], folder: Remote, tmp_path: Path
) -> None:
    """A base may have clusters of 512 bytes."""
    base = chain(OPS).steps[0]
    with store.claim(base.id), store.draft(base) as draft:
        small = ["-f", "qcow2", "-o", "cluster_size=512"]
        subprocess.run(["qemu-img", "create", "-q", *small, draft.image, "5M"], check=True)
        images.scribble(draft.image, random.Random(3), size=5 << 20)
    push.push(store, base.id, folder)
    other = Store.open(tmp_path / "other")
    fetch(other, folder, base.id)
    assert same(store, other, base.id, tmp_path)


class TestTwoBuilds:
    """The same layer was made twice, with other bytes."""

    @pytest.fixture
    def twins(self, store: Store, chain: Callable[[str], Chain], tmp_path: Path) -> tuple[Store, list[LayerId]]:
        """Another store with the same layers as `store`, of which the second has another content."""
        steps = chain(OPS)
        ids = images.make_all(store, steps, seed=1)
        other = Store.open(tmp_path / "twin")
        images.make(other, steps.steps[0], random.Random(1))
        for step in steps.steps[1:]:
            images.make(other, step, random.Random(2))
        return other, ids

    def test_the_first_one_stays(
        self, store: Store, twins: tuple[Store, list[LayerId]], remote: Remote, tmp_path: Path
    ) -> None:
        other, ids = twins
        push.push(store, ids[1], remote)
        with pytest.raises(ObuildError, match="has another build of layer"):
            push.push(other, ids[2], remote)

    def test_a_child_of_one_is_not_put_on_the_other(
        self, store: Store, twins: tuple[Store, list[LayerId]], remote: Remote, tmp_path: Path
    ) -> None:
        other, ids = twins
        push.push(store, ids[2], remote)
        third = Store.open(tmp_path / "third")
        fetch(third, remote, ids[0])
        with pytest.raises(ObuildError, match="was built on another build of"):
            _drop_and_fetch(other, remote, ids[2])
        assert fetch(third, remote, ids[2]) == ids[1:]

    def test_two_pushers_of_one_layer_agree(
        self, store: Store, layers: list[LayerId], remote: Remote, tmp_path: Path
    ) -> None:
        """One is between its blobs and its manifest while the other pushes the same layer."""
        racing = Watched(remote)
        tag = racing.tag

        def late(*args: object, **options: object) -> bool:
            push.push(store, layers[0], remote)
            return tag(*args, **options)  # type: ignore[arg-type]

        racing.tag = late  # type: ignore[method-assign]
        push.push(store, layers[0], racing)
        assert fetch(Store.open(tmp_path / "other"), remote, layers[0]) == [layers[0]]


def _drop_and_fetch(store: Store, remote: Remote, id: LayerId) -> None:
    """Fetch a layer that a store has, too: first remove it there."""
    assert store.remove(id, store.parents())
    fetch(store, remote, id)


def test_a_layout_is_one_for_others(store: Store, layers: list[LayerId], folder: Remote, tmp_path: Path) -> None:
    """skopeo copies a layer elsewhere, and it can be pulled from there."""
    push.push(store, layers[0], folder)
    layout, copy = folder.name, f"oci:{tmp_path / 'copy'}"
    source = f"oci:{layout.removeprefix('dir:')}:{layers[0]}"
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", source, f"{copy}:{layers[0]}"], check=True)
    index = json.loads((tmp_path / "copy" / "index.json").read_bytes())
    assert index["manifests"][0]["digest"] == manifests.of(folder, [layers[0]])[layers[0]].digest


def test_only_blobs_that_nothing_names_are_swept(
    store: Store, layers: list[LayerId], folder: Remote, tmp_path: Path
) -> None:
    there = push.push(store, layers[2], folder)
    names.put(folder, "web", there[:2])
    folder.attach(Tagged(MANIFEST, b"no JSON"), there[0].manifest.digest, "x")
    blobs = tmp_path / "remote" / "blobs" / "sha256"
    assert folder.sweep() == 0, "all of it is new"
    folder.remove([layers[2]])
    for blob in blobs.iterdir():
        os.utime(blob, (0, 0))
    assert folder.sweep() > 0
    fetch(Store.open(tmp_path / "other"), folder, layers[1])
    assert not folder.has(there[2].manifest.digest)


def test_skopeo_reads_what_a_registry_has(
    store: Store, layers: list[LayerId], registry_host: str, access: Access, tmp_path: Path
) -> None:
    place = f"{registry_host}/tests/skopeo"
    with open_remote(f"oci://{place}", access) as remote:
        push.push(store, layers[0], remote)
    copy = [f"docker://{place}:{layers[0]}", f"oci:{tmp_path / 'copy'}:{layers[0]}"]
    argv = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", *copy]
    subprocess.run(argv, check=True)
    with open_remote(f"dir:{tmp_path / 'copy'}", access) as copied:
        assert fetch(Store.open(tmp_path / "other"), copied, layers[0]) == [layers[0]]


def test_a_registry_with_a_password_and_tls(store: Store, layers: list[LayerId], tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    with registry(folder, auth=password_file(folder), tls=Identity(folder)) as running:
        name = f"oci://{running.host}/tests/closed"
        known = {**login(tmp_path / "docker", running.host), "HOME": str(tmp_path)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(folder / "ca.crt"))
            with open_remote(name, Access(known)) as remote:
                push.push(store, layers[-1], remote)
                assert fetch(Store.open(tmp_path / "other"), remote, layers[-1]) == layers
            with (
                open_remote(name, Access({"HOME": str(tmp_path)})) as remote,
                pytest.raises(ObuildError, match="says 401") as refused,
            ):
                manifests.find(remote, layers[0])
            assert "docker login" in refused.value.hint


def test_a_registry_copies_blobs_from_another_of_its_repositories(registry_host: str, access: Access) -> None:
    """But one that has none of them is not asked for each."""
    blobs = [f"blob {number}".encode() for number in range(9)]
    with between(registry_host) as middle:
        names = [f"oci://{middle.host}/mount/{each}" for each in ("none", "one", "two")]
        with open_remote(names[1], access) as remote:
            for each in blobs:
                remote.put(Blob.of(each), each)
        middle.seen.clear()
        with open_remote(names[2], access._replace(known=tuple(names))) as remote:
            for each in (*blobs, b"new"):
                remote.put(Blob.of(each), each)
                assert remote.get(Blob.of(each)) == each
    assert [middle.count(f"POST .*from=mount%2F{each}") for each in ("none", "one", "two")] == [4, 10, 0]
    assert middle.count("PUT ") == 1


def test_many_writers_lose_nothing(remote: Remote, request: pytest.FixtureRequest) -> None:
    """Each sets tags of its own at the same time."""
    if "swift" in request.node.name:
        pytest.skip("Swift does not know conditions: of two that write at once, one may lose its entry")
    remote.put(Blob(digest_of(b"{}"), 2), b"{}")
    empty = descriptor(b"{}", "application/vnd.oci.empty.v1+json")
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": [empty]}
    tags = [f"tag{number}" for number in range(12)]

    def write(tag: str) -> bool:
        return remote.tag(tag, Tagged(MANIFEST, packed({**document, "annotations": {"tag": tag}})))

    assert all(parallel.each(write, tags, 6))
    assert remote.tags() == sorted(tags)
    assert remote.manifests(["tag3", "tag99"]).keys() == {"tag3"}
    assert not remote.tag("tag3", Tagged(MANIFEST, packed(document))), "the first one stays"
    assert remote.tag("tag3", Tagged(MANIFEST, packed(document)), replace=True)
    remote.remove(["tag3", "tag4"])
    assert not {"tag3", "tag4"} & set(remote.tags())
