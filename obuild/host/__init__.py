"""This computer: files, locks, programs, archives, the terminal. Knows nothing of obuild's own matters."""
