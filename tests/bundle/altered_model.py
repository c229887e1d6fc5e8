"""A model that is wrong on purpose."""

from streetvision.bundle.torch_model import TorchModel


class AlteredModel(TorchModel):
    """The PyTorch model of a predictor, with logits that `change` alters."""

    def __init__(self, model, change):
        super().__init__(model.model, model.device)
        self.change = change

    def logits(self, images):
        return self.change(super().logits(images))
