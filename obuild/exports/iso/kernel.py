"""The kernel that a layer boots: its image, command line and drivers.

What the layer's boot loader would start counts: the first entry of GRUB, of the Boot Loader Specification
(https://uapi-group.org/specifications/specs/boot_loader_specification/), or what links point to.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from obuild.bases.scratch.kernel_modules import Modules
from obuild.errors import UsageError
from obuild.host.trees.nodes import Node, Tree, decode

_GRUB = ("boot/grub/grub.cfg", "boot/grub2/grub.cfg")
_ENTRIES = "boot/loader/entries"
_LINKS = ("vmlinuz", "boot/vmlinuz", "boot/vmlinuz-virt", "boot/vmlinuz-lts")
_GRUB_LINUX = re.compile(r"^\s*linux(?:16|efi)?\s+(\S+)[ \t]*(.*)$", re.MULTILINE)
_NAMED = re.compile(r"vmlinu[xz]-(.+)")

#: A kernel image for x86 says its version: https://docs.kernel.org/arch/x86/boot.html
_MAGIC_AT, _MAGIC, _VERSION_AT, _BASE = 0x202, b"HdrS", 0x20E, 0x200

#: The words of a command line that are about the disk, the console or the boot loader.
_OWN = re.compile(
    r"(?:root|rootflags|rootfstype|roothash|verity\..*|systemd\.verity.*|rootwait|ro|rw|initrd|resume|console"
    r"|BOOT_IMAGE|fsck\..*)(?:=.*)?|.*\$.*"
)


class Kernel(NamedTuple):
    """`cmdline` has only the words that hold on any machine; `release` is as uname(1) says it."""

    image: bytes
    release: str
    cmdline: str
    modules: Modules


def find(tree: Tree, cmdline: str) -> Kernel:
    """The kernel of a layer. `cmdline` is used if the layer's boot loader has none.

    UsageError if there is none, or its modules are not there.
    """
    for path, words in _candidates(tree):
        if image := tree.read(path) or tree.read(f"boot/{path}"):
            return _kernel(tree, path, image, words or cmdline)
    hint = "install the distribution's kernel package in a step of the spec"
    raise UsageError("the layer has no kernel in /boot, and an ISO boots the layer's own", hint=hint)


def _kernel(tree: Tree, path: str, image: bytes, cmdline: str) -> Kernel:
    release = _release(image) or _release_of_name(tree, path)
    folder = tree.find(f"lib/modules/{release}") if release else None
    if folder is None:
        raise UsageError(
            f"the layer has no modules for its kernel {release or path}", hint=f"/lib/modules/{release} is missing"
        )
    kept = " ".join(word for word in cmdline.split() if not _OWN.fullmatch(word))
    return Kernel(image, release, kept, _modules(tree, folder))


def _candidates(tree: Tree) -> Iterator[tuple[str, str]]:
    """Paths that may be that of the kernel, with command lines, in the order of what boot loaders start."""
    for path in _GRUB:
        for image, words in _GRUB_LINUX.findall(_text(tree, path)):
            yield image.rpartition(")")[2].strip("/"), words
    for node in sorted(_children(tree, _ENTRIES), key=lambda node: _natural(node.name), reverse=True):
        fields = dict(line.split(None, 1) for line in _text(tree, node.path).splitlines() if len(line.split()) > 1)
        if "linux" in fields and "rescue" not in node.name:
            yield fields["linux"].strip("/"), fields.get("options", "")
    for path in _LINKS:
        yield path, ""
    for node in sorted(_children(tree, "boot"), key=lambda node: _natural(node.name), reverse=True):
        if _NAMED.fullmatch(node.name) and "rescue" not in node.name:
            yield node.path, ""


def _text(tree: Tree, path: str) -> str:
    return decode(tree.read(path) or b"")


def _children(tree: Tree, path: str) -> list[Node]:
    folder = tree.find(path)
    return tree.children(folder) if folder is not None and folder.is_folder else []


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts 6.10 behind 6.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _release(image: bytes) -> str:
    """What an image says of itself, "" if nothing."""
    if image[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        return ""
    (place,) = struct.unpack_from("<H", image, _VERSION_AT)
    return image[_BASE + place :][:256].partition(b"\0")[0].partition(b" ")[0].decode("ascii", "replace")


def _release_of_name(tree: Tree, path: str) -> str:
    node = tree.find(path) or tree.find(f"boot/{path}")
    named = _NAMED.fullmatch(node.name) if node else None
    if named:
        return named[1]
    folders = [node.name for node in _children(tree, "lib/modules")]
    return folders[0] if len(folders) == 1 else ""


def _modules(tree: Tree, folder: Node) -> Modules:
    files: dict[str, Node] = {}
    waiting = [folder]
    while waiting:
        for node in tree.children(waiting.pop()):
            if node.is_folder:
                waiting.append(node)
            else:
                files[node.name] = node

    def read(name: str) -> bytes:
        return tree.read(files[name].path) or b""

    listed = decode(read("modules.builtin")) if "modules.builtin" in files else ""
    return Modules(files, read, [line.rpartition("/")[2] for line in listed.splitlines()])
