"""From logits to probabilities that can be believed."""
