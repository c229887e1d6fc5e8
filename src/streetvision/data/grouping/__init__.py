"""Which rows belong together: groups, near-duplicates, places."""
