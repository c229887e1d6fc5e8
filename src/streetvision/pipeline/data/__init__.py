"""From photographs to splits: scan, check, import and partition."""
