"""An HTTP server on 127.0.0.1 that misbehaves on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """The content of a server, by path, and how it answers.

    `faults` are used up, one for each request: "cut" ends it after half of what was asked for, "stall" says
    nothing more after half, "404", "whole" ignores a range, "416" refuses it, "more" sends more than it said,
    "unsized" does not say how much it is. `asked` has the Range of each request.
    """

    files: dict[str, bytes]
    faults: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    halfway: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Site]:
    """A server that runs until the block ends."""
    site = Site(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.close_connection = True
            site.asked.append(self.headers.get("Range", ""))
            fault = site.faults.pop(0) if site.faults else ""
            path = self.path.lstrip("/")
            if path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif fault in ("404", "416") or path not in site.files:
                self.send_error(416 if fault == "416" else 404)
            else:
                self._send(site.files[path], fault)

        def _send(self, data: bytes, fault: str) -> None:
            asked = self.headers.get("Range", "")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fault != "whole" else 0
            if start:
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            body = data[start:]
            if fault != "unsized":
                self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            if fault in ("cut", "stall"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                site.halfway.set()
                if fault == "stall":
                    site.released.wait(60)
                return
            self.wfile.write(body + (b"more" * 1000 if fault == "more" else b""))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        site.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
