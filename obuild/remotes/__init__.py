"""Other computers that keep what is made here: a client of container registries, and its credentials."""
