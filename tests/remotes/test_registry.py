"""The client of registries, on Debian's docker-registry."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from obuild.errors import ObuildError, UsageError
from obuild.remotes import registry_auth, registry_http
from obuild.remotes.blobs import Blobs
from obuild.remotes.docker_config import Credentials
from obuild.remotes.oci import INDEX, MANIFEST, index
from obuild.remotes.registry import Repository
from obuild.remotes.registry_http import Http, Lost, Refused
from obuild.remotes.uploads import Uploads
from tests.support.registry import (
    PASSWORD,
    USER,
    Between,
    Identity,
    Running,
    Trouble,
    between,
    login,
    password_file,
    registry,
    token_server,
)

PIECE = 100_000
DATA = random.Random(1).randbytes(5 * PIECE // 2)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry for anybody, by http."""
    with registry(tmp_path_factory.mktemp("plain")) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry with a password and TLS; `ca.crt` in its folder is its authority."""
    folder = tmp_path_factory.mktemp("guarded")
    with registry(folder, auth=password_file(folder), tls=Identity(folder)) as running:
        yield running


@pytest.fixture
def middle(plain: Running) -> Iterator[Between]:
    with between(plain.host) as state:
        yield state


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client has waited; it does not."""
    waits: list[float] = []
    monkeypatch.setattr(registry_http, "sleep", waits.append)
    return waits


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(DATA + os.urandom(1000))
    return path


def ignore(done: int, total: int) -> None:
    pass


class Opened:
    """A repository with small pieces, and the test's own memory of uploads."""

    def __init__(self, host: str, tmp_path: Path, name: str = "team/thing") -> None:
        self.host, self.name = host, name
        self.uploads = Uploads(tmp_path / "uploads")

    @property
    def repository(self) -> Repository:
        return Repository(self.host, self.name, self.uploads, environment={}, insecure=True, piece=PIECE)

    def push(self, path: Path) -> str:
        found = digest(path.read_bytes())
        with self.repository as repository:
            repository.blobs.push(path, found, ignore)
            assert repository.blobs.has(found)
        return found

    def left(self, tmp_path: Path) -> int:
        """How many uploads are remembered. (Of a blob that has arrived, its repository is.)"""
        return sum(path.read_text().startswith("http") for path in (tmp_path / "uploads").iterdir())


def stored(running: Running, found: str) -> bytes:
    name = found.removeprefix("sha256:")
    return (running.folder / f"data/docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data").read_bytes()


def test_a_blob_arrives_in_pieces_once(plain: Running, middle: Between, blob: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    opened = Opened(middle.host, tmp_path)
    found = digest(blob.read_bytes())
    size = blob.stat().st_size
    with opened.repository as repository:
        assert repository.blobs.push(blob, found, lambda done, total: told.append((done, total)))
        assert stored(plain, found) == blob.read_bytes()
        assert middle.count("PATCH") == 3
        assert (told[0], told[-1]) == ((0, size), (size, size))
        assert not repository.blobs.push(blob, found, ignore)
    assert middle.count("POST") == 1
    assert opened.left(tmp_path) == 0


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (None, 0),
        (Trouble("POST .*mount=", 202, {"Location": "/v2/team/two/blobs/uploads/new"}), 3),
        (Trouble("POST .*mount=", 403), 3),
    ],
)
def test_a_blob_that_another_repository_has_is_taken_from_there(
    middle: Between, blob: Path, tmp_path: Path, answer: Trouble | None, again: int
) -> None:
    """Or it is sent, if the registry does not do that."""
    Opened(middle.host, tmp_path, "team/one").push(blob)
    pieces = middle.count("PATCH ")
    middle.troubles += [answer] if answer else []
    second = Opened(middle.host, tmp_path, f"team/two-{again}")
    found = second.push(blob)
    assert middle.count("PATCH ") == pieces + again
    with second.repository as repository:
        assert repository.blobs.has(found)


