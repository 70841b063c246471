"""No package starts a service in a step: Debian's policy-rc.d says so while a command runs.

https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obuild.executors.native.container import Bind
from obuild.executors.native.guest_path import Places, placeholder
from obuild.executors.native.line import Line

PATH = "/usr/sbin/policy-rc.d"

#: 101: the action is forbidden by policy.
_SCRIPT = "#!/bin/sh\nexit 101\n"


@contextmanager
def no_services(line: Line, places: Places) -> Iterator[list[Bind]]:
    """What to mount. Nothing in guests that are not made from Debian's packages."""
    dpkg = places.host(places.resolve("/usr/bin/dpkg"))
    if dpkg is None or not dpkg.is_file():
        yield []
        return
    script: Path = line.work / "policy-rc.d"
    place = line.namespace.path(script)
    place.write_text(_SCRIPT)
    place.chmod(0o755)
    with placeholder(places, PATH) as target:
        yield [Bind(script, target, ("ro",))]
