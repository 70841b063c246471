"""Cloud images, without a guest: mistakes in recipes, the seed, the guest's report, and the image."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable
from dataclasses import replace
from email import message_from_string
from pathlib import Path

import pytest
import yaml

from obuild.bases import cloud, cloud_verdict, disk_layout, inputs, making, recipe, seed, sources, work_folder
from obuild.bases.cloud import Options
from obuild.bases.kind import Making, Recipe, digest
from obuild.bases.remote import Remote
from obuild.errors import ObuildError, UsageError
from obuild.executors.qemu import machine
from obuild.host import process, toml
from obuild.host.qemu_img import Image
from obuild.store.layers import Store
from tests.support import odd
from tests.support.recipes import recipe_of

DIGEST = "sha256:" + "0" * 64

RECIPE = f"""
kind = "cloud"
size = "1G"
[card]
login = "me"
[cloud]
timeout = "90m"
user-data = '''
#cloud-config
packages: [rsync]
'''
[cloud.image]
url = "https://example.org/image.img"
digest = "{DIGEST}"
"""


def with_user_data(text: str) -> str:
    return RECIPE.replace("#cloud-config\npackages: [rsync]\n", text)


def options(text: str = RECIPE) -> Options:
    found: Options = recipe_of(text).options
    return found


# -- the recipe


def test_every_key_is_read() -> None:
    assert options() == Options(
        image=Remote(("https://example.org/image.img",), DIGEST),
        user_data="#cloud-config\npackages: [rsync]\n",
        meta_data="",
        network_config=cloud.NETWORK,
        timeout=5400.0,
    )


def test_texts_can_be_files_with_variables(tmp_path: Path) -> None:
    (tmp_path / "user.yaml").write_text("#cloud-config\npackages: ['@package@', $x]\n")
    (tmp_path / "mine.toml").write_text(
        RECIPE.replace("user-data = '''\n#cloud-config\npackages: [rsync]\n'''", 'user-data-file = "user.yaml"')
        + '[vars]\npackage = "vim"\n'
    )
    made = recipe.load(tmp_path / "mine.toml")
    assert made.options.user_data == "#cloud-config\npackages: ['vim', $x]\n"
    assert tmp_path / "user.yaml" in made.files
    (tmp_path / "user.yaml").unlink()
    with pytest.raises(UsageError, match=r"mine.toml:\d+:1: user-data-file: there is no file"):
        recipe.load(tmp_path / "mine.toml")


def test_the_digest_covers_the_image_and_not_its_address() -> None:
    made = recipe_of(RECIPE)
    moved = recipe_of(RECIPE.replace("example.org", "mirror.example.org"))
    other = recipe_of(RECIPE.replace(DIGEST, "sha256:" + "1" * 64))
    assert digest(made) == digest(moved)
    assert digest(made) != digest(other)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("packages: [rsync]\n", "user-data begins with 'packages: [rsync]'", "#cloud-config"),
        ("# cloud-config\n", "user-data begins with '# cloud-config'", "#cloud-config"),
        ("#cloud-config\na: [\n", "user-data is not YAML: ", ""),
        ("#cloud-config\n\ta: b\n", "user-data is not YAML: ", ""),
        ("#cloud-config\n- a\n", "user-data must have keys and values", ""),
        ("#cloud-config\nruncmd: [false]\n", "user-data: runcmd: False is not a command", "quotes"),
        ("#cloud-config\nruncmd: [[sh, -e, yes]]\n", "user-data: runcmd: ['sh', '-e', True] is not", "quotes"),
        ("#cloud-config\nbootcmd: echo\n", "user-data: bootcmd must be a list", ""),
    ],
)
def test_user_data_that_cloud_init_would_not_understand_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(with_user_data(text))
    assert f"mine.toml:8:1: {message}" in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "text", ["#!/bin/sh\n", "## template: jinja\n#cloud-config\n", "#include\n", "#cloud-config\n"]
)
def test_other_formats_of_user_data_are_left_alone(text: str) -> None:
    assert options(with_user_data(text)).user_data == text


def test_cloud_inits_own_schema_is_used_if_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "cloud-init"
    program.write_text(
        '#!/bin/sh\necho "$@" >"$0.args"; grep -q rsync "$3" && { echo "Error: bad" >&2; exit 1; }; true\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UsageError, match="user-data is not what cloud-init's schema allows"):
        options()
    assert (tmp_path / "cloud-init.args").read_text().startswith("schema --config-file ")
    options(with_user_data("#cloud-config\n"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("meta-data = '- a'", "meta-data must have keys and values"),
        ("network-config = ': :'", "network-config is not YAML"),
        ("user-data-file = 'x'", "there are both user-data and user-data-file"),
        ("timeout = 'long'", "timeout: 'long' is not a duration"),
        ("user-date = ''", "unknown key 'user-date'"),
    ],
)
def test_a_mistake_is_named_with_its_place(line: str, message: str) -> None:
    text = RECIPE.replace('timeout = "90m"\n', "").replace("[cloud.image]", f"{line}\n[cloud.image]")
    with pytest.raises(UsageError, match=r"mine.toml:\d+:1: ") as caught:
        options(text)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("url = 1", "url must be a string"),
        ("url = []", "url must have at least one address"),
        ("url = 'ftp://x/y'", "url 'ftp://x/y' is not a URL"),
        ("url = ['https://x/y', 'relative']", "url 'relative' is not a URL"),
        ("url = 'https://x/y'\ndigest = 'md5:1'", "digest is 'md5:1'"),
        ("url = 'https://x/y'\nsums = 'https://x/s'", "sums needs a keyring"),
        ("url = 'https://x/y'\nsignature = 'https://x/s'", "sums needs a keyring, and a signature needs sums"),
        ("", "url is missing"),
    ],
)
def test_a_mistake_in_what_to_download_is_named(lines: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(RECIPE[: RECIPE.index("[cloud.image]")] + f"[cloud.image]\n{lines}\n")
    assert "mine.toml" in caught.value.message
    assert message in caught.value.message


def test_a_card_that_no_cloud_image_has_is_refused() -> None:
    with pytest.raises(UsageError, match="a cloud image runs Linux"):
        options(RECIPE.replace("[card]\n", '[card]\nfirmware = "kernel"\n'))


OURS = [made for name in sources.names() if (path := sources.find(name)) and (made := recipe.load(path))]


@pytest.mark.parametrize("made", [made for made in OURS if made.kind == "cloud"], ids=lambda made: made.name)
def test_our_recipes_notice_a_command_that_fails(made: Recipe) -> None:
    if made.card.os != "linux":
        assert made.options.user_data.startswith("#!/bin/sh -e\n")
        assert not made.tried
        return
    config = yaml.safe_load(made.options.user_data) or {}
    files = {file["path"]: file["content"] for file in config.get("write_files", [])}
    for shell, flags, script in config.get("runcmd", []):
        assert shell == "sh"
        assert "e" in flags
        subprocess.run(["sh", "-n"], input=files.get(script, script).encode(), check=True)
    assert not made.tried
    assert made.options.image.digest or made.name == "alpine"


# -- the seed


def test_the_seed_has_the_users_texts_byte_for_byte() -> None:
    made = recipe_of(RECIPE)
    files = cloud.seed_files(made, "ssh-ed25519 AAAA")
    assert files["user-data"] == b"#cloud-config\npackages: [rsync]\n"
    assert files["network-config"] == cloud.NETWORK.encode()
    assert files["meta-data"] == f"instance-id: obuild-{digest(made)[:16]}\nlocal-hostname: mine\n".encode()


def test_the_same_files_give_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    files = {"user-data": b"x" * 3000, "meta-data": b""}
    first = seed.iso(files)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert seed.iso(dict(reversed(files.items()))) == first
    monkeypatch.undo()
    time.tzset()
    assert first[32808:32840].strip() == b"cidata"
    assert len(first) % 2048 == 0
    assert not any(first[-300 * 1024 :])


def test_a_seed_can_be_read() -> None:
    from io import BytesIO

    import pycdlib

    image = pycdlib.PyCdlib()
    image.open_fp(BytesIO(seed.iso({"user-data": b"hello", "network-config": b"x"})))
    out = BytesIO()
    image.get_file_from_iso_fp(out, rr_path="/user-data")
    assert out.getvalue() == b"hello"
    out = BytesIO()
    image.get_file_from_iso_fp(out, joliet_path="/network-config")
    assert out.getvalue() == b"x"
    image.close()


def test_our_part_of_the_seed_is_a_message_with_two_parts() -> None:
    message = message_from_string(cloud_verdict.vendor_data("me", "ssh-ed25519 AAAA 'x'\n"))
    parts = [part for part in message.walk() if not part.is_multipart()]
    assert [part.get_content_type() for part in parts] == ["text/cloud-config", "text/cloud-boothook"]
    config, hook = (str(part.get_payload()) for part in parts)
    assert config.startswith("#cloud-config\n")
    assert "power_state: {mode: poweroff" in config
    subprocess.run(["sh", "-n"], input=hook.encode(), check=True)
    report = hook.split("<<'END_OF_REPORT'\n")[1].split("END_OF_REPORT\n")[0]
    checked = subprocess.run(["shellcheck", "-s", "sh", "-"], input=report.encode(), capture_output=True)
    assert checked.stdout == b""


# -- the verdict


def told(*, login: str = "found", result: object = None, status: object = None, end: str = "== end\n") -> str:
    sections = {
        "login": login,
        "result": json.dumps(result) if result is not None else "",
        "status": json.dumps(status) if status is not None else "",
        "output": "last words",
    }
    return "".join(f"== {name}\n{text}\n" for name, text in sections.items()) + end


GOOD = {"v1": {"datasource": "NoCloud", "errors": []}}


def test_success_is_what_cloud_init_reports() -> None:
    verdict = cloud_verdict.read(told(result=GOOD), "me")
    assert verdict == cloud_verdict.Verdict(True, (), (), "last words")


def test_errors_are_problems_and_warnings_are_notes() -> None:
    status = {"v1": {"recoverable_errors": {"WARNING": ["careful"]}}}
    verdict = cloud_verdict.read(told(result={"v1": {"errors": ["one", "two"]}}, status=status), "me")
    assert (verdict.problems, verdict.notes) == (("one", "two"), ("careful",))


def test_a_guest_that_powered_itself_off_is_judged_by_its_stages() -> None:
    stages = {"modules-config": {"errors": []}, "modules-final": {"errors": [], "start": 1.0}}
    assert cloud_verdict.read(told(status={"v1": stages}), "me").problems == ()
    stages["modules-config"] = {"errors": ["failed"]}
    assert cloud_verdict.read(told(status={"v1": stages}), "me").problems == ("failed",)
    stages = {"modules-config": {"errors": []}, "modules-final": {"errors": [], "start": None}}
    assert cloud_verdict.read(told(status={"v1": stages}), "me").problems == (
        "cloud-init did not get to its last stage",
    )


def test_a_user_that_is_not_there_is_a_problem() -> None:
    assert cloud_verdict.read(told(login="", result=GOOD), "me").problems == (
        "there is no user 'me', the login of the recipe's card",
    )


@pytest.mark.parametrize("text", ["", "nonsense", "== login\nfound\n== result\n", told(result=GOOD, end="")])
def test_an_incomplete_report_does_not_count(text: str) -> None:
    assert not cloud_verdict.read(text, "me").told


@pytest.mark.parametrize("result", [[], {}, {"v1": 1}, {"v1": {"errors": "no list"}}, {"v1": []}])
def test_a_malformed_report_is_no_crash(result: object) -> None:
    assert cloud_verdict.read(told(result=result, status=result), "me").told


# -- the image


def gpt(*types: str, boot_code: bytes = b"\xeb") -> bytes:
    """The first sectors of a disk with such partitions."""
    mbr = boot_code.ljust(450, b"\0") + b"\xee".ljust(60, b"\0") + b"\x55\xaa"
    header = struct.pack("<8sIIII48xQII4x", b"EFI PART", 1 << 16, 92, 0, 0, 2, 128, 128)
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    entries = b"".join(uuid.UUID(each).bytes_le.ljust(128, b"\0") for each in types)
    return mbr + header.ljust(512, b"\0") + entries.ljust(32 * 512, b"\0")


LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
ROOT_X86 = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
ROOT_ARM = "b921b045-1df0-41c3-af44-4c6f280d3fae"


def looked_at(tmp_path: Path, head: bytes, *, arch: str = "x86_64", size: int = 64 << 20) -> None:
    """What a recipe for `arch` says of a disk that begins like this."""
    path = tmp_path / "disk.img"
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(size)
    made = recipe_of(f'arch = "{arch}"\n{RECIPE}')
    disk_layout.check(Image(path, "raw", size), made, tmp_path)


@pytest.mark.parametrize(
    ("head", "arch"),
    [
        (gpt(LINUX), "x86_64"),
        (gpt(ROOT_X86, LINUX), "x86_64"),
        (gpt(ROOT_ARM, boot_code=b""), "aarch64"),
        (b"\xeb".ljust(450, b"\0") + b"\x83".ljust(60, b"\0") + b"\x55\xaa", "x86_64"),
    ],
)
def test_a_disk_with_partitions_for_the_architecture_is_accepted(tmp_path: Path, head: bytes, arch: str) -> None:
    looked_at(tmp_path, head, arch=arch)


@pytest.mark.parametrize(
    ("head", "arch", "message"),
    [
        (gpt(), "x86_64", "has no partition"),
        (b"\xeb" * 510 + b"\0\0", "x86_64", "has no partition"),
        (b"\xeb".ljust(510, b"\0") + b"\x55\xaa", "x86_64", "has no partition"),
        (gpt(ROOT_ARM), "x86_64", "is for aarch64, and the recipe says x86_64"),
        (gpt(ROOT_X86), "aarch64", "is for x86_64, and the recipe says aarch64"),
        (gpt(LINUX, boot_code=b""), "x86_64", "cannot be started by a BIOS"),
    ],
)
def test_a_disk_that_does_not_fit_the_recipe_is_refused(
    tmp_path: Path, head: bytes, arch: str, message: str
) -> None:
    with pytest.raises(UsageError, match=r"mine: the image https://example\.org/image\.img ") as caught:
        looked_at(tmp_path, head, arch=arch)
    assert message in caught.value.message


def test_a_disk_larger_than_the_recipes_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is a disk of 2.0 GiB, and size is 1.0 GiB"):
        looked_at(tmp_path, gpt(LINUX), size=2 << 30)


# -- making, up to where a guest would boot


@pytest.fixture
def make(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Makes a base from an image with this content; no machine may start."""

    def no_machine(*args: object, **options: object) -> None:
        raise AssertionError("a machine was started")

    monkeypatch.setattr(machine, "start", no_machine)

    def make(content: bytes) -> None:
        (tmp_path / "image").write_bytes(content)
        text = RECIPE.replace("https://example.org/image.img", (tmp_path / "image").as_uri())
        (tmp_path / "mine.toml").write_text(text.replace(DIGEST, f"sha256:{hashlib.sha256(content).hexdigest()}"))
        making.make(store, str(tmp_path / "mine.toml"), say=print)

    return make


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no disk", "is not a disk image"),
        (b"\xfd7zXZ" + b"\0" * 600, "is xz-compressed"),
        (b"QFI\xfb" + b"\0" * 600, "is not a disk image that QEMU can open"),
        (b"\xeb".ljust(510, b"\0") + b"\x55\xaa" + b"\0" * 100_000, "has no partition"),
    ],
)
def test_an_image_that_is_not_a_disk_is_refused_and_nothing_is_left(
    store: Store, make: Callable[[bytes], None], content: bytes, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make(content)
    assert message in caught.value.message
    assert list(store.base_image.iterdir()) == []
    assert list(store.downloads.names()) == [f"sha256-{hashlib.sha256(content).hexdigest()}"]


def test_missing_qemu_is_reported_before_any_download(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(program: str) -> str:
        raise UsageError(f"{program} is not installed", hint="apt install it")

    def no_download(remote: Remote) -> Path:
        raise AssertionError("something was downloaded")

    monkeypatch.setattr(process, "require", missing)
    with pytest.raises(UsageError, match="qemu-system-x86_64 is not installed"):
        cloud.make(
            recipe_of(RECIPE), tmp_path / "out.qcow2", Making(store, tmp_path / "key", "key", print, no_download)
        )
    assert list(tmp_path.glob(f"*{work_folder.MAKING}")) == []


def test_a_recipe_without_a_digest_needs_trust_first_once(store: Store, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"no disk")
    url = (tmp_path / "image").as_uri()
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace("https://example.org/image.img", url).replace(f'digest = "{DIGEST}"\n', ""))
    with pytest.raises(UsageError, match=r"the digest of .* is not known"):
        making.make(store, str(path), say=print)
    with pytest.raises(UsageError, match=f"mine cannot be made with --locked: the digest of {url} is not known"):
        making.make(store, str(path), say=print, locked=True)
    with pytest.raises(UsageError, match="is not a disk image"):
        making.make(store, str(path), say=print, trust=True)
    kept = toml.loads((tmp_path / "mine.lock").read_text(), where="it")
    assert kept == {"digests": {url: f"sha256:{hashlib.sha256(b'no disk').hexdigest()}"}}
    with pytest.raises(UsageError, match="is not a disk image"):
        making.make(store, str(path), say=print, locked=True)
    (tmp_path / "image").write_bytes(b"another")
    (name,) = store.downloads.names()
    (store.downloads.folder / name).unlink()
    with pytest.raises(ObuildError, match="not what the recipe pins"):
        making.make(store, str(path), say=print)


def test_only_a_download_without_a_digest_is_unpinned() -> None:
    made: Recipe = recipe_of(RECIPE)
    assert cloud.unpinned(made) == ""
    assert cloud.unpinned(replace(made, options=replace(made.options, image=Remote(("https://x/y",), "")))) != ""


# -- the seed alone


def test_the_seed_can_be_written_alone(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    written = tmp_path / "mine-seed.iso"
    status, out, _ = odd.run(["base", "make", str(path), f"--seed={tmp_path}", f"--store=qemu:{store.root}"])
    assert (status, out) == (0, f"wrote {written}\n")
    assert b"packages: [rsync]" in written.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir() if "seed" in each.name) == ["mine-seed.iso"]
    assert list(store.base_image.iterdir()) == []


def test_a_recipe_without_a_seed_has_none_to_write(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe 'micro' of kind scratch has no seed to write"):
        inputs.write_seeds(store, recipe.load(making.recipe_path("micro")), tmp_path)
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    with pytest.raises(UsageError, match="there is no folder"):
        inputs.write_seeds(store, recipe.load(path), tmp_path / "none")
