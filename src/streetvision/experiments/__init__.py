"""Work over many runs: search, ablation, cross-validation and comparison with other tools."""
