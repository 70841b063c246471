"""The commands of each guest operating system. Nothing here runs them; `all` has the table."""
