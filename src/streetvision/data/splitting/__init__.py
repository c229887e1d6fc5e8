"""Assignment of rows and groups to splits, and splits.json."""
