"""Networks: backbones and the classifier on top."""
