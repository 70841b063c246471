"""The version: read by the package's metadata, `--version` and nothing else."""

VERSION = "0.1.0"
