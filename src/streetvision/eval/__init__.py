"""Statistics on numpy arrays: metrics, thresholds, intervals, pictures, the report."""
