"""Base images: find, make and add them. `all` has the ways to make one."""
