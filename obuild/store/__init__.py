"""The store: layers, caches, base images and more on disk, and the laws they obey."""
