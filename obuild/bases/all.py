"""The kinds of recipes: a new one is a module with `parse` and `make`, and a row here."""

from obuild.bases import cloud, installer, scratch, windows
from obuild.bases.kind import Kind

KINDS: dict[str, Kind] = {"scratch": scratch, "cloud": cloud, "installer": installer, "windows": windows}
