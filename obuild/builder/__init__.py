"""A whole build."""
