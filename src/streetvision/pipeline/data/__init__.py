"""Data check and data import."""
