"""Layers are exported as images that other programs read."""

from __future__ import annotations

import filecmp
import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from obuild.errors import ObuildError, StoreError, UsageError
from obuild.exports import free_space
from obuild.exports.all import FORMATS
from obuild.exports.disk import Disk, Options, labels
from obuild.exports.export import Wanted, export
from obuild.exports.formats import ova, vhd, vhdx
from obuild.guests.profile import Card
from obuild.host import process
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from tests.support.disks import START, ext4_disk, small_file_system
from tests.support.fake_obuild import fill

ID = LayerId("5" * 64)

#: What qemu-img calls the formats that it reads.
READ_BY_QEMU = {
    "qcow2": "qcow2",
    "vmdk": "vmdk",
    "vmdk-sparse": "vmdk",
    "vhd": "vpc",
    "vhd-dynamic": "vpc",
    "vhdx": "vhdx",
    "vdi": "vdi",
    "raw": "raw",
}

#: The types whose files contain the file's own name.
NAMED = {"vmdk-sparse", "ova"}

#: What we can export: only root can write a folder with owners.
POSSIBLE = [type for type in FORMATS if "iso" not in type and (type != "dir" or os.geteuid() == 0)]

SECRET = b"the password is swordfish\n"


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk with a file system that has had a secret in it."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "secret").write_bytes(SECRET * 200)
    (folder / "kept").write_bytes(os.urandom(300_000))
    written = (f"write {folder / name} {name}" for name in ("secret", "kept"))
    return ext4_disk(folder / "disk.raw", "mkdir etc", "mkdir usr", *written, "rm secret")


@pytest.fixture
def store(tmp_path: Path, disk: Path) -> Store:
    """A store with a layer, two images deep, that has the disk's content."""
    made = Store.open(tmp_path / "store")
    below, image = (made.layer(LayerId(digit * 64)).image for digit in "45")
    for path in (below, image):
        path.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), below], check=True)
    backing = f"../../{'4' * 64}/rootfs/image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", image], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 31M 64k", image], check=True, capture_output=True)
    return made


def wanted(out: Path, *types: str, **changes: Any) -> Wanted:
    return Wanted(types, out, "pg-1", Card())._replace(**changes)


def test_each_disk_format_has_the_disks_content(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = export(store, ID, wanted(out, *READ_BY_QEMU), say=silent)
    assert [path.name for path in paths] == [f"pg-1.{FORMATS[type].suffix}" for type in READ_BY_QEMU]
    raw = out / "pg-1.raw"
    assert raw.stat().st_blocks * 512 < raw.stat().st_size
    for path, format in zip(paths, READ_BY_QEMU.values(), strict=True):
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", format, raw, path], check=True)
    for format, suffix in (("qcow2", "qcow2"), ("vhdx", "vhdx"), ("vdi", "vdi"), ("vmdk", "sparse.vmdk")):
        subprocess.run(["qemu-img", "check", "-f", format, out / f"pg-1.{suffix}"], check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True)
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", out / "pg-1.qcow2"]))
    assert "backing-filename" not in info
    assert info["format-specific"]["data"]["extended-l2"] is False
    assert info["format-specific"]["data"]["compression-type"] == "zstd"
    assert sorted(path.name for path in out.iterdir()) == sorted([*(path.name for path in paths), "SHA256SUMS"])


@pytest.mark.parametrize("name", ["disk", "files", "images", "disk-disk1", "iso-live"])
def test_an_image_may_have_any_name(store: Store, tmp_path: Path, name: str) -> None:
    types = ("raw", "raw.zst", "qcow2", "ova", "vmdk", "containerdisk", "tar", "squashfs")
    paths = export(store, ID, wanted(tmp_path / "out", *types, stem=name), say=silent)
    assert {path.name for path in paths} == {f"{name}.{FORMATS[type].suffix}" for type in types}
    assert sorted(os.listdir(tmp_path / "out")) == sorted(["SHA256SUMS", *(path.name for path in paths)])
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=tmp_path / "out", check=True)


