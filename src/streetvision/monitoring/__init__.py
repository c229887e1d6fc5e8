"""Monitoring of a bundle in use."""
