"""One module a phase: read artifacts, call one floor down, write artifacts."""
