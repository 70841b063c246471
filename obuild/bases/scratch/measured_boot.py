"""Compute the PCRs of a TPM after UEFI has started a unified kernel image, for a verifier.

Each value is the hash of the one before and of what was measured then (SHA-256 bank). What is measured is said in:
- PCR 4: TCG PC Client Platform Firmware Profile, https://trustedcomputinggroup.org/resource/pc-client-specific-platform-firmware-profile-specification/
- PCR 9: https://docs.kernel.org/arch/x86/boot.html and drivers/firmware/efi/libstub in Linux
- PCR 11: systemd-stub(7), as of version 252
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from hashlib import sha256

from obuild.bases.scratch import uki

#: What the stub says of itself, in its section .sdmagic.
VERSION = b"LoaderInfo: systemd-stub 252"

#: The order in which systemd's stub measures sections, whatever their order in the file is.
_MEASURED = (".linux", ".osrel", ".cmdline", ".initrd")


def pcrs(image: bytes, sections: Mapping[str, bytes]) -> dict[str, str]:
    """Return PCRs 4, 9 and 11, in hex, after a boot of a unified kernel image with these sections.

    UEFI must have found `image` by its boot option for the disk, and measured no other program. The result is
    empty unless the stub has the version whose measurements are known here.
    """
    if VERSION not in image:
        return {}
    programs = [_program_digest(image), _program_digest(sections[".linux"])]
    action = b"Calling EFI Application from Boot Option"
    named = (part for name in _MEASURED for part in (name.encode() + b"\0", sections[name]))
    return {
        "4": _extended([sha256(action).digest(), sha256(bytes(4)).digest(), *programs]),
        # The kernel's command line is UTF-16, with a NUL at its end.
        "9": _extended(
            map(_digest, ((sections[".cmdline"].decode() + "\0").encode("utf-16-le"), sections[".initrd"]))
        ),
        "11": _extended(map(_digest, named)),
    }


def _digest(data: bytes) -> bytes:
    return sha256(data).digest()


def _extended(digests: Iterable[bytes]) -> str:
    value = bytes(32)
    for digest in digests:
        value = sha256(value + digest).digest()
    return value.hex()


def _program_digest(image: bytes) -> bytes:
    """Return the Authenticode hash of a program: it leaves out the checksum, the signatures and their address.

    https://download.microsoft.com/download/9/c/5/9c5b2167-8017-4bae-9fde-d599bac8184a/authenticode_pe.docx
    """
    coff = uki.header(image) + 4
    count, optional_size = struct.unpack_from("<2xH12xH", image, coff)
    optional = coff + 20
    checksum, signatures = optional + 64, optional + 144
    headers_size = struct.unpack_from("<I", image, optional + 60)[0]
    signed = struct.unpack_from("<I", image, signatures + 4)[0]
    found = sha256(image[:checksum])
    found.update(image[checksum + 4 : signatures])
    found.update(image[signatures + 8 : headers_size])
    table = optional + optional_size
    spans = [struct.unpack_from("<II", image, table + index * 40 + 16) for index in range(count)]
    end = headers_size
    for size, start in sorted(spans, key=lambda span: span[1]):
        found.update(image[start : start + size])
        end += size
    found.update(image[end : len(image) - signed])
    return found.digest()