def test_an_export_tells_how_far_it_is(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are asked more often than usual."""
    monkeypatch.setattr(process, "_PROGRESS_PERIOD", 0.001)
    said: list[str] = []
    heard: dict[str, list[tuple[int, int]]] = {}

    def progress(done: int, total: int) -> None:
        heard.setdefault(said[-1], []).append((done, total))

    types = ("qcow2", "raw.gz", "vmdk", "containerdisk", "squashfs")
    paths = export(store, ID, wanted(tmp_path, *types), say=said.append, progress=progress)
    assert set(heard) >= {f"unpacking the disk of {ID[:12]}", *(f"writing {path}" for path in paths)}
    assert all(0 <= done <= total > 0 for each in heard.values() for done, total in each)
    size = paths[0].stat().st_size
    assert heard[f"writing {paths[0]}"][-1] == (size, size)


def test_a_compressed_raw_disk_unpacks_to_the_disk(store: Store, tmp_path: Path) -> None:
    export(store, ID, wanted(tmp_path, "raw", "raw.gz", "raw.xz", "raw.zst"), say=silent)
    raw = (tmp_path / "pg-1.raw").read_bytes()
    assert gzip.decompress((tmp_path / "pg-1.raw.gz").read_bytes()) == raw
    assert lzma.decompress((tmp_path / "pg-1.raw.xz").read_bytes()) == raw
    assert subprocess.check_output(["zstd", "-dc", tmp_path / "pg-1.raw.zst"]) == raw


def content(path: Path) -> dict[str, str]:
    """The digest of a file, or of each file in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_same_layer_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    one = export(store, ID, wanted(tmp_path / "one", *POSSIBLE), say=silent)
    other = [type for type in reversed(POSSIBLE) if type not in NAMED]
    two = export(store, ID, wanted(tmp_path / "two", *other, stem="other"), say=silent)
    two += export(store, ID, wanted(tmp_path / "two", *NAMED), say=silent)
    made = dict(zip(POSSIBLE, one, strict=True))
    for type, second in zip([*other, *NAMED], two, strict=True):
        assert content(made[type]) == content(second), type


def test_what_was_deleted_in_the_guest_is_not_in_the_image(store: Store, disk: Path, tmp_path: Path) -> None:
    assert SECRET in disk.read_bytes()
    said: list[str] = []
    (raw,) = export(store, ID, wanted(tmp_path / "out", "raw"), say=said.append)
    assert SECRET not in raw.read_bytes()
    assert any(line.startswith("cleared") for line in said)
    subprocess.run(["e2fsck", "-fn", f"{raw}?offset={START}"], check=True)
    kept = subprocess.check_output(["debugfs", "-R", "cat kept", f"{raw}?offset={START}"])
    assert len(kept) == 300_000


def test_files_alone_need_no_free_space_cleared(store: Store, tmp_path: Path) -> None:
    said: list[str] = []
    (tar,) = export(store, ID, wanted(tmp_path / "out", "tar"), say=said.append)
    assert SECRET not in tar.read_bytes()
    assert not any(line.startswith("cleared") for line in said)


def test_no_checksum_is_written_without_leave(store: Store, tmp_path: Path) -> None:
    plain = wanted(tmp_path / "out", "raw")
    export(store, ID, plain, say=silent)
    sums = tmp_path / "out/SHA256SUMS"
    assert sums.read_text().endswith("  pg-1.raw\n")
    with pytest.raises(UsageError, match="--no-checksums: the provenance is about checksums"):
        export(store, ID, plain._replace(summed=False, documented=True, force=True), say=silent)
    export(store, ID, plain._replace(summed=False, force=True), say=silent)
    assert sums.read_text() == ""  # that of the image before is gone


def test_free_space_that_cannot_be_cleared_is_named(tmp_path: Path) -> None:
    other = tmp_path / "disk.raw"
    other.write_bytes(bytes(4 << 20))
    assert free_space.clear(other) == (0, {0: "its file system is not ext2, ext3, ext4, xfs, btrfs or FAT"})
    why = "the file system was not unmounted: changes in its journal are not in its files yet"
    dirty = ext4_disk(tmp_path / "dirty.raw", "feature needs_recovery")
    assert free_space.clear(dirty) == (0, {1: why})


def layout_of(path: Path) -> tuple[dict[str, object], dict[str, object], Path]:
    """The config and the manifest of a layout with one image, whose digests are checked, and its layer."""

    def blob(descriptor: dict[str, object]) -> Path:
        digest = str(descriptor["digest"]).removeprefix("sha256:")
        found = path / "blobs/sha256" / digest
        assert hashlib.sha256(found.read_bytes()).hexdigest() == digest
        assert found.stat().st_size == descriptor["size"]
        return found

    (entry,) = json.loads((path / "index.json").read_bytes())["manifests"]
    manifest = json.loads(blob(entry).read_bytes())
    config = json.loads(blob(manifest["config"]).read_bytes())
    (layer,) = manifest["layers"]
    return config, entry, blob(layer)


@pytest.mark.parametrize(("arch", "called"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("s390x", "s390x")])
def test_a_containerdisk_is_one_disk_of_qemus_user(store: Store, tmp_path: Path, arch: str, called: str) -> None:
    image, raw = export(store, ID, wanted(tmp_path, "containerdisk", "raw", card=Card(arch=arch)), say=silent)
    config, entry, layer = layout_of(image)
    assert (config["architecture"], config["os"]) == (called, "linux")
    assert entry["platform"] == {"architecture": called, "os": "linux"}
    plain = gzip.decompress(layer.read_bytes())
    assert config["rootfs"] == {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]}
    with tarfile.open(fileobj=BytesIO(plain)) as tar:
        folder, file = tar.getmembers()
        tar.extract(file, tmp_path, filter="data")
    assert (folder.name, folder.mode, folder.uid, folder.gid) == ("disk", 0o555, 107, 107)
    assert (file.name, file.mode, file.uid, file.gid) == ("disk/disk.img", 0o444, 107, 107)
    subprocess.run(["qemu-img", "compare", "-F", "qcow2", raw, tmp_path / "disk/disk.img"], check=True)


