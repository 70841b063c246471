"""Images from Debian packages, made without booting: `image` is the kind, `layouts` the table of disks."""
