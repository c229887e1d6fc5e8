"""Random changes of images on tensors."""
