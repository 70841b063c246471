"""One module for each format, listed in `exports.all`."""
