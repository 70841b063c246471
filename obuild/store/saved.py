"""Saved machines, at most one per layer: where they are, and how one is removed. `warm` saves and uses them.

STORE/warm/ID/ is the saved machine, the *state*, of the layer ID. It leaves warm/ by a rename into warm-tmp/,
whose folders are rubbish when nobody holds their locks. A process that resumes a state has a shared lock on its
folder, and the layer in use. Nothing here is synced to the disk: a state is useless once the host has rebooted.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from obuild.host import locks
from obuild.host.fs import discard
from obuild.host.regular import is_folder
from obuild.plan.keys import LayerId
from obuild.store import parts

#: The mode of warm/, warm-tmp/ and the folders in them, which hold the memory of guests.
MODE = 0o700

#: The file that describes a state: without it, nobody resumes the state.
ABOUT = "about.json"


class States(NamedTuple):
    """The saved machines of a store: `folder` has them by id, `running` has the files of running machines."""

    folder: Path
    running: Path

    def ids(self) -> list[LayerId]:
        """The layers that have a state, in no particular order."""
        with suppress(OSError):
            return [LayerId(path.name) for path in parts.entries(self.folder, parts.ID)]
        return []

    def unfinished(self) -> list[Path]:
        """The folders of machines that run or ran, and states that are being removed."""
        with suppress(OSError):  # most stores have none; another user's is not ours to sweep
            return parts.entries(self.running, parts.MACHINE)
        return []

    def remove(self, id: LayerId) -> bool:
        """Remove the state of layer `id`; False if it is in use, or being removed. True also if there is none.

        OSError, ObuildError if it cannot be removed.
        """
        place = self.folder / id
        with locks.folder_lock(place, wait=False) as free:
            if not free:
                return not is_folder(place)
            self.running.mkdir(MODE, exist_ok=True)
            gone = self.running / f"gone-{place.stat().st_ino}"  # a unique name
            try:
                place.rename(gone)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                (place / ABOUT).unlink(missing_ok=True)  # it is in the lower layer of an overlay: see fs.move_out
                gone = place
            discard(gone)
            return True
