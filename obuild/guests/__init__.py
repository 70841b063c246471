"""How an operating system spells things. Nothing here runs anything; `all` has the table."""
