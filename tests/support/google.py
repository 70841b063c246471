"""As much of Google Cloud Storage's XML interface as an upload in parts needs. It checks nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


@contextmanager
def google(folder: Path) -> Iterator[dict[str, str]]:
    """Run it until the block ends, with a bucket `images`; yields what obstore's environment must have."""
    objects: dict[str, tuple[bytes, str]] = {}
    uploads: dict[str, tuple[str, dict[int, bytes]]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def _reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _parts(self) -> tuple[str, dict[str, list[str]], bytes]:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return unquote(url.path), parse_qs(url.query, keep_blank_values=True), body

        def do_POST(self) -> None:
            path, query, _ = self._parts()
            if "uploads" in query:
                uploads[str(len(uploads))] = self.headers.get("x-goog-meta-sha256", ""), {}
                answer = f"<UploadId>{len(uploads) - 1}</UploadId>"
                self._reply(
                    200, f"<InitiateMultipartUploadResult>{answer}</InitiateMultipartUploadResult>".encode()
                )
                return
            sha256, parts = uploads.pop(query["uploadId"][0])
            objects[path] = b"".join(parts[number] for number in sorted(parts)), sha256
            answer = "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
            self._reply(200, answer.encode())

        def do_PUT(self) -> None:
            _, query, body = self._parts()
            uploads[query["uploadId"][0]][1][int(query["partNumber"][0])] = body
            self._reply(200, ETag=query["partNumber"][0])

        def do_GET(self) -> None:
            path, _, _ = self._parts()
            if path == "/images":
                self._reply(200, b"<ListBucketResult></ListBucketResult>")
            elif path in objects:
                modified = "Sun, 22 Nov 2026 00:00:00 GMT"
                data, sha256 = objects[path]
                self._reply(200, data, ETag="e", Last_Modified=modified, x_goog_meta_sha256=sha256)
            else:
                self._reply(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    nobody = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
    (folder / "account.json").write_text(json.dumps({"gcs_base_url": address, **nobody}))
    try:
        yield {"GOOGLE_SERVICE_ACCOUNT": str(folder / "account.json")}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
