"""Check the targets of caches and secrets: not over what the step or obuild needs, nor over each other.

A mount over the root hides nothing: programs go on using the root below, so a cache's files would land in the
layer. Paths are those of `rules.join`; symlinks are in the guest, so they are not seen here.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from itertools import pairwise

from obuild.errors import UsageError
from obuild.spec import Cache, Secret

#: The longest name of a cache, in bytes: each byte may become three in a file's name.
LONGEST_NAME = 80

#: The kernel's folders: nothing can be created there, or it is lost with the machine.
KERNELS = {
    "linux": ("/dev", "/proc", "/sys"),
    "freebsd": ("/dev", "/proc"),
    "openbsd": ("/dev",),
    "windows": (),
}

#: File systems in memory below such folders, in a Linux guest, where files can be created.
IN_MEMORY = "/dev/shm"

#: The folders in which obuild keeps caches, secrets and files for a step.
OWN = {
    "linux": ("/run/obuild", "/run/obuild-secrets", "/var/lib/obuild-scratch"),
    "freebsd": ("/var/obuild-scratch", "/var/obuild-secrets"),
    "openbsd": ("/var/obuild-scratch", "/var/obuild-secrets"),
    "windows": ("C:/obuild-scratch", "C:/obuild-secrets", "C:/obuild-taken"),
}

#: The folders of the programs that remove caches and secrets again.
PROGRAMS = {
    "linux": ("/bin", "/lib", "/lib64", "/sbin", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/sbin"),
    "freebsd": ("/bin", "/lib", "/libexec", "/sbin", "/usr", "/usr/bin", "/usr/lib", "/usr/sbin"),
    "openbsd": ("/bin", "/sbin", "/usr", "/usr/bin", "/usr/lib", "/usr/libexec", "/usr/local", "/usr/local/bin"),
    "windows": ("C:/Windows", "C:/Windows/System32"),
}


def outermost_first(caches: Sequence[Cache]) -> tuple[Cache, ...]:
    """The caches, ordered so that none is mounted over another inside it; otherwise in their order."""
    paths = {_plain(cache.target) for cache in caches}
    return tuple(sorted(caches, key=lambda cache: len(paths.intersection(_above(_plain(cache.target))))))


def check(os: str, cwd: str, caches: Sequence[Cache], secrets: Sequence[Secret]) -> None:
    """UsageError if a cache or a secret cannot be at its target."""
    for cache in caches:
        if len(cache.name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
            raise UsageError(
                f"the name of a cache can have at most {LONGEST_NAME} bytes", hint="it is used as a file name"
            )
        _check_place(os, "a cache", cache.target, hint="name a folder of its own")
    for secret in secrets:
        _check_place(os, "a secret", secret.target, hint=f"/run/secrets/{secret.name} is a good place")
        if os == "windows" and not _same(os, secret.target).startswith("c:/"):
            raise UsageError(f"a secret cannot be at {secret.target}: it is not on drive C:")
        if _same(os, secret.target) == _same(os, cwd):
            raise UsageError(
                f"a secret cannot be at {secret.target}: a secret is a file, and that is the working folder"
            )
    _check_apart(os, caches, secrets)


def _check_place(os: str, what: str, target: str, *, hint: str) -> None:
    path = _same(os, target)
    if re.fullmatch("/|[a-z]:/", path):
        raise UsageError(f"{what} cannot be at {target}: that is the root of the file system", hint=hint)
    for folder in KERNELS[os]:
        if _within(path, folder) and not path.startswith(f"{IN_MEMORY}/"):
            raise UsageError(f"{what} cannot be at {target}: {folder} belongs to the kernel", hint=hint)
    for folder in OWN[os]:
        own = _same(os, folder)
        if _within(path, own) or _within(own, path):
            raise UsageError(f"{what} cannot be at {target}: obuild uses {folder}", hint=hint)
    if path in (_same(os, folder) for folder in PROGRAMS[os]):
        raise UsageError(f"{what} cannot be at {target}: the guest's own programs are there", hint=hint)


def _check_apart(os: str, caches: Sequence[Cache], secrets: Sequence[Secret]) -> None:
    """UsageError if two have the same target, or one is below a secret, which is a file."""
    files = {_same(os, secret.target) for secret in secrets}
    targets = [*(cache.target for cache in caches), *(secret.target for secret in secrets)]
    for one, other in pairwise(sorted(targets, key=lambda target: _same(os, target))):
        if _same(os, one) == _same(os, other):
            raise UsageError(f"two caches or secrets cannot both be at {other}", hint="give each its own target")
    for target in targets:
        if not files.isdisjoint(_above(_same(os, target))):
            raise UsageError(f"nothing can be at {target}: it is below a secret, which is a file")


def _above(path: str) -> list[str]:
    """The folders above a path, without the root."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(2, len(parts))]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _same(os: str, path: str) -> str:
    """One spelling for each place, as far as the path shows it; Windows ignores case."""
    plain = _plain(path)
    return plain.lower() if os == "windows" else plain


def _plain(path: str) -> str:
    """Without `..`; a drive's root keeps its slash."""
    drive, root, rest = path.partition("/")
    return posixpath.normpath(f"/{rest}") if not drive else f"{drive}{posixpath.normpath(f'{root}{rest}')}"
