"""Copy files out of a finished build. The manifest is remembered as long as the layer is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from obuild.errors import ObuildError
from obuild.events import Teller
from obuild.executors.protocol import Executor
from obuild.host.fs import replace_text
from obuild.host.regular import read_text
from obuild.plan import archive, tree
from obuild.plan.keys import LayerId
from obuild.plan.steps import Extract, Graft
from obuild.spec import UnixUser
from obuild.store.layers import Store


@dataclass
class Extractor:
    """Takes files out of the layer of a finished build. Its archives are removed when `stack` closes."""

    store: Store
    executor: Callable[[], Executor]
    layer: LayerId
    stack: ExitStack
    pax: bool = False  # whether the guest's tar writes pax, which the guest itself must not decide
    archives: dict[Extract, tuple[Path, tree.Manifest]] = field(default_factory=dict)

    def manifest(self, extract: Extract, tell: Teller) -> tree.Manifest:
        """Return the manifest of the files: the remembered one, or read from a machine booted on the layer."""
        if (known := self.remembered(extract)) is not None:
            return known
        _, found = self._archive(extract, tell)
        memo = self._memo(extract)
        memo.parent.mkdir(exist_ok=True)
        text = json.dumps({"stamp": self.store.layer(self.layer).stamp(), "manifest": found})
        replace_text(memo, text)
        return found

    def remembered(self, extract: Extract) -> tree.Manifest | None:
        """Return the manifest if it was read before, from the layer as it is now."""
        try:
            kept = json.loads(read_text(self._memo(extract)))
            if kept["stamp"] == self.store.layer(self.layer).stamp():
                return checked_manifest(kept["manifest"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # the memo only saves time
            pass
        return None

    def checked_archive(self, graft: Graft, tell: Teller) -> Path:
        """Return an archive that matches the graft's manifest. ObuildError if the layer's files differ."""
        archive, found = self._archive(graft.extract, tell)
        if found != graft.manifest:
            raise ObuildError(f"the files of the build {graft.extract.origin} have changed", hint="build again")
        return archive

    def _archive(self, extract: Extract, tell: Teller) -> tuple[Path, tree.Manifest]:
        """Return the files as a tar archive, and its manifest."""
        if extract not in self.archives:
            draft = self.stack.enter_context(self.store.scratch(self.layer))
            path = draft.path / f"{len(self.archives)}.tar"
            with self.executor().open(draft, network=False, tell=tell) as session:
                session.take(extract, path)
            user = extract.user
            owner = (user.uid, user.gid) if isinstance(user, UnixUser) else None
            self.archives[extract] = path, archive.manifest_of(path, owner=owner, pax=self.pax)
        return self.archives[extract]

    def _memo(self, extract: Extract) -> Path:
        user = extract.user
        who = [user.uid, user.gid] if isinstance(user, UnixUser) else [user.name]
        text = json.dumps([self.layer, extract.src, extract.exclude, extract.rename, who])
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self.store.manifests / f"{self.layer}-{name[:32]}.json"


def checked_manifest(kept: object) -> tree.Manifest:
    """Convert a manifest from JSON. TypeError if it is invalid."""
    if not isinstance(kept, list) or not all(isinstance(entry, list) for entry in kept):
        raise TypeError("a manifest is a list of lists")
    found = tuple(tuple(entry) for entry in kept)
    if not all(isinstance(word, str) for entry in found for word in entry):
        raise TypeError("an entry of a manifest is words")
    return found