def test_a_small_blob_arrives_in_one_request(plain: Running, middle: Between, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(os.urandom(50))
    found = Opened(middle.host, tmp_path).push(small)
    assert stored(plain, found) == small.read_bytes()
    assert (middle.count("PATCH"), middle.count("PUT")) == (0, 1)


@pytest.mark.parametrize("how", ["cut", "lost"])
@pytest.mark.parametrize("method", ["HEAD", "POST", "PATCH", "PUT"])
def test_a_cut_connection_costs_one_request(
    plain: Running, middle: Between, blob: Path, tmp_path: Path, waits: list[float], method: str, how: str
) -> None:
    middle.troubles.append(Trouble(f"{method} ", how=how))
    found = Opened(middle.host, tmp_path).push(blob)
    assert stored(plain, found) == blob.read_bytes()
    assert waits == [1.0]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_registry_in_trouble_is_asked_again(
    plain: Running, middle: Between, blob: Path, tmp_path: Path, waits: list[float], status: int
) -> None:
    middle.troubles += [Trouble("PATCH ", status), Trouble("POST ", status), Trouble("PUT ", status)]
    found = Opened(middle.host, tmp_path).push(blob)
    assert stored(plain, found) == blob.read_bytes()


def test_a_registry_that_limits_requests_is_given_time(
    middle: Between, blob: Path, tmp_path: Path, waits: list[float]
) -> None:
    date = {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}
    middle.troubles += [Trouble("PATCH ", 429, {"Retry-After": "7"}), Trouble("PUT ", 429, date)]
    Opened(middle.host, tmp_path).push(blob)
    assert waits == [7.0, 1.0]


def test_a_registry_that_never_lets_us_is_left(
    middle: Between, blob: Path, tmp_path: Path, waits: list[float]
) -> None:
    middle.troubles += [Trouble("PATCH ", 429)] * 20
    with pytest.raises(Refused, match=r"sending to team/thing: 127\.0\.0\.1:\d+ says 429 TROUBLE: made") as caught:
        Opened(middle.host, tmp_path).push(blob)
    assert caught.value.hint == "try again later: it goes on where it ended"
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_an_upload_goes_on_at_the_next_try(
    plain: Running, middle: Between, blob: Path, tmp_path: Path, waits: list[float]
) -> None:
    """Also in another process: all that is known is in the folder of uploads."""
    opened = Opened(middle.host, tmp_path)
    middle.troubles += [Trouble("PATCH "), *[Trouble("PATCH ", how="cut")] * 5]
    with pytest.raises(Lost, match="cannot reach"):
        opened.push(blob)
    assert opened.left(tmp_path) == 1
    assert (next((tmp_path / "uploads").iterdir()).stat().st_mode & 0o777) == 0o600
    middle.seen.clear()
    middle.troubles.clear()
    found = Opened(middle.host, tmp_path).push(blob)
    assert stored(plain, found) == blob.read_bytes()
    assert (middle.count("PATCH"), middle.count("POST")) == (2, 0)
    assert opened.left(tmp_path) == 0


def test_an_upload_that_the_registry_has_forgotten_begins_again(
    plain: Running, middle: Between, blob: Path, tmp_path: Path
) -> None:
    opened = Opened(middle.host, tmp_path)
    name = f"{middle.host}/team/thing@{digest(blob.read_bytes())}"
    opened.uploads.put(name, f"http://{middle.host}/v2/team/thing/blobs/uploads/gone")
    found = opened.push(blob)
    assert stored(plain, found) == blob.read_bytes()


def test_a_process_that_is_killed_has_sent_what_it_has_sent(middle: Between, blob: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from obuild.host import failpoints; "
        "from obuild.remotes.registry import Repository; from obuild.remotes.uploads import Uploads; "
        "failpoints.kill_at('publish.piece:2'); host, uploads, path, digest = sys.argv[1:]; "
        "kept = Uploads(Path(uploads)); "
        "made = Repository(host, 'team/thing', kept, environment={}, insecure=True, piece=100000); "
        "made.blobs.push(Path(path), digest, lambda done, total: None)"
    )
    argv = [
        sys.executable,
        "-c",
        code,
        middle.host,
        str(tmp_path / "uploads"),
        str(blob),
        digest(blob.read_bytes()),
    ]
    assert subprocess.run(argv).returncode == -9
    middle.seen.clear()
    Opened(middle.host, tmp_path).push(blob)
    assert (middle.count("PATCH"), middle.count("POST")) == (1, 0)


def test_smaller_pieces_pass_a_proxy_that_limits_requests(
    plain: Running, middle: Between, tmp_path: Path, waits: list[float]
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(5 << 20))
    uploads = Uploads(tmp_path / "uploads")
    middle.troubles += [Trouble("PATCH ", 413)]
    with Repository(middle.host, "large", uploads, environment={}, insecure=True, piece=4 << 20) as repository:
        repository.blobs.push(large, digest(large.read_bytes()), ignore)
    assert middle.count("PATCH") == 6
    assert stored(plain, digest(large.read_bytes())) == large.read_bytes()


@pytest.mark.parametrize("status", [404, 405, 416])
def test_a_registry_that_takes_no_pieces_gets_the_blob_whole(
    plain: Running, middle: Between, blob: Path, tmp_path: Path, status: int
) -> None:
    middle.troubles.append(Trouble("PATCH ", status))
    opened = Opened(middle.host, tmp_path)
    found = opened.push(blob)
    assert stored(plain, found) == blob.read_bytes()
    assert middle.count("PATCH") == 1


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "docker login"), (403, "may not write"), (404, "created first"), (413, "limits the size of requests")],
)
def test_a_refusal_is_named_with_what_to_do(
    middle: Between, blob: Path, tmp_path: Path, status: int, hint: str
) -> None:
    middle.troubles.append(Trouble("POST ", status))
    with pytest.raises(Refused, match=f"says {status} TROUBLE: made") as caught:
        Opened(middle.host, tmp_path).push(blob)
    assert hint in caught.value.hint


