"""The kinds of recipes. To add one, write a module with `parse`, `unpinned` and `make`, and add a row here."""

from obuild.bases import cloud, installer, scratch, windows
from obuild.bases.kind import Kind

KINDS: dict[str, Kind] = {"scratch": scratch, "cloud": cloud, "installer": installer, "windows": windows}
