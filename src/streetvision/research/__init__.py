"""Measuring the system itself."""
