"""Executors for layers: what the layer of a base records about how to boot the layers above it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild import spec
from obuild.bases import catalog
from obuild.builder.engine import Engine
from obuild.builder.provision import Machines, base_below
from obuild.errors import StoreError, UsageError
from obuild.events import SILENT
from obuild.executors.protocol import Setup
from obuild.executors.qemu import provision
from obuild.executors.qemu.config import Config
from obuild.executors.qemu.shape import Kernel, Shape
from obuild.executors.qemu.snapshot import identity
from obuild.executors.settings import Settings
from obuild.guests import profile
from obuild.guests.all import GUESTS, HOMES
from obuild.guests.profile import Card
from obuild.host import program_version
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.store import fsck
from obuild.store.layers import Store
from tests.support.fakes import Heard

Build = Callable[..., LayerId]
Say = Callable[[str], None]


pytestmark = pytest.mark.usefixtures("guests")


@pytest.fixture
def build(store: Store, tmp_path: Path) -> Build:
    def run(settings: Settings | None = None) -> LayerId:
        stage = spec.parse(b"((from tiny) (run (shell a)) (run (shell b)))")
        return Engine(tmp_path, store, settings or Settings(accel="tcg"), Heard()).build(stage)

    return run


def machines(store: Store, os: str = "") -> Machines:
    return Machines(store, Settings(accel="tcg", os=os))


def made(store: Store, id: LayerId, settings: Settings | None = None, say: Say = print) -> Config:
    """Make the executor for a layer; return its configuration."""
    settings = settings or Settings(accel="tcg")
    base = Machines(store, settings).base_of(id)
    return provision.configure(
        Setup(store, base, catalog.key_path(store, base.card), settings, say, CancelScope())
    )


def root(store: Store, id: LayerId) -> Path:
    """Return the folder of the base's layer."""
    return store.result / base_below(store, id).name


def test_a_layer_is_booted_by_its_own_card_whatever_happened_to_the_image(
    store: Store, tiny: Path, build: Build
) -> None:
    tiny.with_suffix(".toml").write_text('os = "freebsd"\nlogin = "debian"\nmemory = "4G"\nkey = "state/k"\n')
    id = build()
    catalog.remove(store, "tiny")
    config = made(store, id)
    assert config.shape == Shape(memory=4 << 30)
    assert (config.login, config.key) == ("debian", store.root / "state/k")
    assert config.guest is GUESTS["freebsd"]


@pytest.mark.usefixtures("tiny")
def test_the_layers_of_a_base_share_an_executor(store: Store, build: Build) -> None:
    id = build()
    parent = store.parents()[id]
    assert parent is not None
    all_of_them = machines(store)
    layers = (id, parent, LayerId(root(store, id).name))
    first, *others = [all_of_them.of(all_of_them.base_of(layer), SILENT) for layer in layers]
    assert all(other is first for other in others)


def test_the_os_option_does_not_change_the_stored_card(store: Store, tiny: Path, build: Build) -> None:
    id = build(Settings(accel="tcg", os="freebsd"))
    assert profile.read(root(store, id) / "card.toml") == Card()
    assert made(store, id).guest is GUESTS["linux"]
    assert made(store, id, Settings(accel="tcg", os="openbsd")).guest is GUESTS["openbsd"]


def test_the_kernel_comes_from_the_layer(store: Store, tiny: Path, build: Build) -> None:
    tiny.with_suffix(".toml").write_text('firmware = "kernel"\ncmdline = "quiet"\n')
    tiny.with_suffix(".vmlinuz").write_text("kernel")
    tiny.with_suffix(".initrd").write_text("disk")
    id = build()
    catalog.remove(store, "tiny")
    shape = made(store, id).shape
    files = root(store, id) / "rootfs"
    assert shape.kernel == Kernel(files / "image.vmlinuz", files / "image.initrd", "quiet")


def test_a_layer_without_a_card_is_booted_like_an_image_with_the_same_content(
    store: Store, tiny: Path, build: Build
) -> None:
    tiny.with_suffix(".toml").write_text('login = "debian"\n')
    id = build()
    (root(store, id) / "card.toml").unlink()
    shutil.copy(tiny.with_suffix(".toml"), store.base_image / "renamed.toml")
    tiny.rename(store.base_image / "renamed.qcow2")
    (store.base_image / "broken.qcow2").write_bytes(b"no image")
    assert made(store, id).login == "debian"
    (store.base_image / "renamed.qcow2").unlink()
    with pytest.raises(UsageError, match="without its card") as caught:
        made(store, id)
    assert "base add" in caught.value.hint


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("vm", ["auto", "warm"])
def test_guests_that_support_it_are_kept_warm(store: Store, build: Build, vm: str) -> None:
    settings = Settings(accel="tcg", vm=vm, warm_budget=123)
    config = made(store, build(), settings)
    assert config.home
    assert config.shape.warm
    assert config.home is HOMES["linux"]
    assert config.warm
    assert (config.warm.store, config.warm.budget) == (store, 123)
    assert config.identity == identity(config.shape, config.home)


@pytest.mark.parametrize(("about", "vm"), [("", "boot"), ('warm = "no"\n', "auto"), ('os = "freebsd"\n', "auto")])
def test_other_guests_boot_for_each_step(store: Store, tiny: Path, build: Build, about: str, vm: str) -> None:
    tiny.with_suffix(".toml").write_text(about)
    config = made(store, build(), Settings(accel="tcg", vm=vm))
    assert config.shape.warm is (about == "")  # the devices are the same whether it is kept warm or not
    assert (config.warm, config.home, config.identity) == (None, None, "")


@pytest.mark.usefixtures("tiny")
def test_a_missing_layer_is_named(store: Store, build: Build) -> None:
    id = build()
    shutil.rmtree(root(store, id))
    with pytest.raises(StoreError, match=f"{id} was just removed"):
        made(store, id)


def test_each_step_boots_if_a_path_cannot_be_sent_to_qemu(tmp_path: Path, qcow2_disk: Path) -> None:
    """Commands to a running QEMU are JSON, which must be UTF-8."""
    store = Store.open(tmp_path / os.fsdecode(b"caf\xe9"))
    shutil.copy(qcow2_disk, store.base_image / "tiny.qcow2")
    said: list[str] = []
    stage = spec.parse(b"((from tiny) (run (shell a)))")
    id = Engine(tmp_path, store, Settings(accel="tcg"), Heard()).build(stage)
    assert made(store, id, say=said.append).warm is None
    assert "not UTF-8" in said[0]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("vm", "warm", "words"), [("auto", False, "QEMU 99.1"), ("warm", True, ""), ("boot", False, "")]
)
def test_vm_auto_is_warm_only_with_a_tested_qemu(
    store: Store, build: Build, monkeypatch: pytest.MonkeyPatch, vm: str, warm: bool, words: str
) -> None:
    id = build()
    said: list[str] = []
    monkeypatch.setattr(program_version, "told", lambda binary, memo: "QEMU emulator version 99.1.0")
    config = made(store, id, Settings(accel="tcg", vm=vm), said.append)
    assert (config.warm is not None, config.home is not None) == (warm, warm)
    assert (words in " ".join(said)) if words else said == []


@pytest.mark.usefixtures("tiny")
def test_the_memo_of_qemus_version_belongs_to_the_store(store: Store, build: Build) -> None:
    made(store, build(), Settings(accel="tcg", vm="auto"))
    assert (store.state / "qemu.json").exists()
    assert list(fsck.check(store)) == []
