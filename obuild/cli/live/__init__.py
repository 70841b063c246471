"""The live view of a build on a terminal: its state, what is drawn of it, and the terminal itself."""
