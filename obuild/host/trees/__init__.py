"""The files of a disk, read without a mount and without a boot."""
