"""HTTP server for a bundle."""
