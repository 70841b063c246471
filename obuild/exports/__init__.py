"""A layer as what people deploy: disk images of many formats, and container images."""
