"""Self-supervised adaptation of a backbone (phase 4a)."""
