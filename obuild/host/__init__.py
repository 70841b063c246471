"""The host: files, locks, programs, archives, the terminal. Nothing here is specific to obuild."""
