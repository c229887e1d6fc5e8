"""The assignment of groups to splits, and splits.json."""
