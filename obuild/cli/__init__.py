"""The command line: read arguments, call one function, show what it tells."""
