"""Part of the build of a wheel: write the manual pages, which are installed into share/man/man1."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManualPages(BuildHookInterface[Any]):
    """Its only dependency besides hatchling is typer: commands import what they need when they run."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from obuild.cli import manpages

        self.folder = tempfile.TemporaryDirectory()
        manpages.write(Path(self.folder.name))
        for page in Path(self.folder.name).iterdir():
            build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.folder.cleanup()
