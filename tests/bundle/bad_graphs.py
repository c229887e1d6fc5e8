"""A graph that is wrong on purpose."""

import torch

from streetvision.bundle.runtimes.graph import Seen


class Altered:
    """PyTorch's own features, and logits that `change` has altered."""

    def __init__(self, classifier, change):
        self.classifier, self.change = classifier, change

    @torch.inference_mode()
    def __call__(self, images):
        features = self.classifier.embed(images)
        return Seen(features, self.change(self.classifier.head(features)))
