"""Manifests in a repository of a container registry, and what refers to them.

The protocol is the OCI distribution specification 1.1. Manifests are bytes here: their digest is their name, so
none is ever read and written again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from obuild.errors import ObuildError, UsageError
from obuild.remotes.blobs import PIECE, Blobs
from obuild.remotes.docker_config import credentials
from obuild.remotes.oci import INDEX, MANIFEST, descriptor, digest_of, index
from obuild.remotes.registry_http import Http, Refused
from obuild.remotes.uploads import Uploads

if TYPE_CHECKING:
    import httpx

#: What an image index or a manifest of any kind may be called.
_ACCEPT = ", ".join(
    (
        *(INDEX, MANIFEST),
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


class Repository:
    """A repository of a registry, to push to. All methods may raise Lost and Refused."""

    def __init__(
        self,
        host: str,
        name: str,
        uploads: Uploads | None,
        *,
        others: Sequence[str] = (),
        environment: Mapping[str, str],
        insecure: bool = False,
        piece: int = PIECE,
    ) -> None:
        """Small blobs are taken from `others`, repositories of the same registry, if they are there.

        UsageError if the credentials or a certificate cannot be read, or httpx is missing.
        """
        known = credentials(host, environment)
        self.host, self.name = host, name
        self._http = Http(host, f"repository:{name}:pull,push", known, insecure=insecure)
        self.blobs = Blobs(self._http, name, uploads, others=others, piece=piece)

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.__exit__(kind, error, trace)

    def check(self) -> None:
        """See that the registry answers and knows us. It is asked for an upload, which is then cancelled."""
        self.blobs.check()

    def digest_of(self, reference: str) -> str:
        """The digest of the manifest that a tag or a digest names, "" if there is none."""
        reply = self._http.send(
            *("HEAD", self._manifest(reference)),
            ok=(200, 404),
            what=f"looking into {self.name}",
            headers={"Accept": _ACCEPT},
        )
        if reply.status_code == 404:
            return ""
        return reply.headers.get("Docker-Content-Digest") or digest_of(self.get(reference))

    def get(self, reference: str) -> bytes:
        """A manifest, b"" if there is none."""
        reply = self._http.send(
            *("GET", self._manifest(reference)),
            ok=(200, 404),
            what=f"reading from {self.name}",
            headers={"Accept": _ACCEPT},
        )
        return reply.content if reply.status_code == 200 else b""

    def put(self, data: bytes, media_type: str, *, tag: str = "") -> str:
        """Store a manifest, under a tag or only its digest; returns its digest. What it names must be there.

        ObuildError if the registry has stored other bytes.
        """
        self._put(data, media_type, tag)
        return digest_of(data)

    def attach(
        self,
        data: bytes,
        media_type: str,
        *,
        subject: str,
        artifact_type: str,
        annotations: Mapping[str, str] = {},
    ) -> str:
        """Store a manifest that refers to another by its field `subject`; returns its digest.

        `artifact_type` and `annotations` are what the manifest says of itself.

        A registry that does not list what refers to a manifest gets the list as the tag that the specification
        names for this: the digest with a dash. It is read and written again, so only one process may do this.
        """
        digest = digest_of(data)
        reply = self._put(data, media_type, "")
        if "OCI-Subject" not in reply.headers:
            tag = subject.replace(":", "-")
            there = self.get(tag)
            others = json.loads(there).get("manifests", []) if there else []
            entry = {**descriptor(data, media_type), "artifactType": artifact_type}
            entry |= {"annotations": dict(annotations)} if annotations else {}
            listed = [each for each in others if each.get("digest") != digest] + [entry]
            self.put(index(listed), INDEX, tag=tag)
        return digest

    def tags(self) -> list[str]:
        """All tags."""
        found: list[str] = []
        place = f"/v2/{self.name}/tags/list?n=1000"
        while place:
            reply = self._http.send("GET", place, ok=(200, 404), what=f"reading from {self.name}")
            if reply.status_code == 404:
                return []
            try:
                found += map(str, reply.json()["tags"] or ())
            except (ValueError, TypeError, KeyError) as error:
                raise ObuildError(f"{self.host} sent no list of tags") from error
            place = reply.links.get("next", {}).get("url", "")
        return found

    def referrers(self, digest: str, artifact_type: str) -> list[str]:
        """The digests of manifests of a type that refer to the one with a digest: see `attach`."""
        reply = self._http.send(
            *("GET", f"/v2/{self.name}/referrers/{digest}"),
            ok=(200, 404),
            what=f"reading from {self.name}",
        )
        data = reply.content if reply.status_code == 200 else self.get(digest.replace(":", "-"))
        try:
            entries = json.loads(data)["manifests"] if data else []
            return [str(each["digest"]) for each in entries if each.get("artifactType") == artifact_type]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ObuildError(f"{self.host} sent no list of what refers to {digest}") from error

    def remove(self, digest: str) -> None:
        """Remove a manifest, with its tags. UsageError if the registry does not let anybody."""
        try:
            what = f"removing from {self.name}"
            self._http.send("DELETE", self._manifest(digest), ok=(200, 202, 404), what=what)
        except Refused as error:
            if error.status not in (405, 501):
                raise
            hint = "its own configuration may allow it; of docker-registry, storage: {delete: {enabled: true}}"
            raise UsageError(f"{self.host} lets nobody remove anything", hint=hint) from error

    def _put(self, data: bytes, media_type: str, tag: str) -> httpx.Response:
        digest = digest_of(data)
        reply = self._http.send(
            *("PUT", self._manifest(tag or digest)),
            ok=(201,),
            what=f"writing a manifest to {self.name}",
            headers={"Content-Type": media_type, "Content-Length": str(len(data))},
            body=lambda: [data],
        )
        stored = reply.headers.get("Docker-Content-Digest") or self.digest_of(tag or digest)
        if stored != digest:
            raise ObuildError(f"{self.host} has changed the manifest {digest} into {stored}")
        return reply

    def _manifest(self, reference: str) -> str:
        return f"/v2/{self.name}/manifests/{reference}"
