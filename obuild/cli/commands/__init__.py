"""The commands of the command line, a module for each. `cli.main` loads the one that is called."""
