"""Work over many runs: search and ablation."""
