"""Benchmarks of streetvision compared with peers and lower bounds; not part of the wheel."""
