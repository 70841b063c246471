"""The report of a build: one HTML file."""
