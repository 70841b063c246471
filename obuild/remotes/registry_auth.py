"""Log in to a container registry: with a password, or with a token that a token server gives for it.

The protocol is that of https://distribution.github.io/distribution/spec/auth/token/ and /oauth/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from obuild.errors import ObuildError
from obuild.remotes.docker_config import Credentials

if TYPE_CHECKING:
    import httpx

_PARAMETER = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"([^"]*)"|([^",\s]+))')

#: How long a token is good for if its server does not say, in seconds; the protocol sets this.
_LIFETIME = 60.0


class Challenge(NamedTuple):
    """What a WWW-Authenticate header asks for."""

    scheme: str
    realm: str
    service: str


def challenge(header: str) -> Challenge:
    """Read a WWW-Authenticate header."""
    scheme, _, rest = header.strip().partition(" ")
    found = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)}
    return Challenge(scheme.lower(), found.get("realm", ""), found.get("service", ""))


class Login:
    """The Authorization header for some scopes of a registry, for example `repository:pg16:pull,push`.

    A scope that is added holds from the next time that the registry asks. `send` makes a request of the token
    server, without a login, and tries again as the registry's requests do.
    """

    def __init__(
        self, host: str, scope: str, credentials: Credentials | None, send: Callable[..., httpx.Response]
    ) -> None:
        self._host, self.scopes, self._credentials, self._send = host, [scope], credentials, send
        self._challenge: Challenge | None = None
        self._header = ""
        self._until = float("inf")

    @property
    def header(self) -> str:
        """The header, "" before the registry has asked. A token that is about to expire is renewed first."""
        if self._challenge and monotonic() > self._until:
            self.answer(self._challenge)
        return self._header

    def answer(self, asked: Challenge) -> bool:
        """Do what a registry asks for after a 401; False if there is no way. ObuildError."""
        self._challenge = asked
        if asked.scheme == "basic" and self._credentials and not self._credentials.identity:
            self._header = self._credentials.basic
            return True
        if asked.scheme == "bearer" and asked.realm:
            self._header = f"Bearer {self._token(asked)}"
            return True
        return False

    def _token(self, asked: Challenge) -> str:
        # A password must not go to any server that somebody in between names.
        if urlsplit(asked.realm).scheme != "https" and not _is_same_host(asked.realm, self._host):
            raise ObuildError(f"{self._host} names a token server without TLS: {asked.realm}")
        known = self._credentials
        query = {"service": asked.service, "scope": self.scopes}
        if known and known.identity:
            form = {**query, "grant_type": "refresh_token", "client_id": "obuild", "refresh_token": known.identity}
            reply = self._send("POST", asked.realm, data=form)
        else:
            headers = {"Authorization": known.basic} if known else {}
            reply = self._send("GET", asked.realm, params=query, headers=headers)
        if reply.status_code != 200:
            hint = f"`docker login {self._host}` stores credentials"
            raise ObuildError(f"the token server of {self._host} says {reply.status_code}", hint=hint)
        try:
            told = reply.json()
            token = str(told.get("token") or told["access_token"])
            lifetime = float(told.get("expires_in") or _LIFETIME)
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ObuildError(f"the token server of {self._host} sent no token") from None
        self._until = monotonic() + lifetime * 0.8
        return token


def _is_same_host(url: str, host: str) -> bool:
    return urlsplit(url).hostname == urlsplit(f"//{host}").hostname