def test_labels_of_a_containerdisk_say_which_machine_it_wants(store: Store, tmp_path: Path) -> None:
    given = labels(["instancetype.kubevirt.io/default-instancetype=u1.medium", "team=pg"])
    (image,) = export(store, ID, wanted(tmp_path, "containerdisk", options=Options(labels=given)), say=silent)
    config, _, _ = layout_of(image)
    title = {"org.opencontainers.image.title": ID[:12]}
    assert config["config"] == {
        "Labels": {**title, "instancetype.kubevirt.io/default-instancetype": "u1.medium", "team": "pg"},
        "Env": ["INSTANCETYPE_KUBEVIRT_IO_DEFAULT_INSTANCETYPE=u1.medium"],
    }


def test_a_label_that_is_none_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--label team is not KEY=VALUE"):
        labels(["team"])
    with pytest.raises(UsageError, match="--label is for container images"):
        export(store, ID, wanted(tmp_path, "raw", options=Options(labels=(("a", "b"),))), say=silent)


@pytest.mark.parametrize(("type", "transport"), [("containerdisk", "oci"), ("oci-archive", "oci-archive")])
def test_skopeo_reads_a_containerdisk(store: Store, tmp_path: Path, type: str, transport: str) -> None:
    (image,) = export(store, ID, wanted(tmp_path / "out", type), say=silent)
    told = json.loads(subprocess.check_output(["skopeo", "inspect", f"{transport}:{image}"]))
    assert (told["Architecture"], told["Os"], len(told["Layers"])) == ("amd64", "linux", 1)
    copied = tmp_path / "copied"
    subprocess.run(["skopeo", "copy", "--quiet", f"{transport}:{image}", f"dir:{copied}"], check=True)
    assert told["Layers"][0].removeprefix("sha256:") in {path.name for path in copied.iterdir()}


