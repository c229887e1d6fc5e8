"""What ships: one folder with everything that a prediction needs."""
