"""Procedural street scenes: the embedded data set."""
