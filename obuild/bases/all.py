"""The kinds of recipes. To add one, write a module with `parse`, `unpinned` and `make`, and add a row here."""

from obuild.bases import cloud, installer, windows
from obuild.bases.kind import Kind
from obuild.bases.scratch import image as scratch

KINDS: dict[str, Kind] = {"scratch": scratch, "cloud": cloud, "installer": installer, "windows": windows}