def test_a_vhd_is_whole_mib_and_says_so(store: Store, tmp_path: Path) -> None:
    footer = vhd.footer(5 << 20, bytes(range(16)))
    assert len(footer) == 512
    assert struct.unpack_from(">QQ", footer, 40) == (5 << 20, 5 << 20)
    (checksum,) = struct.unpack_from(">I", footer, 64)
    assert checksum == ~sum(footer[:64] + footer[68:]) & 0xFFFFFFFF
    (image,) = export(store, ID, wanted(tmp_path, "vhd"), say=silent)
    assert image.stat().st_size % (1 << 20) == 512


@pytest.mark.parametrize(
    ("sectors", "geometry"),
    [(1 << 15, (481, 4, 17)), (4 << 20, (4161, 16, 63)), (1 << 31, (65535, 16, 255)), (1 << 40, (65535, 16, 255))],
)
def test_the_geometry_of_a_vhd(sectors: int, geometry: tuple[int, int, int]) -> None:
    assert vhd.geometry(sectors) == geometry


def test_crc32c() -> None:
    """The examples of RFC 3720, B.4."""
    assert vhdx.crc32c(bytes(32)) == 0x8A9136AA
    assert vhdx.crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize(
    ("changes", "said", "hint"),
    [
        ({"types": ("qcow",)}, "unknown type 'qcow'", "did you mean 'qcow2'?"),
        ({"types": ()}, "export needs a --type", "qcow2"),
        ({"types": ("raw", "raw")}, "each --type can be given once", ""),
        ({"options": Options(compression="lz4")}, "--compression lz4: it can be zstd, zlib, none", ""),
        ({"size": 1 << 40, "shrink": True}, "--size and --shrink exclude each other", ""),
        ({"stem": "../x"}, "'../x' cannot be the name of an image", "--name"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_is_written(
    store: Store, tmp_path: Path, changes: dict[str, object], said: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        export(store, ID, wanted(tmp_path / "out", "raw", **changes), say=silent)
    assert caught.value.message == said
    assert hint in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_there_stays_unless_forced(store: Store, tmp_path: Path) -> None:
    there = tmp_path / "pg-1.raw"
    there.write_text("mine")
    with pytest.raises(UsageError, match=r"pg-1\.raw exists already"):
        export(store, ID, wanted(tmp_path, "raw"), say=silent)
    assert there.read_text() == "mine"
    layout = tmp_path / "pg-1.oci"
    layout.mkdir()
    (layout / "old").touch()
    export(store, ID, wanted(tmp_path, "raw", "containerdisk", force=True), say=silent)
    assert there.stat().st_size == 32 << 20
    assert not (layout / "old").exists()
    assert len((tmp_path / "SHA256SUMS").read_text().splitlines()) == 1


def test_the_disk_grows_or_shrinks_on_its_way(store: Store, tmp_path: Path) -> None:
    grown, smaller = (tmp_path / name for name in ("grown", "smaller"))
    (raw,) = export(store, ID, wanted(grown, "raw", size=300 << 20), say=silent)
    assert raw.stat().st_size == 300 << 20
    (again,) = export(store, ID, wanted(tmp_path, "raw", size=300 << 20), say=silent)
    assert filecmp.cmp(raw, again, shallow=False)
    (small,) = export(store, ID, wanted(smaller, "raw", shrink=True), say=silent)
    assert small.stat().st_size == 32 << 20  # less than what stays free
    for path in (raw, small):
        subprocess.run(["e2fsck", "-fn", f"{path}?offset={START}"], check=True)
        assert SECRET not in path.read_bytes()
    assert [path.name for path in grown.iterdir()] == ["pg-1.raw", "SHA256SUMS"]


def test_a_disk_that_cannot_be_resized_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a disk of 32\.0 MiB cannot grow to 1\.0 MiB"):
        export(store, ID, wanted(tmp_path / "out", "raw", size=1 << 20), say=silent)
    assert list((tmp_path / "out").iterdir()) == []


def test_checksums_of_other_files_stay(store: Store, tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"# mine\n{'0' * 64}  pg-1.raw\n{'1' * 64} *other\n")
    (raw,) = export(store, ID, wanted(tmp_path, "raw"), say=silent)
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    assert (tmp_path / "SHA256SUMS").read_text() == f"# mine\n{'1' * 64} *other\n{digest}  pg-1.raw\n"


def test_a_disk_that_a_format_cannot_hold_is_refused(store: Store, tmp_path: Path) -> None:
    image = store.layer(ID).image
    subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", image, "2041G"], check=True)
    with pytest.raises(UsageError, match=r"a VHD holds 2\.0 TiB at most"):
        export(store, ID, wanted(tmp_path / "out", "raw", "vhd"), say=silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("type", ["vhd", "vhd-dynamic", "vmdk-sparse"])
def test_the_largest_disk_of_a_format(type: str) -> None:
    FORMATS[type].check(2 << 30, Card())
    with pytest.raises(UsageError, match=r"holds (less than )?2\.0 TiB"):
        FORMATS[type].check(2 << 40, Card())


@pytest.fixture(scope="module")
def small(disk: Path) -> Disk:
    return Disk(disk, disk.stat().st_size, ID, Card(memory=256 << 20), Options(cpus=2))


def test_an_ova_is_a_description_checksums_and_a_disk(small: Disk, tmp_path: Path) -> None:
    ova.write(small, tmp_path / "pg-1.ova")
    subprocess.run(["bsdtar", "-xf", tmp_path / "pg-1.ova", "-C", tmp_path], check=True)
    with tarfile.open(tmp_path / "pg-1.ova") as tar:
        assert tar.getnames() == ["pg-1.ovf", "pg-1.mf", "pg-1-disk1.vmdk"]
    for line in (tmp_path / "pg-1.mf").read_text().splitlines():
        found = re.fullmatch(r"SHA256\((.*)\)= ([0-9a-f]{64})", line)
        assert found
        assert hashlib.sha256((tmp_path / found[1]).read_bytes()).hexdigest() == found[2]
    image = tmp_path / "pg-1-disk1.vmdk"
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "vmdk", small.path, image], check=True)


def test_the_description_in_an_ova_is_consistent(small: Disk) -> None:
    """All references lead to what is there, and the machine has the CPUs, memory and firmware asked for."""
    text = ova.description(small._replace(card=Card(memory=256 << 20, firmware="uefi")), "pg", 1234)
    root = ElementTree.fromstring(text)
    names = dict(re.findall(r'xmlns:(\w+)="([^"]*)"', text))
    file, disk = (root.find(f".//ovf:{tag}", names) for tag in ("File", "Disk"))
    assert file is not None
    assert disk is not None
    assert (file.get(f"{{{names['ovf']}}}href"), file.get(f"{{{names['ovf']}}}size")) == ("pg-disk1.vmdk", "1234")
    assert disk.get(f"{{{names['ovf']}}}fileRef") == file.get(f"{{{names['ovf']}}}id")
    assert disk.get(f"{{{names['ovf']}}}capacity") == str(small.size)
    items = {
        item.findtext("rasd:ResourceType", "", names): {part.tag.partition("}")[2]: part.text for part in item}
        for item in root.iterfind(".//ovf:Item", names)
    }
    assert (items["3"]["VirtualQuantity"], items["4"]["VirtualQuantity"]) == ("2", "256")
    assert items["17"]["Parent"] == items["6"]["InstanceID"]
    assert items["17"]["HostResource"] == "ovf:/disk/" + disk.get(f"{{{names['ovf']}}}diskId", "")
    network = root.find(".//ovf:Network", names)
    assert network is not None
    assert items["10"]["Connection"] == network.get(f"{{{names['ovf']}}}name")
    for item in root.iterfind(".//ovf:Item", names):
        tags = [part.tag for part in item]
        assert tags == sorted(tags), "the schema wants the elements in the order of their names"
    config = root.find(".//vmw:Config", names)
    assert config is not None
    assert config.get(f"{{{names['vmw']}}}value") == "efi"


def test_an_ova_for_another_architecture_is_refused() -> None:
    with pytest.raises(UsageError, match="an OVA is for x86_64, and the layer is for aarch64"):
        ova.check(1 << 30, Card(arch="aarch64"))


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("virt-v2v"), reason="virt-v2v is not installed")
def test_virt_v2v_reads_an_ova(small: Disk, tmp_path: Path) -> None:
    ova.write(small, tmp_path / "pg-1.ova")
    told = subprocess.check_output(["virt-v2v", "-i", "ova", tmp_path / "pg-1.ova", "--print-source"], text=True)
    assert re.search(r"name: pg-1$", told, re.MULTILINE)
    assert re.search(rf"memory: {256 << 20} ", told)


def test_a_folder_that_is_a_file_and_a_layer_that_is_gone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is not a folder"):
        export(store, ID, wanted(tmp_path / "file", "raw"), say=silent)
    with pytest.raises(StoreError, match="was removed from the store"):
        export(store, LayerId("6" * 64), wanted(tmp_path / "out", "raw"), say=silent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_leaves_nothing_half_written(store: Store, tmp_path: Path, full: bool) -> None:
    """There is no room to unpack the disk, or not for all images of it."""
    types = ("raw", "vdi", "vhdx", "vhd")
    with small_file_system(tmp_path / "small.img", tmp_path / "small", 4 << 20) as out:
        if full:
            fill(out)
        before = {path.name for path in out.iterdir()}
        with pytest.raises(ObuildError, match=r"cannot write to .*No space left on device"):
            export(store, ID, wanted(out, *types), say=silent)
        left = {path.name for path in out.iterdir()} - before
        assert left <= {"SHA256SUMS", *(f"pg-1.{type}" for type in types[:-1])}
        if full:
            assert not left
        else:
            subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True)


def test_an_interrupt_leaves_nothing(store: Store, tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        if text.startswith("writing"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(store, ID, wanted(tmp_path / "out", "raw"), say=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_two_exports_at_once_do_not_disturb_each_other(store: Store, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from obuild.exports.export import *; "
        "from obuild.store.layers import Store; "
        "export(Store(Path(sys.argv[1])), sys.argv[2], "
        "Wanted(('raw', 'qcow2'), Path(sys.argv[3]), sys.argv[4], Card()), say=print)"
    )
    out = tmp_path / "out"
    argv = [sys.executable, "-c", code, store.root, ID, out]
    running = [subprocess.Popen([*map(str, argv), stem], stdout=subprocess.DEVNULL) for stem in ("a", "b")]
    assert [child.wait() for child in running] == [0, 0]
    assert (out / "a.qcow2").read_bytes() == (out / "b.qcow2").read_bytes()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True)
    assert len((out / "SHA256SUMS").read_text().splitlines()) == 4


def test_the_layer_stays_as_it_is(store: Store, tmp_path: Path) -> None:
    before = content(store.layer(ID).path)
    export(store, ID, wanted(tmp_path / "out", *POSSIBLE), say=silent)
    assert content(store.layer(ID).path) == before
    shutil.rmtree(tmp_path / "out")


def test_the_manual_and_the_help_name_every_type() -> None:
    root = Path(__file__).parents[2]
    manual, reference = ((root / "docs" / name).read_text() for name in ("exports.md", "cli.md"))
    (line,) = [line for line in reference.splitlines() if "raw.zst" in line]
    for type in FORMATS:
        assert f"`{type}`" in manual
        assert re.search(rf"(?<![\w.]){re.escape(type)}(?![\w.]*\w)", line), type
