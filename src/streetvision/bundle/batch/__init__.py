"""Predictions for many images: files, folders, archives, shards."""
