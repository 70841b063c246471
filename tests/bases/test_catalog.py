"""Base images: found by name and content, made once, added and removed without touching layers."""

from __future__ import annotations

import json
import os
import stat
import time
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from obuild.bases import catalog, kind, making, recipe, record, sources
from obuild.bases.kind import Making, Recipe
from obuild.bases.record import Record
from obuild.bases.remote import Remote
from obuild.bases.scratch import image as scratch
from obuild.bases.sources import Choices
from obuild.errors import UsageError
from obuild.events import Event, Progress, Teller
from obuild.executors.qemu import ssh
from obuild.executors.qemu.provision import kernel_of, nvram_of
from obuild.executors.qemu.shape import Kernel, Nvram
from obuild.guests import profile
from obuild.guests.profile import Card
from obuild.host import disk_content, qemu_img
from obuild.plan.steps import Base, Import, Step
from obuild.store import fsck
from obuild.store.layers import Store
from tests.support.recipes import recipe_of

RECIPE = 'kind = "scratch"\nsize = "64M"\n[card]\nmemory = "512M"\n[scratch]\nsuite = "bookworm"\n'


def find(store: Store, reference: str) -> Base:
    return making.find(store, reference, say=lambda text: None)


def digest(path: Path) -> str:
    return disk_content.digest(qemu_img.inspect(path), None)


def test_a_base_is_known_by_the_digest_of_its_content(store: Store, tiny: Path) -> None:
    found = find(store, "tiny")
    assert (found.name, found.path, found.digest, found.card) == ("tiny", tiny, digest(tiny), Card())


def test_a_base_has_its_card(store: Store, tiny: Path) -> None:
    tiny.with_suffix(".toml").write_text('login = "debian"\n')
    assert find(store, "tiny").card == Card(login="debian")


def test_a_raw_image_is_a_base_too(store: Store, raw_disk: Path) -> None:
    (store.base_image / "raw.img").write_bytes(raw_disk.read_bytes())
    assert find(store, "raw").digest == digest(raw_disk)


def test_images_and_cards_may_be_links_to_a_users_own(store: Store, qcow2_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "card").write_text('login = "debian"\n')
    (store.base_image / "mine.qcow2").symlink_to(qcow2_disk)
    (store.base_image / "mine.toml").symlink_to(tmp_path / "card")
    found = find(store, "mine")
    assert (found.digest, found.card.login) == (digest(qcow2_disk), "debian")
    assert list(fsck.check(store)) == []


