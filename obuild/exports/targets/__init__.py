"""Where exports are published: registries, object stores, clouds, folders, other computers."""
