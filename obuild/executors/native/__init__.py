"""Native steps: commands run in a container on this host, in the mounted file systems of a draft."""
