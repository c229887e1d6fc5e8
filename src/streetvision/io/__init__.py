"""Files in and out: atomic, hashed, checked."""
