"""Saved machines, at most one to a layer: where they lie, and how one goes. `warm` saves and uses them.

STORE/warm/ID/ is the saved machine, the *state*, of the layer ID. It leaves warm/ by a rename into warm-tmp/,
whose folders are rubbish once nobody has them locked. Whoever resumes a state has its folder locked, shared, and
the layer in use. Nothing here is ever synced to the disk: a state is of use only until the host boots again.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from obuild.host import locks
from obuild.host.fs import discard
from obuild.host.regular import is_folder
from obuild.plan.keys import LayerId
from obuild.store import parts

#: Of warm/, warm-tmp/ and the folders in them, which hold the memory of guests.
MODE = 0o700

#: What is written down of a state: without it, nobody resumes it.
ABOUT = "about.json"


@dataclass(frozen=True, slots=True)
class States:
    """The saved machines of a store: `folder` holds one for each id, `running` what living machines write."""

    folder: Path
    running: Path

    def ids(self) -> list[LayerId]:
        """The layers that have a state, in no order."""
        with suppress(OSError):
            return [LayerId(path.name) for path in parts.entries(self.folder, parts.ID)]
        return []

    def unfinished(self) -> list[Path]:
        """The folders of machines that run or ran, and states on their way out."""
        with suppress(OSError):  # most stores have none; another user's is not ours to sweep
            return parts.entries(self.running, parts.MACHINE)
        return []

    def remove(self, id: LayerId) -> bool:
        """Remove the state of layer `id`; False if it is in use, or being removed. True if there is none, too.

        OSError, ObuildError if it cannot be removed.
        """
        place = self.folder / id
        with locks.folder_lock(place, wait=False) as free:
            if not free:
                return not is_folder(place)
            self.running.mkdir(MODE, exist_ok=True)
            gone = self.running / f"gone-{place.stat().st_ino}"  # no other folder there can have this name
            try:
                place.rename(gone)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                (place / ABOUT).unlink(
                    missing_ok=True
                )  # it is in the lower part of an overlay: see files.move_out
                gone = place
            discard(gone)
            return True
