"""Groups of rows that belong together: near-duplicates, places, tracks."""
