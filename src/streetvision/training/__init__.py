"""Fitting networks and scoring splits with them."""
