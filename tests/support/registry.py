"""Debian's docker-registry, with passwords, TLS or tokens; and a server before it that makes trouble."""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.client
import ipaddress
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import bcrypt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

USER, PASSWORD = "builder", "pa:ss word"


@dataclass
class Running:
    """A registry that runs: its host with port, and the folder of its files."""

    host: str
    folder: Path


class Identity:
    """A key, and a certificate for 127.0.0.1 that it has signed itself; `folder` holds both as PEM."""

    def __init__(self, folder: Path) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "obuild tests")])
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        self.certificate = (
            x509.CertificateBuilder(name, name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.crt, self.pem = folder / "ca.crt", folder / "key.pem"
        self.crt.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.pem.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def token(self, claims: dict[str, object]) -> str:
        """A JSON web token (RFC 7515) with these claims, signed by ES256, with the certificate in its header."""
        der = base64.b64encode(self.certificate.public_bytes(serialization.Encoding.DER)).decode()
        head = {"typ": "JWT", "alg": "ES256", "x5c": [der]}
        signed = b".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
        r, s = decode_dss_signature(self.key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return (signed + b"." + _base64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def password_file(folder: Path) -> str:
    """The `auth` of a registry's config that knows USER."""
    file = folder / "htpasswd"
    file.write_bytes(f"{USER}:".encode() + bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)) + b"\n")
    return f"auth: {{htpasswd: {{realm: tests, path: {file}}}}}"


@contextmanager
def registry(
    folder: Path, *, auth: str = "", tls: Identity | None = None, delete: bool = False
) -> Iterator[Running]:
    """Run a registry until the block ends."""
    certificate = f", tls: {{certificate: {tls.crt}, key: {tls.pem}}}" if tls else ""
    removal = f"delete: {{enabled: {str(delete).lower()}}}"
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}, {removal}}}\n"
        f"http: {{addr: '127.0.0.1:0', secret: tests{certificate}}}\n{auth}\n"
    )
    argv = ["docker-registry", "serve", str(config)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        assert child.stderr
        try:
            for line in child.stderr:
                if found := re.search(r"listening on (127\.0\.0\.1:[0-9]+)", line):
                    break
            else:
                raise AssertionError("docker-registry did not start")
            threading.Thread(target=child.stderr.read, daemon=True).start()
            yield Running(found[1], folder)
        finally:
            child.kill()


@dataclass
class Trouble:
    """What happens to one request, the next whose `METHOD path` matches.

    With a `status`, the registry does not see it. "cut" passes half of the body on and ends the connection; "lost"
    passes all on, and ends it before the answer, "short" in the middle of it; "endless" answers with zeros.
    """

    pattern: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    how: str = ""


@dataclass
class Between:
    """A server that passes requests on to a registry. `seen` has their methods and paths."""

    host: str
    troubles: list[Trouble] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)

    def count(self, pattern: str) -> int:
        return sum(1 for each in self.seen if re.match(pattern, each))


@contextmanager
def between(target: str) -> Iterator[Between]:
    """Run such a server before a registry without TLS until the block ends."""
    state = Between("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def _pass(self) -> None:
            line = f"{self.command} {self.path}"
            state.seen.append(line)
            state.authorizations.append(self.headers.get("Authorization", ""))
            trouble = next((each for each in state.troubles if re.match(each.pattern, line)), None)
            if trouble:
                state.troubles.remove(trouble)
            length = int(self.headers.get("Content-Length") or 0)
            if trouble and trouble.how == "cut":
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if trouble and trouble.status:
                self._reply(trouble.status, trouble.headers, b'{"errors":[{"code":"TROUBLE","message":"made"}]}')
                return
            upstream = http.client.HTTPConnection(target)
            upstream.request(self.command, self.path, body=body, headers=dict(self.headers.items()))
            reply = upstream.getresponse()
            data = reply.read()
            upstream.close()
            if trouble and trouble.how == "lost":
                self.close_connection = True
                return
            if trouble and trouble.how in ("short", "endless"):
                self.close_connection = True
                self.send_response_only(reply.status)
                self.send_header("Content-Length", str(len(data) if trouble.how == "short" else 1 << 40))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if trouble.how == "short" else bytes(32 << 20))
                return
            self._reply(reply.status, dict(reply.headers.items()), data)

        def _reply(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name != "Content-Length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._pass)
    with _serving(Handler) as state.host:
        yield state


@dataclass
class TokenServer:
    """A token server: `asked` has the scopes that it was asked for; tokens are good for `lifetime` seconds.

    It gives none at all to who asks for a right to the repository `denied`, too.
    """

    identity: Identity
    address: str = ""
    lifetime: int = 300
    denied: str = ""
    asked: list[str] = field(default_factory=list)

    @property
    def auth(self) -> str:
        """The `auth` of a registry's config that sends clients here."""
        settings = (
            f"realm: '{self.address}/token', service: tests, issuer: us, rootcertbundle: {self.identity.crt}"
        )
        return f"auth: {{token: {{{settings}}}}}"


@contextmanager
def token_server(identity: Identity) -> Iterator[TokenServer]:
    """Run a token server that knows USER, and the identity token `identity`, until the block ends."""
    state = TokenServer(identity)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            self._give(parse_qs(urlsplit(self.path).query), self.headers.get("Authorization") == basic)

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._give(form, form.get("refresh_token") == ["identity"])

        def _give(self, query: dict[str, list[str]], known: bool) -> None:
            state.asked.append(" ".join(query["scope"]))
            if any(scope.split(":")[1] == state.denied for scope in query["scope"]):
                self.send_error(403)
                return
            access = []
            for kind, name, actions in (scope.split(":") for scope in query["scope"]):
                access.append({"type": kind, "name": name, "actions": actions.split(",") if known else ["pull"]})
            now = int(time.time())
            claims = {"iss": "us", "sub": USER, "aud": "tests", "exp": now + state.lifetime, "nbf": now - 60}
            claims |= {"iat": now, "jti": hashlib.sha256(str(now).encode()).hexdigest(), "access": access}
            data = json.dumps({"token": identity.token(claims), "expires_in": state.lifetime}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with _serving(Handler) as host:
        state.address = f"http://{host}"
        yield state


@contextmanager
def _serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def login(folder: Path, host: str, *, identity: str = "") -> dict[str, str]:
    """An environment whose docker config in `folder` knows USER at a registry."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    folder.mkdir(exist_ok=True)
    entry = {"identitytoken": identity} if identity else {"auth": auth}
    (folder / "config.json").write_text(json.dumps({"auths": {host: entry}}))
    return {"DOCKER_CONFIG": str(folder)}