def test_a_registry_that_is_down(blob: Path, tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(Lost, match=r"cannot reach 127\.0\.0\.1:1: .*Connection refused"):
        Opened("127.0.0.1:1", tmp_path).push(blob)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_slow_registry(blob: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    import socket

    monkeypatch.setattr(registry_http, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Lost, match=f"{host} sent nothing for 0.05 s"):
            Opened(host, tmp_path).push(blob)


def test_a_login_with_a_password_over_tls(
    guarded: Running, blob: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(tmp_path / "uploads")
    found = digest(blob.read_bytes())

    def push(environment: dict[str, str]) -> None:
        with Repository(guarded.host, "a", uploads, environment=environment, piece=PIECE) as repository:
            repository.blobs.push(blob, found, ignore)

    known = login(tmp_path / "docker", guarded.host)
    with pytest.raises(ObuildError, match=r"the certificate of .* is not trusted") as caught:
        push(known)
    assert "SSL_CERT_FILE" in caught.value.hint
    monkeypatch.setenv("SSL_CERT_FILE", str(guarded.folder / "ca.crt"))
    with pytest.raises(Refused, match="says 401") as caught:
        push({})
    assert "docker login" in caught.value.hint
    push(known)
    assert stored(guarded, found) == blob.read_bytes()


def test_dockers_folder_of_certificates(guarded: Running, tmp_path: Path) -> None:
    folder = tmp_path / guarded.host
    folder.mkdir()
    (folder / "ca.crt").write_bytes((guarded.folder / "ca.crt").read_bytes())
    known = Credentials(USER, PASSWORD)
    with Http(guarded.host, "repository:a:pull,push", known, certificates=tmp_path) as http:
        assert not Blobs(http, "a", Uploads(tmp_path / "uploads")).has(digest(b"nothing"))
    (folder / "bad.crt").write_text("no certificate")
    with pytest.raises(UsageError, match="cannot be used"):
        Http(guarded.host, "repository:a:pull,push", known, certificates=tmp_path)


def test_a_registry_without_tls(plain: Running, tmp_path: Path) -> None:
    with (
        Repository(plain.host, "a", Uploads(tmp_path), environment={}) as repository,
        pytest.raises(ObuildError, match="does not speak TLS") as caught,
    ):
        repository.check()
    assert caught.value.hint == "--insecure uses http"


@pytest.mark.parametrize("identity", ["", "identity"])
def test_tokens_are_asked_for_the_repository_and_renewed(
    blob: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, identity: str
) -> None:
    with (
        token_server(Identity(tmp_path)) as tokens,
        registry(tmp_path, auth=tokens.auth) as running,
        between(running.host) as middle,
    ):
        clock = itertools.count(step=100.0)
        monkeypatch.setattr(registry_auth, "monotonic", clock.__next__)
        uploads = Uploads(tmp_path / "uploads")
        environment = login(tmp_path / "docker", middle.host, identity=identity)
        found = digest(blob.read_bytes())
        with Repository(
            middle.host, "team/a", uploads, environment=environment, insecure=True, piece=PIECE
        ) as repository:
            repository.blobs.push(blob, found, ignore)
        assert set(tokens.asked) == {"repository:team/a:pull,push"}
        assert len(tokens.asked) > middle.count("PATCH")
        assert stored(running, found) == blob.read_bytes()
        with Repository(
            middle.host, "team/b", uploads, environment=environment, insecure=True, piece=PIECE
        ) as repository:
            assert not repository.blobs.push(blob, found, ignore)
        assert tokens.asked[-1] == "repository:team/b:pull,push repository:team/a:pull"
        tokens.denied = "team/b"
        with Repository(
            middle.host, "team/d", uploads, environment=environment, insecure=True, piece=PIECE
        ) as repository:
            assert repository.blobs.push(blob, found, ignore)
        with (
            Repository(middle.host, "team/c", uploads, environment={}, insecure=True) as repository,
            pytest.raises(Refused, match="says 401 UNAUTHORIZED"),
        ):
            repository.blobs.push(blob, found, ignore)


def test_a_login_goes_to_no_other_server(plain: Running, blob: Path, tmp_path: Path) -> None:
    """A registry may send uploads elsewhere."""
    with between(plain.host) as middle, between(plain.host) as other:
        place = f"http://{other.host}/v2/a/blobs/uploads/x"
        basic = {"WWW-Authenticate": 'Basic realm="x"'}
        middle.troubles += [Trouble("HEAD ", 401, basic), Trouble("POST ", 202, {"Location": place})]
        environment = login(tmp_path / "docker", middle.host)
        with (
            Repository(
                middle.host, "a", Uploads(tmp_path / "u"), environment=environment, insecure=True
            ) as opened,
            pytest.raises(Refused),
        ):
            opened.blobs.push(blob, digest(blob.read_bytes()), ignore)
        assert middle.authorizations[-1].startswith("Basic ")
        assert other.authorizations == [""]


def manifest(config: str, size: int, **more: object) -> bytes:
    described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size}
    return json.dumps(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": [], **more}
    ).encode()


def test_manifests_keep_their_bytes(plain: Running, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(b"{ }")
    opened = Opened(plain.host, tmp_path, "kept")
    data = manifest(opened.push(config), 3)
    with opened.repository as repository:
        assert repository.digest_of("v1") == ""
        assert repository.get("v1") == b""
        assert repository.put(data, MANIFEST, tag="v1") == digest(data)
        assert repository.get("v1") == repository.get(digest(data)) == data
        assert repository.digest_of("v1") == digest(data)


def test_what_refers_to_a_manifest_is_listed(plain: Running, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(b"{}")
    opened = Opened(plain.host, tmp_path, "referred")
    subject = manifest(opened.push(config), 2)
    with opened.repository as repository:
        repository.put(subject, MANIFEST, tag="v1")
        about = {"mediaType": MANIFEST, "digest": digest(subject), "size": len(subject)}
        notes = [manifest(digest(b"{}"), 2, subject=about, annotations={"n": str(n)}) for n in (1, 2)]
        for note in (*notes, notes[0]):
            repository.attach(note, MANIFEST, subject=digest(subject), artifact_type="text/x")
        listed = json.loads(repository.get(digest(subject).replace(":", "-")))
    assert [each["digest"] for each in listed["manifests"]] == [digest(notes[1]), digest(notes[0])]
    assert {each["artifactType"] for each in listed["manifests"]} == {"text/x"}
    assert listed["mediaType"] == INDEX
    assert index([]) == b'{"manifests":[],"mediaType":"application/vnd.oci.image.index.v1+json","schemaVersion":2}'


def test_a_registry_that_changes_a_manifest_is_found_out(middle: Between, tmp_path: Path) -> None:
    middle.troubles.append(Trouble("PUT ", 201, {"Docker-Content-Digest": digest(b"other")}))
    with (
        Opened(middle.host, tmp_path).repository as repository,
        pytest.raises(ObuildError, match="has changed the manifest"),
    ):
        repository.put(b"{}", MANIFEST, tag="v1")
