"""What is on disk, and its laws."""
