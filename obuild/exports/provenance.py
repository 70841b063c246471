"""Where an image comes from: SLSA provenance 1.0 as an in-toto statement, without times, and without this host.

https://slsa.dev/spec/v1.0/provenance
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from obuild.exports import json_text
from obuild.plan import diff, keys
from obuild.plan.keys import Fields, LayerId
from obuild.spec import sexp
from obuild.store.layers import Store
from obuild.version import VERSION

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
_BUILD_TYPE = "urn:obuild:layer:1"


def predicate(store: Store, id: LayerId, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What made the images of a layer, which is in use. `changes` are what the export itself does to its disk.

    The steps are those of the keys that ids are the hashes of. They have the names of secrets, never their values;
    of the files of a copy, only the digest of their manifest.
    """
    chain = _chain(store, id)
    steps = [_step(each, key) for each, key in chain]
    base = keys.base_digest(chain[0][1])
    materials = [{"name": "base", "uri": f"urn:obuild:base:{base}", "digest": {"sha256": base}}]
    for each, key in chain:
        if "files" in key:
            digest = _manifest_digest(key)
            uri = f"urn:obuild:files:{digest}"
            materials.append({"name": f"files of {each}", "uri": uri, "digest": {"sha256": digest}})
    return {
        "buildDefinition": {
            "buildType": _BUILD_TYPE,
            "externalParameters": {"layer": id, "steps": steps, "export": dict(changes)},
            "resolvedDependencies": materials,
        },
        "runDetails": {"builder": {"id": "urn:obuild", "version": {"obuild": VERSION}}},
    }


def statement(subjects: Mapping[str, str], about: dict[str, Any]) -> bytes:
    """The statement that `about` is the provenance of files; `subjects` are their names and sha256 in hex."""
    named = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())]
    return json_text.dump({"_type": STATEMENT, "subject": named, "predicateType": PREDICATE, "predicate": about})


def subjects(data: bytes, about: dict[str, Any]) -> dict[str, str] | None:
    """The subjects of a statement as `statement` writes it; None if it is about something else than `about`."""
    try:
        found = json.loads(data)
        if found["predicate"] != json.loads(json_text.dump(about)):
            return None
        return {str(each["name"]): str(each["digest"]["sha256"]) for each in found["subject"]}
    except (ValueError, KeyError, TypeError):
        return None


def _chain(store: Store, id: LayerId) -> list[tuple[LayerId, Fields]]:
    """The ids and keys of a layer and those below it, the base first."""
    chain = []
    following: LayerId | None = id
    while following is not None:
        layer = store.layer(following)
        chain.append((following, keys.fields(layer.key)))
        following = layer.parent
    return chain[::-1]


def _step(id: LayerId, key: Fields) -> dict[str, Any]:
    shown: dict[str, Any] = {name: value for name, value in key.items() if name not in ("parent", "files")}
    if "files" in key:
        shown["files"] = {"sha256": _manifest_digest(key)}
    return {"id": id, "op": diff.summary(key), "key": shown}


def _manifest_digest(key: Fields) -> str:
    return hashlib.sha256(sexp.dumps(key["files"]).encode("utf-8", "surrogateescape")).hexdigest()
