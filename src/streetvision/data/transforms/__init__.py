"""Random transforms of images on tensors."""
