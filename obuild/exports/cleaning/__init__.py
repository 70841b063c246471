"""Cleaning a system for its deployment: what `--sysprep` removes, and how. Nothing here runs it."""
