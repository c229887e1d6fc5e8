"""The nouns every floor shares: no torch, no Hydra, no disk."""
