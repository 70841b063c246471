"""Bootable ISO images: for BIOS and UEFI, on a CD or, copied as they are, on a USB stick."""
