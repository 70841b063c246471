"""Credentials are found where docker keeps them."""

from __future__ import annotations

import base64
import json
import logging
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.remotes.docker_config import Credentials, credentials

HELPER = """#!/bin/sh
read host
case "$1 $host" in
"get known.example") echo '{"ServerURL": "x", "Username": "me", "Secret": "swordfish"}' ;;
"get token.example") echo '{"ServerURL": "x", "Username": "<token>", "Secret": "swordfish"}' ;;
"get odd.example") echo 'whatever swordfish' ;;
"get broken.example") echo 'no keychain' >&2; exit 2 ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program docker-credential-tests is on PATH."""
    program = tmp_path / "docker-credential-tests"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def config(folder: Path, value: object) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(value))
    return {"DOCKER_CONFIG": str(folder), "HOME": "/nonexistent"}


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("r.example", "r.example"),
        ("r.example:5000", "https://r.example:5000/v2/"),
        ("docker.io", "https://index.docker.io/v1/"),
    ],
)
def test_a_password_in_the_file(tmp_path: Path, host: str, key: str) -> None:
    environment = config(tmp_path, {"auths": {"other.example": auth("a", "b"), key: auth("me", "p:w")}})
    assert credentials(host, environment) == Credentials("me", "p:w")
    assert credentials("r.example:1", environment) is None


def test_an_identity_token_in_the_file(tmp_path: Path) -> None:
    environment = config(tmp_path, {"auths": {"r.example": {"identitytoken": "abc", **auth("me", "x")}}})
    assert credentials("r.example", environment) == Credentials(identity="abc")


def test_without_a_config_there_are_none(tmp_path: Path) -> None:
    assert credentials("r.example", {"HOME": str(tmp_path)}) is None
    config(tmp_path / ".docker", {"auths": {"r.example": auth("me", "x")}})
    assert credentials("r.example", {"HOME": str(tmp_path)}) == Credentials("me", "x")


@pytest.mark.usefixtures("helper")
@pytest.mark.parametrize("field", ["credsStore", "credHelpers"])
def test_a_helper_is_asked(tmp_path: Path, field: str, caplog: pytest.LogCaptureFixture) -> None:
    hosts = ("known.example", "token.example", "new.example")
    named = "tests" if field == "credsStore" else dict.fromkeys(hosts, "tests")
    environment = config(tmp_path, {field: named, "auths": {"known.example": {}}})
    with caplog.at_level(logging.INFO):
        found = [credentials(host, environment) for host in hosts]
    assert found == [Credentials("me", "swordfish"), Credentials(identity="swordfish"), None]
    assert "docker-credential-tests get" in caplog.text
    assert "swordfish" not in caplog.text + repr(found)


@pytest.mark.usefixtures("helper")
@pytest.mark.parametrize(
    ("host", "said"),
    [("odd.example", "has no credentials for odd.example"), ("broken.example", "no keychain")],
)
def test_a_helper_that_fails_is_named(tmp_path: Path, host: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        credentials(host, config(tmp_path, {"credsStore": "tests"}))
    assert "swordfish" not in caught.value.message + caught.value.hint


def test_a_helper_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="docker-credential-none is not installed"):
        credentials("r.example", config(tmp_path, {"credsStore": "none"}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"auths": []}', "auths is not an object"),
        ('{"auths": {"r.example": {"auth": "%%%"}}}', "the entry 'r.example' is damaged"),
        ('{"auths": {"r.example": {"auth": "bWU="}}}', "the entry 'r.example' is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        credentials("r.example", {"DOCKER_CONFIG": str(tmp_path)})
