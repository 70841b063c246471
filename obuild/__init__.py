"""obuild: virtual-machine images, built the way a compiler builds objects."""
