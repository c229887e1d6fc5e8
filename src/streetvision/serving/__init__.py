"""Where a bundle goes: other loaders' folders, and the server."""