def test_an_image_is_read_once_and_again_when_it_changed(
    store: Store, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    inspect = qemu_img.inspect

    def counting(path: Path) -> qemu_img.Image:
        read.append(path)
        return inspect(path)

    monkeypatch.setattr(qemu_img, "inspect", counting)
    first = find(store, "tiny").digest
    assert find(store, "tiny").digest == first
    assert len(read) == 1
    os.utime(tiny, ns=(0, 1))
    assert find(store, "tiny").digest == first
    assert len(read) == 2


@pytest.mark.parametrize("memo", ["", "[]", "{", '{"tiny.qcow2": "x"}', '{"tiny.qcow2": []}'])
def test_a_damaged_memo_of_digests_is_rewritten(store: Store, tiny: Path, memo: str) -> None:
    (store.state / "digests.json").write_text(memo)
    assert find(store, "tiny").digest == digest(tiny)
    assert json.loads((store.state / "digests.json").read_text())["tiny.qcow2"][-1] == digest(tiny)


def test_a_pin_must_match_the_content(store: Store, tiny: Path) -> None:
    assert find(store, f"tiny@sha256:{digest(tiny)}").name == "tiny"
    with pytest.raises(UsageError, match="not the one that the spec pins") as caught:
        find(store, f"tiny@sha256:{'0' * 64}")
    assert digest(tiny) in caught.value.hint


@pytest.mark.parametrize("pin", ["@", "@sha256:", "@sha256:abc", f"@md5:{'0' * 64}", f"@sha256:{'G' * 64}"])
def test_a_malformed_pin_is_refused(store: Store, tiny: Path, pin: str) -> None:
    with pytest.raises(UsageError, match="sha256"):
        find(store, f"tiny{pin}")


def test_the_error_for_an_unknown_base_lists_the_known_ones(
    store: Store, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "names", lambda: ("one", "tiny"))
    with pytest.raises(UsageError, match="in the store: tiny; that can be made: one") as caught:
        find(store, "tinny")
    assert "base add" in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a..b", "a b", "-x", "x\n"])
def test_a_name_that_could_leave_the_folder_is_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        find(store, name)
    with pytest.raises(UsageError, match="cannot be the name"):
        catalog.remove(store, name)


def test_a_broken_image_is_refused_when_it_is_looked_up(store: Store, tiny: Path) -> None:
    os.truncate(tiny, tiny.stat().st_size - 65536)
    with pytest.raises(UsageError, match="damaged or truncated"):
        find(store, "tiny")
    assert not (store.state / "digests.json").exists()


# -- a kernel beside the image


@pytest.fixture
def direct(store: Store, tiny: Path) -> Path:
    """`tiny`, for a machine whose kernel QEMU loads."""
    tiny.with_suffix(".toml").write_text('arch = "aarch64"\nfirmware = "kernel"\ncmdline = "quiet"\n')
    tiny.with_suffix(".vmlinuz").write_bytes(b"a kernel")
    tiny.with_suffix(".initrd").write_bytes(b"a RAM disk")
    return tiny


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".vmlinuz", "another kernel"),
        (".initrd", "another RAM disk"),
        (".toml", 'firmware = "kernel"\ncmdline = "noisy"\n'),
    ],
)
def test_the_files_that_a_base_boots_from_are_part_of_its_digest(
    store: Store, direct: Path, suffix: str, text: str
) -> None:
    first = find(store, "tiny").digest
    assert first != digest(direct)
    direct.with_suffix(suffix).write_text(text)
    assert find(store, "tiny").digest != first


def test_a_base_without_its_kernel_is_refused(store: Store, direct: Path) -> None:
    direct.with_suffix(".vmlinuz").unlink()
    with pytest.raises(UsageError, match=r"tiny\.vmlinuz is missing"):
        find(store, "tiny")


def test_uefis_variables_are_an_optional_part_of_a_base(store: Store, tiny: Path) -> None:
    tiny.with_suffix(".toml").write_text('firmware = "uefi"\n')
    plain = find(store, "tiny")
    assert nvram_of(store, plain) is None
    tiny.with_suffix(".nvram").write_bytes(b"variables")
    found = find(store, "tiny")
    assert found.digest != plain.digest
    layer = store.result / Step(None, Import(found)).id
    assert nvram_of(store, found) == Nvram(layer / "rootfs" / "image.nvram")
    assert kernel_of(store, found) is None


def test_a_machine_is_started_with_the_layers_own_kernel(store: Store, direct: Path) -> None:
    def rootfs() -> Path:
        return store.result / Step(None, Import(find(store, "tiny"))).id / "rootfs"

    found = kernel_of(store, find(store, "tiny"))
    assert found == Kernel(rootfs() / "image.vmlinuz", rootfs() / "image.initrd", "quiet")
    direct.with_suffix(".initrd").unlink()
    found = kernel_of(store, find(store, "tiny"))
    assert found == Kernel(rootfs() / "image.vmlinuz", None, "quiet")
    direct.with_suffix(".toml").unlink()
    assert kernel_of(store, find(store, "tiny")) is None


def test_a_kernel_can_be_added_with_an_image_and_is_removed_with_it(
    store: Store, qcow2_disk: Path, tmp_path: Path
) -> None:
    boot = [tmp_path / "k", tmp_path / "i"]
    for path in boot:
        path.write_text(path.name)
    about = Card(arch="s390x", firmware="kernel")
    added = catalog.add(store, qcow2_disk, "new", about=about, key=None, boot=boot)
    assert [file.path.read_text() for file in find(store, "new").beside] == ["k", "i"]
    catalog.remove(store, "new")
    assert not any(store.base_image.glob(f"{added.stem}.*"))


