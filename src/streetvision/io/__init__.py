"""Reading and writing of files: atomic writes, digests and validation."""
