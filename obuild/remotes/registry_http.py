"""Requests to a container registry: with its login, over TLS, and tried again after what passes by itself."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from email.utils import parsedate_to_datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path
from time import sleep, time
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from obuild.errors import ObuildError, UsageError
from obuild.host import imports
from obuild.remotes.docker_config import Credentials
from obuild.remotes.reference import HUB, HUB_SERVER
from obuild.remotes.registry_auth import Login, challenge

if TYPE_CHECKING:
    import httpx

#: Where docker keeps a folder for each registry: the authorities that sign its certificate, and the client's own.
CERTIFICATES = Path("/etc/docker/certs.d")

#: How often a request is sent at most, and how long to wait before the second time, in seconds. It doubles.
TRIES, FIRST_WAIT = 5, 1.0

#: The longest that a registry may make us wait with Retry-After, in seconds.
_LONGEST_WAIT = 300.0

#: How long a registry may be silent, in seconds.
TIMEOUT = 60.0

#: How long it may take to connect, in seconds.
CONNECTING = 10.0

#: The longest answer that is read, in bytes, if it is not said otherwise.
LONGEST = 8 << 20

_KEPT = "try again later: it goes on where it ended"

#: The body of a request. It is made anew for each try.
Body = Callable[[], Iterable[bytes]]


class Lost(ObuildError):
    """The registry could not be reached, the connection was cut, or the registry is in trouble (5xx)."""


class Refused(ObuildError):
    """The registry says no: `status` is its answer's."""

    def __init__(self, message: str, status: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Http:
    """Sends requests to one registry, with the right to one repository."""

    def __init__(
        self,
        host: str,
        scope: str,
        credentials: Credentials | None,
        *,
        insecure: bool = False,
        certificates: Path = CERTIFICATES,
    ) -> None:
        """With `insecure`, the registry is asked by http. UsageError if httpx or a certificate is missing."""
        try:
            with imports.without("httpx._main", "trio", "anyio"):  # what commands and asyncio need
                import httpcore as httpcore  # httpx imports it late
                import httpx
        except ImportError:
            raise UsageError("the Python package httpx is missing", hint="pip install 'obuild[publish]'") from None
        self._httpx = httpx
        self.host = host
        self._root = f"{'http' if insecure else 'https'}://{HUB_SERVER if host == HUB else host}"
        self._certificates = certificates / host
        self._clients = ExitStack()
        if not insecure:
            _ = self._secure  # so that we hear of bad certificates now
        self._login = Login(host, scope, credentials, self._retried)

    def __enter__(self) -> Http:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._clients.close()

    @cached_property
    def _secure(self) -> httpx.Client:
        """Sends by https. To read all authorities takes longer than a request, so not before it is needed."""
        return self._client(_tls(self._certificates))

    @cached_property
    def _plain(self) -> httpx.Client:
        """Sends by http. It trusts no authority."""
        return self._client(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def _client(self, tls: ssl.SSLContext) -> httpx.Client:
        client: httpx.Client = self._httpx.Client(
            verify=tls,
            timeout=self._httpx.Timeout(TIMEOUT, connect=CONNECTING),
            headers={"User-Agent": "obuild", "Accept-Encoding": "identity"},
        )
        self._clients.callback(client.close)
        return client

    @contextmanager
    def reading(self, repository: str) -> Iterator[None]:
        """If the registry asks for a login in the block, ask for the right to read another repository, too."""
        scope = f"repository:{repository}:pull"
        self._login.scopes.append(scope)
        try:
            yield
        finally:
            self._login.scopes.remove(scope)

    def absolute(self, place: str) -> str:
        """A URL of the registry; `place` may be a path, or a URL already."""
        return urljoin(self._root, place)

    def send(
        self,
        method: str,
        place: str,
        *,
        ok: tuple[int, ...],
        what: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        again: bool = True,
        most: int = LONGEST,
    ) -> httpx.Response:
        """Send a request, log in if the registry asks, and return an answer with a status of `ok`.

        ObuildError if the answer has more than `most` bytes.

        After 429, 5xx and cut connections it is sent again, but without `again` only after 429. Lost if that does
        not help; Refused, with `what` was wanted, for any other status.
        """
        url = self.absolute(place)
        for _ in range(2):
            sent = {**self._authorization(url), **(headers or {})}
            reply = self._retried(method, url, headers=sent, body=body, again=again, most=most)
            if reply.status_code != 401 or not self._answered(reply):
                break
        if reply.status_code in ok:
            return reply
        raise self._refused(reply, what)

    def pause(self, attempt: int) -> None:
        """Wait before an attempt that follows `attempt` others."""
        sleep(FIRST_WAIT * 2 ** (attempt - 1))

    def _authorization(self, url: str) -> dict[str, str]:
        """The login, but only for the registry itself: it may name another server to upload to."""
        ours = urlsplit(url)[:2] == urlsplit(self._root)[:2]
        return {"Authorization": self._login.header} if ours and self._login.header else {}

    def _answered(self, reply: httpx.Response) -> bool:
        return any(
            self._login.answer(challenge(header)) for header in reply.headers.get_list("WWW-Authenticate")[:4]
        )

    def _retried(
        self,
        method: str,
        url: str,
        *,
        body: Body | None = None,
        again: bool = True,
        most: int = LONGEST,
        **options: Any,
    ) -> httpx.Response:
        for attempt in range(1, TRIES + 1):
            try:
                client = self._plain if url.startswith("http:") else self._secure
                request = client.build_request(method, url, content=body() if body else None, **options)
                reply = self._answer(client.send(request, stream=True), most)
            except self._httpx.TransportError as error:
                problem = self._lost(error)
                if attempt == TRIES or not again or not isinstance(problem, Lost):
                    raise problem from error
                self.pause(attempt)
                continue
            except self._httpx.InvalidURL as error:
                raise ObuildError(f"{self.host} names a place that is no URL: {url}") from error
            if attempt == TRIES or not (reply.status_code == 429 or (reply.status_code >= 500 and again)):
                return reply
            if asked := _retry_after(reply.headers.get("Retry-After", "")):
                sleep(asked)
            else:
                self.pause(attempt)
        raise AssertionError("the last attempt returns or raises")

    def _answer(self, reply: httpx.Response, most: int) -> httpx.Response:
        """Read an answer as far as it may go."""
        with closing(reply):
            content = BytesIO()  # what it returns at the end is no copy
            for piece in reply.iter_bytes():
                if content.tell() + len(piece) > most:
                    raise ObuildError(f"{self.host} sends more than {most} bytes for {reply.url.path}")
                content.write(piece)
        lengths = ("content-length", "content-encoding", "transfer-encoding")
        headers = [(name, value) for name, value in reply.headers.multi_items() if name not in lengths]
        answer = content.getvalue()
        return self._httpx.Response(reply.status_code, headers=headers, content=answer, request=reply.request)

    def _lost(self, error: httpx.TransportError) -> ObuildError:
        text = str(error)
        if isinstance(error, self._httpx.TimeoutException):
            silent = CONNECTING if isinstance(error, self._httpx.ConnectTimeout) else TIMEOUT
            return Lost(f"{self.host} sent nothing for {silent:g} s", hint=_KEPT)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            hint = f"put its authority's certificate into {CERTIFICATES / self.host}/ca.crt, or set SSL_CERT_FILE"
            return ObuildError(f"the certificate of {self.host} is not trusted: {text}", hint=hint)
        if "[SSL" in text:
            return ObuildError(f"{self.host} does not speak TLS: {text}", hint="--insecure uses http")
        return Lost(f"cannot reach {self.host}: {text or type(error).__name__}", hint=_KEPT)

    def _refused(self, reply: httpx.Response, what: str) -> ObuildError:
        status = reply.status_code
        said = _said(reply)
        message = f"{what}: {self.host} says {status}{f' {said}' if said else ''}"
        hint = {
            401: f"`docker login {self.host}` stores credentials, and DOCKER_CONFIG names another folder for them",
            403: "the account may not write to this repository",
            404: "the repository may have to be created first",
            413: "a proxy before the registry limits the size of requests",
            429: _KEPT,
        }.get(status, "")
        return Lost(message, hint=_KEPT) if status >= 500 else Refused(message, status, hint=hint)


def _said(reply: httpx.Response) -> str:
    """The first error in an answer, in the form of the distribution specification; "" if it has another form."""
    try:
        error = reply.json()["errors"][0]
        text = f"{error.get('code', '')}: {error.get('message', '')}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    return "".join(each if each.isprintable() else " " for each in text)[:300]


def _retry_after(header: str) -> float:
    """How long to wait, in seconds: the header has their number, or a date."""
    if header.strip().isdecimal():
        return min(float(header), _LONGEST_WAIT)
    try:
        return min(max(0.0, parsedate_to_datetime(header).timestamp() - time()), _LONGEST_WAIT)
    except (ValueError, TypeError):
        return 0.0


def _tls(folder: Path) -> ssl.SSLContext:
    """The authorities of this host (or of SSL_CERT_FILE), and what docker's folder for a registry adds."""
    context = ssl.create_default_context()
    try:
        for authority in sorted(folder.glob("*.crt")):
            context.load_verify_locations(authority)
        for certificate in sorted(folder.glob("*.cert")):
            context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"a certificate in {folder} cannot be used: {error}") from error
    return context
