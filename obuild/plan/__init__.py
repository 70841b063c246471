"""A spec becomes steps with ids: what has to be done, and how two of them differ."""