# -- making


@pytest.fixture
def made(tmp_path: Path, qcow2_disk: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """There is one recipe, `new`, and a quick way to make it; lists the public keys of what was made."""
    (tmp_path / "new.toml").write_text(RECIPE)
    keys: list[str] = []

    def make(plan: Recipe, out: Path, making: Making) -> Card:
        keys.append(making.public_key)
        making.say(f"making {plan.name}")
        out.write_bytes(qcow2_disk.read_bytes())
        return plan.card

    monkeypatch.setattr(sources, "FOLDERS", (tmp_path,))
    monkeypatch.setattr(scratch, "make", make)
    return keys


def test_a_base_with_only_a_recipe_is_made_with_a_note(store: Store, made: list[str]) -> None:
    said: list[str] = []
    found = making.find(store, "new", say=said.append)
    assert found.path == store.base_image / "new.qcow2"
    assert found.card == Card(memory=512 << 20)
    assert any("recipe" in text for text in said)
    assert said[-1] == "making new"


def test_a_base_is_made_for_the_stores_own_key_and_once(store: Store, made: list[str]) -> None:
    making.make(store, "new", say=lambda text: None)
    making.make(store, "new", say=lambda text: None)
    assert made == [ssh.make_key(catalog.store_key(store))]
    making.make(store, "new", say=lambda text: None, again="yes")
    assert len(made) == 2


def test_a_base_without_a_recipe_cannot_be_made(store: Store, made: list[str]) -> None:
    with pytest.raises(UsageError, match="there is no recipe 'other'") as caught:
        making.make(store, "other", say=lambda text: None)
    assert "new" in caught.value.hint


def made_of(store: Store, name: str = "new") -> Record:
    found = record.read(store.base_image / f"{name}.qcow2")
    assert found is not None
    return found


def test_a_base_has_a_record_of_what_it_was_made_from(store: Store, made: list[str], tmp_path: Path) -> None:
    choices = Choices("", {})
    before = time.time()
    making.make(store, "new", say=print, choices=choices)
    kept = made_of(store)
    assert (kept.kind, kept.recipe, kept.path) == ("scratch", "new", str(tmp_path / "new.toml"))
    assert kept.digest == kind.digest(recipe.load(tmp_path / "new.toml"))
    assert before <= kept.when <= time.time()
    assert kind.digest(recipe_of(kept.toml)) == kept.digest
    assert [found.made for found in catalog.listing(store)] == [kept]


def test_a_base_whose_recipe_changed_is_stale_and_still_used(
    store: Store, made: list[str], tmp_path: Path
) -> None:
    making.make(store, "new", say=print)
    found = find(store, "new")
    (tmp_path / "new.toml").write_text(f"# a word\n{RECIPE}")
    assert catalog.stale(found.path) == ""  # nothing that matters
    (tmp_path / "new.toml").write_text(RECIPE.replace("64M", "128M"))
    said: list[str] = []
    assert making.find(store, "new", say=said.append) == found
    assert len(said) == 1
    assert "'new' is stale: its recipe, or a file that it names, has changed" in said[0]
    assert "obuild base make new --if-changed" in said[0]
    assert len(made) == 1


def test_a_base_of_a_kind_that_is_gone_is_stale(store: Store, made: list[str], tmp_path: Path) -> None:
    """Development versions called the kind "scratch" "debian"."""
    making.make(store, "new", say=print)
    path = find(store, "new").path
    about = path.with_suffix(".made")
    about.write_text(about.read_text().replace("scratch", "debian").replace(made_of(store).digest, "0" * 64))
    (tmp_path / "new.toml").write_text(f"# touched\n{RECIPE}")
    assert "stale: its recipe, or a file that it names, has changed" in catalog.stale(path)
    (tmp_path / "new.toml").write_text(RECIPE.replace("scratch", "debian"))
    assert "new.toml:1:1: kind is 'debian'" in catalog.stale(path)
    with pytest.raises(UsageError, match="kind is 'debian'") as caught:
        making.make(store, "new", say=print, again="changed")
    assert "scratch" in caught.value.hint
    assert [found.made.kind for found in catalog.listing(store) if found.made] == ["debian"]


def test_a_drop_in_makes_a_base_stale(store: Store, made: list[str], tmp_path: Path) -> None:
    path, _ = making.make(store, "new", say=print)
    (tmp_path / "new.d").mkdir()
    assert catalog.stale(path) == ""
    (tmp_path / "new.d" / "1.toml").write_text('size = "1G"')
    assert "stale" in catalog.stale(path)


def test_a_base_without_its_recipe_is_not_stale_and_with_a_broken_one_it_is(
    store: Store, made: list[str], tmp_path: Path
) -> None:
    path, _ = making.make(store, "new", say=print)
    (tmp_path / "new.toml").write_text("kind =")
    assert "stale: its recipe can no longer be read" in catalog.stale(path)
    (tmp_path / "new.toml").unlink()
    assert catalog.stale(path) == ""


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": 1}'])
def test_a_damaged_record_is_ignored(store: Store, made: list[str], text: str) -> None:
    path, _ = making.make(store, "new", say=print)
    path.with_suffix(".made").write_text(text)
    assert record.read(path) is None
    assert catalog.stale(path) == ""


def test_a_base_is_made_again_if_its_recipe_changed(store: Store, made: list[str], tmp_path: Path) -> None:
    making.make(store, "new", say=print)
    assert making.make(store, "new", say=print, again="changed")[1] is False
    (tmp_path / "new.toml").write_text(RECIPE.replace("64M", "128M"))
    assert making.make(store, "new", say=print)[1] is False
    path, again = making.make(store, "new", say=print, again="changed")
    assert again
    assert catalog.stale(path) == ""
    assert len(made) == 2


def test_making_replaces_an_added_image_only_with_force(store: Store, made: list[str], qcow2_disk: Path) -> None:
    catalog.add(store, qcow2_disk, "new", about=Card(), key=None)
    assert making.make(store, "new", say=print, again="changed")[1] is False
    assert making.make(store, "new", say=print, again="yes")[1] is True


def test_a_build_reports_the_downloads_of_a_base(
    store: Store, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qcow2_disk: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(300_000))

    def make(plan: Recipe, out: Path, making: Making) -> Card:
        file = tmp_path / "file"
        making.fetch(Remote((file.as_uri(),), f"sha256:{sha256(file.read_bytes()).hexdigest()}"))
        out.write_bytes(qcow2_disk.read_bytes())
        return plan.card

    monkeypatch.setattr(scratch, "make", make)
    heard: list[Event] = []
    tell = Teller(heard.append)
    making.find(store, "new", say=tell.note, making=partial(tell.phase, "making base"))
    assert [event.what for event in heard if isinstance(event.what, Progress)] == [
        Progress("making base", "new", 300_000, 0)
    ]


def test_profile_and_variables_are_kept_and_used_again(store: Store, made: list[str], tmp_path: Path) -> None:
    text = RECIPE + '[vars]\nrelease = "a"\n[profile.debug]\npackages = ["strace"]\n'
    (tmp_path / "new.toml").write_text(text)
    making.make(store, "new", say=print, choices=Choices("debug", {"release": "b"}))
    first = made_of(store)
    assert (first.profile, first.values) == ("debug", {"release": "b"})
    assert making.make(store, "new", say=print, again="changed")[1] is False
    assert making.make(store, "new", say=print, again="changed", choices=Choices())[1] is True
    assert made_of(store).profile == ""


def test_a_recipe_is_made_from_any_file_under_any_name(store: Store, made: list[str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.toml").write_text('extend = "new"\nsize = "128M"\n')
    path, _ = making.make(store, str(elsewhere / "mine.toml"), say=print, name="Other")
    assert path == store.base_image / "Other.qcow2"
    assert made_of(store, "Other").recipe == "mine"
    assert find(store, "Other").card.memory == 512 << 20
    with pytest.raises(UsageError, match="cannot read the recipe"):
        making.make(store, "./none.toml", say=print)


def test_an_added_image_has_no_record_of_the_one_it_replaces(
    store: Store, made: list[str], qcow2_disk: Path
) -> None:
    path, _ = making.make(store, "new", say=print)
    catalog.add(store, qcow2_disk, "new", about=Card(), key=None, force=True)
    assert record.read(path) is None
    assert list(fsck.check(store)) == []


# -- adding and removing


@pytest.mark.parametrize(("kind", "suffix"), [("raw", ".img"), ("qcow2", ".qcow2")])
def test_the_suffix_of_an_added_image_follows_its_content_and_it_has_a_card(
    store: Store, raw_disk: Path, qcow2_disk: Path, kind: str, suffix: str
) -> None:
    file = raw_disk if kind == "raw" else qcow2_disk
    about = Card(login="debian", memory=512 << 20)
    added = catalog.add(store, file, "debian-12.5", about=about, key=None)
    assert added == store.base_image / f"debian-12.5{suffix}"
    assert added.read_bytes() == file.read_bytes()
    assert profile.read(store.base_image / "debian-12.5.toml") == about
    assert find(store, "debian-12.5").card == about


def test_an_existing_image_is_replaced_only_with_force(store: Store, tiny: Path, raw_disk: Path) -> None:
    with pytest.raises(UsageError, match="already") as caught:
        catalog.add(store, raw_disk, "tiny", about=Card(), key=None)
    assert "--force" in caught.value.hint
    added = catalog.add(store, raw_disk, "tiny", about=Card(), key=None, force=True)
    assert [found.path for found in catalog.listing(store)] == [added]
    assert not tiny.exists()


def test_a_file_that_is_not_a_disk_is_not_added(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no disk")
    for file in (tmp_path / "text", tmp_path / "none", tmp_path):
        with pytest.raises(UsageError):
            catalog.add(store, file, "x", about=Card(), key=None)
    assert catalog.listing(store) == []


def test_the_key_of_an_added_image_is_kept_for_its_owner_only(
    store: Store, qcow2_disk: Path, tmp_path: Path
) -> None:
    ssh.make_key(tmp_path / "key")
    catalog.add(store, qcow2_disk, "x", about=Card(), key=tmp_path / "key")
    kept = catalog.key_path(store, find(store, "x").card)
    assert kept.is_relative_to(store.root)
    assert kept.read_bytes() == (tmp_path / "key").read_bytes()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_file_that_is_not_a_key_is_refused(store: Store, qcow2_disk: Path) -> None:
    with pytest.raises(UsageError, match="key"):
        catalog.add(store, qcow2_disk, "x", about=Card(), key=qcow2_disk)
    assert catalog.listing(store) == []


@pytest.mark.parametrize(
    ("key", "path"), [("", "state/ssh/id_ed25519"), ("state/ssh/x.key", "state/ssh/x.key"), ("/k", "/k")]
)
def test_a_card_without_a_key_means_the_stores_own(store: Store, key: str, path: str) -> None:
    assert catalog.key_path(store, Card(key=key)) == store.root / path


def test_removing_a_base_removes_its_card(store: Store, tiny: Path) -> None:
    tiny.with_suffix(".toml").write_text("")
    catalog.remove(store, "tiny")
    assert list(store.base_image.iterdir()) == []
    with pytest.raises(UsageError, match="unknown base image 'tiny'"):
        catalog.remove(store, "tiny")


def test_the_list_has_each_image_once_sorted_by_name(store: Store, tiny: Path, raw_disk: Path) -> None:
    for name in ("b.img", "a.img", "tiny.img", ".c.img", "b.toml", "notes.txt"):
        (store.base_image / name).write_bytes(b"" if name.endswith("toml") else raw_disk.read_bytes())
    assert [found.name for found in catalog.listing(store)] == ["a", "b", "tiny"]


def test_the_list_shows_the_image_that_a_build_uses(store: Store, tiny: Path, raw_disk: Path) -> None:
    (store.base_image / "tiny.img").write_bytes(raw_disk.read_bytes())
    assert [found.path for found in catalog.listing(store)] == [find(store, "tiny").path]
