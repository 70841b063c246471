"""One executor: virtual machines."""
