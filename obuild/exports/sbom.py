"""A list of a layer's packages in the formats of the field. The same layer gives the same bytes.

CycloneDX 1.6: https://cyclonedx.org/docs/1.6/json/
SPDX 2.3: https://spdx.github.io/spdx-spec/v2.3/
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from obuild.exports import json_text
from obuild.exports.disk import id_of
from obuild.exports.packages.all import Inventory
from obuild.exports.packages.package import Package, purl
from obuild.plan.keys import LayerId
from obuild.version import VERSION

#: SPDX demands a time. It is that of OCI images without one.
_EPOCH = "1970-01-01T00:00:00Z"

_NOT_IN_ID = re.compile(r"[^A-Za-z0-9.-]+")


class Format(NamedTuple):
    """A format: what its files end in, and what makes the content for the inventory of a layer."""

    suffix: str
    write: Callable[[Inventory, LayerId], bytes]


def cyclonedx(found: Inventory, layer: LayerId) -> bytes:
    """The inventory in CycloneDX."""
    release = found.release
    system = {"bom-ref": f"layer:{layer}", "type": "operating-system", "name": release.id}
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{id_of(layer, 'cyclonedx')}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "obuild", "version": VERSION}]},
            "component": system | _present(version=release.version, description=release.name),
        },
        "components": [_component(package, purl(package, release)) for package in found.packages],
    }
    return json_text.dump(document)


def _component(package: Package, url: str) -> dict[str, Any]:
    licenses = [{"license": {"name": package.license}}] if package.license else []
    told = {"bom-ref": url, "type": "library", "name": package.name, "purl": url}
    return told | _present(version=package.version, licenses=licenses)


def spdx(found: Inventory, layer: LayerId) -> bytes:
    """The inventory in SPDX."""
    release = found.release
    root = {
        "SPDXID": "SPDXRef-layer",
        "name": release.id,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        **_present(versionInfo=release.version, summary=release.name),
    }
    packages = [_package(number, package, found) for number, package in enumerate(found.packages)]
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"layer-{layer}",
        "documentNamespace": f"urn:uuid:{id_of(layer, 'spdx')}",
        "creationInfo": {"created": _EPOCH, "creators": [f"Tool: obuild-{VERSION}"]},
        "packages": [root, *packages],
        "relationships": [
            _related("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-layer"),
            *(_related("SPDXRef-layer", "CONTAINS", package["SPDXID"]) for package in packages),
        ],
    }
    return json_text.dump(document)


def _package(number: int, package: Package, found: Inventory) -> dict[str, Any]:
    url = purl(package, found.release)
    comment = f"The package says: {package.license}" if package.license else ""
    return {
        "SPDXID": f"SPDXRef-{number}-{_NOT_IN_ID.sub('-', package.name)}",
        "name": package.name,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": url}
        ],
        **_present(versionInfo=package.version, licenseComments=comment),
    }


def _related(one: str, how: str, other: str) -> dict[str, str]:
    return {"spdxElementId": one, "relationshipType": how, "relatedSpdxElement": other}


def _present(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value}


FORMATS = {"cyclonedx": Format("cdx.json", cyclonedx), "spdx": Format("spdx.json", spdx)}
