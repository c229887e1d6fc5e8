"""Folders for other programs: the Hugging Face hub."""
