"""The table from backbone type to the converter that makes a classifier of transformers."""

from collections.abc import Callable, Mapping

from streetvision.contracts.errors import ArtifactError
from streetvision.models.module import Classifier
from streetvision.subnet.hf_convnext import convert_convnext
from streetvision.subnet.hf_dinov3 import convert_dinov3
from streetvision.subnet.hf_head import HFClassifier, LinearHead, linear_head
from streetvision.subnet.hf_vit import convert_vit

CONVERTERS: Mapping[str, Callable[[Classifier, LinearHead], HFClassifier]] = {
    "timm": convert_vit,
    "vit": convert_vit,
    "dinov2": convert_vit,
    "dinov2_with_registers": convert_vit,
    "dinov3_vit": convert_dinov3,
    "dinov3_convnext": convert_convnext,
}
"""model_type of a transformers backbone, or another backbone source -> its converter."""


def hf_classifier(classifier: Classifier, *, slope: float, cut: float) -> HFClassifier:
    """The classifier of transformers whose logits are 0 for class 0 and slope * (margin - cut) for class 1.

    The margin is our logit of class 1 minus that of class 0. Raises ArtifactError for an architecture, pooling or head
    that cannot be exported.
    """
    head = linear_head(classifier, slope=slope, cut=cut)
    architecture = classifier.backbone.spec.architecture
    config = architecture.get("config")
    kind = str(config.get("model_type") if isinstance(config, dict) else architecture.get("source"))
    if kind not in CONVERTERS:
        raise ArtifactError(f"a backbone of type {kind!r} cannot be exported; allowed: {', '.join(CONVERTERS)}")
    return CONVERTERS[kind](classifier, head)
