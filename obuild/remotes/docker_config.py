"""The credentials that `docker login` has stored: in its config.json, or with a credential helper.

The format is that of docker's config.json and of github.com/docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from obuild.errors import ProcessError, UsageError
from obuild.host import process
from obuild.remotes.reference import HUB

#: What docker calls Docker Hub in its config.
_HUB_KEY = "https://index.docker.io/v1/"

#: A helper that has nothing says so on its stdout, and fails.
_NOTHING = "credentials not found in native keychain"


class Credentials(NamedTuple):
    """A user with a password, or an identity token that a token server takes instead."""

    user: str = ""
    password: str = ""
    identity: str = ""

    def __repr__(self) -> str:  # so that none gets into a message or a log
        return f"Credentials({self.user!r}, …)"

    @property
    def basic(self) -> str:
        """The value of an Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def credentials(host: str, environment: Mapping[str, str]) -> Credentials | None:
    """The credentials for a registry; None if there are none. UsageError if the config or the helper is broken.

    As in docker, a helper for the host comes before the helper for all, and that before what the file holds.
    """
    path = _path(environment)
    config = _read(path)
    key = _HUB_KEY if host == HUB else host
    helper = _table(config, "credHelpers", path).get(key) or config.get("credsStore")
    if helper:
        return _ask(str(helper), key)
    for name, entry in _table(config, "auths", path).items():
        if name == key or _host(name) == host:
            found = _decoded(entry, f"{path}: the entry {name!r}")
            if found:
                return found
    return None


def _path(environment: Mapping[str, str]) -> Path:
    folder = environment.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path(environment.get("HOME", "/")) / ".docker") / "config.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON", hint="`docker login` writes it") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} is not a JSON object", hint="`docker login` writes it")
    return config


def _table(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    table = config.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {name} is not an object")
    return table


def _host(name: str) -> str:
    """The host in a key of `auths`, which older versions of docker wrote as a URL."""
    return name.removeprefix("https://").removeprefix("http://").partition("/")[0]


def _decoded(entry: object, where: str) -> Credentials | None:
    """What an entry of `auths` holds; None for an empty one, which docker writes beside a helper."""
    if not isinstance(entry, dict):
        return None
    if entry.get("identitytoken"):
        return Credentials(identity=str(entry["identitytoken"]))
    if not entry.get("auth"):
        return None
    try:
        user, colon, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        colon = ""
    if not colon:
        raise UsageError(f"{where} is damaged", hint="`docker login` writes it again")
    return Credentials(user, password.rstrip("\0"))


def _ask(helper: str, key: str) -> Credentials | None:
    """Ask docker-credential-HELPER. It gets the host on stdin, and answers on stdout: neither is logged."""
    program = f"docker-credential-{helper}"
    try:
        told = process.run([program, "get"], input=key.encode(), ok=(0, 1)).decode(errors="replace")
    except ProcessError as error:
        raise UsageError(f"cannot get the credentials for {key}: {error.message}") from error
    if _NOTHING in told:
        return None
    try:
        found = json.loads(told)
        user, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{program} has no credentials for {key}", hint=f"docker login {key}") from None
    return Credentials(identity=secret) if user == "<token>" else Credentials(user, secret)
