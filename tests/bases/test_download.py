"""Downloads from a real HTTP server that misbehaves in many ways."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from obuild.bases import checksums, download, lockfile
from obuild.bases.remote import Remote
from obuild.errors import ObuildError, UsageError
from obuild.store import fsck, gc, quota
from obuild.store.layers import Store
from tests.support.gnupg import signed
from tests.support.http_server import Site, serving

DATA = Random(1).randbytes(300_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
DIGEST_512 = f"sha512:{hashlib.sha512(DATA).hexdigest()}"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving({"image": DATA}) as site:
        yield site


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def fetch(store: Store, *urls: str, digest: str = DIGEST, trust: bool = False) -> Path:
    path, found = download.fetch(
        Remote(urls, digest), store.downloads, trust=trust, say=print, progress=lambda done, total: None
    )
    assert found == digest or not digest
    assert path.read_bytes() == DATA
    return path


def left(store: Store) -> list[str]:
    return list(store.downloads.names())


@pytest.mark.parametrize("digest", [DIGEST, DIGEST_512])
def test_a_file_is_kept_once_under_its_digest(store: Store, site: Site, digest: str) -> None:
    for _ in range(2):
        path = fetch(store, site.url("image"), digest=digest)
    assert path == store.root / "downloads" / digest.replace(":", "-")
    assert len(site.asked) == 1
    assert left(store) == [path.name]
    assert list(fsck.check(store, read_data=True)) == []


def test_progress_is_reported(store: Store, site: Site) -> None:
    told: list[tuple[int, int]] = []
    said: list[str] = []
    download.fetch(
        Remote((site.url("image"),), DIGEST),
        store.downloads,
        trust=False,
        say=said.append,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[0] == (0, len(DATA))
    assert told[-1] == (len(DATA), len(DATA))
    assert said[0] == f"downloading {site.url('image')}"
    assert said[-1].startswith("downloaded 293.0 KiB in ")


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_download_that_ends_early_is_resumed(store: Store, site: Site, fault: str) -> None:
    site.faults += [fault, fault]
    fetch(store, site.url("image"))
    assert site.asked == ["", "bytes=150000-", "bytes=225000-"]


def test_without_support_for_ranges_the_download_starts_again(store: Store, site: Site) -> None:
    site.faults += ["cut", "whole"]
    fetch(store, site.url("image"))
    assert site.asked == ["", "bytes=150000-"]


def test_if_the_range_is_beyond_the_end_the_download_starts_again(store: Store, site: Site) -> None:
    site.faults += ["cut", "416"]
    fetch(store, site.url("image"))
    assert site.asked == ["", "bytes=150000-", ""]


def test_a_file_of_unknown_size_is_read_to_its_end(store: Store, site: Site) -> None:
    site.faults += ["unsized"]
    fetch(store, site.url("image"))


def test_a_server_that_sends_more_than_it_said_changes_nothing(store: Store, site: Site) -> None:
    site.faults += ["more"]
    fetch(store, site.url("image"))


def test_a_server_that_keeps_breaking_off_is_abandoned(store: Store, site: Site) -> None:
    site.faults += ["cut"] * 100  # each time it sends half of what is left, and in the end nothing
    with pytest.raises(ObuildError, match="image: the download ended after 299999 of 300000 bytes"):
        fetch(store, site.url("image"))
    assert left(store) == [f"{DIGEST.replace(':', '-')}.part"]
    site.faults.clear()
    fetch(store, site.url("image"))
    assert site.asked[-1] == "bytes=299999-"


def test_wrong_content_is_refused_and_removed(store: Store, site: Site) -> None:
    site.files["image"] = b"x" * 1000
    with pytest.raises(ObuildError) as caught:
        fetch(store, site.url("image"))
    found = hashlib.sha256(site.files["image"]).hexdigest()
    assert (
        f"image: the file is not what the recipe pins: it has sha256:{found}, not {DIGEST}" in caught.value.message
    )
    assert caught.value.exit_code == 1
    assert left(store) == []


def test_a_partial_download_of_another_file_is_thrown_away(store: Store, site: Site) -> None:
    store.downloads.begin(DIGEST.replace(":", "-")).write_bytes(b"x" * 1000)
    fetch(store, site.url("image"))
    assert site.asked == ["bytes=1000-", ""]


def test_a_complete_download_that_was_not_renamed_is_not_requested_again(store: Store, site: Site) -> None:
    store.downloads.begin(DIGEST.replace(":", "-")).write_bytes(DATA)
    fetch(store, site.url("image"))
    assert site.asked == []


def test_each_mirror_is_tried_and_each_failure_reported(store: Store, site: Site) -> None:
    (store.root / "image").write_bytes(DATA)
    nobody = "http://127.0.0.1:1/image"
    fetch(store, nobody, site.url("none"), (store.root / "image").as_uri())
    with pytest.raises(ObuildError) as caught:
        fetch(store, nobody, site.url("none"), "file:///none", digest=DIGEST_512)
    assert f"{nobody}: Connection refused" in caught.value.message
    assert f"{site.url('none')}: the server says 404 Not Found" in caught.value.message
    assert "file:///none: " in caught.value.message
    assert "No such file" in caught.value.message
    assert left(store) == [DIGEST.replace(":", "-")]


def test_a_second_mirror_resumes_the_download_of_the_first(store: Store, site: Site) -> None:
    with serving({"image": DATA[:150_000]}) as first:
        first.faults += ["cut", "404"]
        with pytest.raises(ObuildError):
            fetch(store, first.url("image"))
    fetch(store, site.url("image"))
    assert site.asked == ["bytes=75000-"]


def test_redirects_are_followed(store: Store, site: Site) -> None:
    site.redirects["old"] = site.url("image")
    fetch(store, site.url("old"))


def test_the_proxy_of_the_environment_is_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"http://far.example/image": DATA}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.setenv("no_proxy", "")
        fetch(store, "http://far.example/image")
        assert len(proxy.asked) == 1


def test_two_processes_that_want_a_file_download_it_once(store: Store, site: Site) -> None:
    site.faults += ["cut"]
    threads = [threading.Thread(target=fetch, args=(store, site.url("image"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.asked) == 2
    assert left(store) == [DIGEST.replace(":", "-")]


def test_a_killed_download_is_resumed_by_the_next_process(store: Store, site: Site) -> None:
    site.faults += ["stall"]
    code = (
        "import sys; from pathlib import Path; from obuild.store.layers import Store\n"
        "from obuild.bases.download import fetch\nfrom obuild.bases.remote import Remote\n"
        "store = Store.open(Path(sys.argv[1]))\n"
        "fetch(Remote((sys.argv[2],), sys.argv[3]), store.downloads, trust=False, say=print,\n"
        "      progress=lambda done, total: done and print('some', flush=True))\n"
    )
    argv = [sys.executable, "-c", code, str(store.root), site.url("image"), DIGEST]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        while child.stdout.readline() != b"some\n":
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    begun = (store.root / "downloads" / f"{DIGEST.replace(':', '-')}.part").stat().st_size
    assert gc.plan(store, now=0.0, keep_bytes=0).in_use == ()
    fetch(store, site.url("image"))
    assert site.asked == ["", f"bytes={begun}-" if begun else ""]
    assert left(store) == [DIGEST.replace(":", "-")]


def test_a_full_disk_keeps_nothing(store: Store, site: Site) -> None:
    """The limit is that of a process here, which writing meets in the same way."""
    code = (
        "import resource, signal, sys; from pathlib import Path; from obuild.store.layers import Store\n"
        "from obuild.bases.download import fetch\nfrom obuild.bases.remote import Remote\n"
        "store = Store.open(Path(sys.argv[1]))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    fetch(Remote((sys.argv[2],), sys.argv[3]), store.downloads, trust=False, say=print, progress=print)\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    argv = [sys.executable, "-c", code, str(store.root), site.url("image"), DIGEST]
    done = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert done.endswith("File too large\n")
    assert left(store) == []


# -- without a digest


def test_a_file_without_a_digest_needs_trust_first(store: Store, site: Site) -> None:
    with pytest.raises(UsageError, match=r"the digest of .* is not known") as caught:
        fetch(store, site.url("image"), digest="")
    assert "--trust-first" in caught.value.hint
    assert site.asked == []
    assert fetch(store, site.url("image"), digest="", trust=True).name == DIGEST.replace(":", "-")


def test_a_lock_file_is_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.lock"
    assert lockfile.read(path) == {}
    lockfile.write(path, {"https://x/": DIGEST})
    assert lockfile.read(path) == {"https://x/": DIGEST}
    lockfile.write_tables(path, {"packages": {"bash_5.2_amd64": DIGEST}})
    assert lockfile.read(path) == {"https://x/": DIGEST}
    assert lockfile.read(path, "packages") == {"bash_5.2_amd64": DIGEST}
    assert path.read_text().startswith("# What was used")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("ab", ""),
        ("aB", "b has another digest"),
        ("ac", "c is not in it, b is missing"),
        ("abcdefg", "c is not in it, d is not in it, e is not in it, f is not in it, and 1 more"),
    ],
)
def test_what_differs_from_a_lock_file_is_named(found: str, told: str) -> None:
    packages = {name.lower(): name for name in found}
    assert lockfile.differences({"a": "a", "b": "b"}, packages) == told


@pytest.mark.parametrize(
    "text", ["[digest]", "digests = 1", '[digests]\n"x" = 1', '[digests]\n"x" = "md5:1"', "x ="]
)
def test_a_damaged_lock_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.lock").write_text(text)
    with pytest.raises(UsageError, match=r"mine\.lock"):
        lockfile.read(tmp_path / "mine.lock")


def test_a_lock_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write") as caught:
        lockfile.write(tmp_path / "none" / "mine.lock", {})
    assert "copy the recipe" in caught.value.hint


# -- signed lists


@pytest.mark.parametrize("style", ["gnu", "bsd"])
def test_a_digest_is_taken_from_a_signed_list(store: Store, site: Site, keys: Path, style: str) -> None:
    remote = Remote((site.url("image"),), "", site.url("SUMS"), site.url("SUMS.gpg"), str(keys / "keyring.gpg"))
    if style == "gnu":
        site.files["SUMS"] = f"{'0' * 64} *other\n{DIGEST[7:]} *image\n".encode()
        site.files["SUMS.gpg"] = signed(keys, site.files["SUMS"], "--detach-sign")
    else:
        remote = replace(remote, signature="")
        site.files["SUMS"] = signed(
            keys, f"# image: 3 bytes\nSHA512 (image) = {DIGEST_512[7:]}\n".encode(), "--clear-sign"
        )
    _, digest = download.fetch(remote, store.downloads, trust=True, say=print, progress=print)
    assert digest == (DIGEST if style == "gnu" else DIGEST_512)


def test_a_list_signed_by_somebody_else_is_refused(store: Store, site: Site, keys: Path) -> None:
    site.files["SUMS"] = f"{DIGEST[7:]} *image\n".encode()
    site.files["SUMS.gpg"] = signed(keys, b"another list", "--detach-sign")
    remote = Remote((site.url("image"),), "", site.url("SUMS"), site.url("SUMS.gpg"), str(keys / "keyring.gpg"))
    with pytest.raises(ObuildError, match="is not signed by a key in"):
        download.fetch(remote, store.downloads, trust=True, say=print, progress=print)
    site.files["SUMS.gpg"] = signed(keys, site.files["SUMS"], "--detach-sign")
    with pytest.raises(ObuildError, match="SUMS does not list other"):
        download.fetch(
            replace(remote, urls=(site.url("other"),)), store.downloads, trust=True, say=print, progress=print
        )
    with pytest.raises(ObuildError, match="cannot read the list of digests"):
        download.fetch(
            replace(remote, sums=site.url("none")), store.downloads, trust=True, say=print, progress=print
        )
    with pytest.raises(UsageError, match=r"none\.gpg is missing"):
        download.fetch(
            replace(remote, keyring="/none.gpg"), store.downloads, trust=True, say=print, progress=print
        )
    assert left(store) == []


def test_a_list_of_digests_is_looked_up_by_the_whole_name() -> None:
    text = f"{DIGEST[7:]}  ./a\nSHA256 (b) = {DIGEST[7:]}\n{DIGEST_512[7:]} *c\nnonsense\n"
    assert [checksums.find(text, name) for name in ("a", "b", "c", "", "nonsense")] == [
        DIGEST,
        DIGEST,
        DIGEST_512,
        "",
        "",
    ]


# -- in the store


def test_downloads_are_counted_pruned_and_checked(store: Store, site: Site) -> None:
    path = fetch(store, site.url("image"))
    part = store.downloads.begin("url-" + "0" * 64)
    part.write_bytes(b"begun")
    (store.downloads.folder / "notes").write_text("mine")
    counted = {each.what: each.count for each in quota.look(store).parts}
    assert counted["downloads"] == 2
    assert [(each.where, each.repair) for each in fsck.check(store)] == [
        ("downloads/notes", "move it to lost+found/")
    ]
    path.write_bytes(b"damaged")
    damaged = [each for each in fsck.check(store, read_data=True) if each.where == f"downloads/{path.name}"]
    assert [fsck.repair(store, each) for each in damaged] == ["repaired"]
    assert left(store) == [part.name]
    with store.downloads.lock(part.stem):
        assert gc.plan(store, now=0.0, keep_bytes=0).items == ()
    plan = gc.plan(store, now=0.0, keep_bytes=0)
    assert gc.carry_out(store, plan, print) == []
    assert left(store) == []
    assert (store.downloads.folder / "notes").exists()
