"""Benchmarks of streetvision against peers and floors; not part of the wheel."""
