"""The exported bundle: one folder with everything that a prediction needs, and the code that predicts with it."""
