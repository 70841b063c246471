"""Base images: find, make and add them. `all` lists the kinds of recipes."""
