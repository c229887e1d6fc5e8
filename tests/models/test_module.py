import pytest
import torch

from streetvision.contracts.errors import ConfigError
from streetvision.io.tensors import load_into
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import HeadConfig, ModelConfig
from streetvision.models.module import build_classifier, load_classifier

TINY = BackboneConfig(source="random", width=16, depth=1, heads=2, image_size=32)
IMAGES = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig(kind="mlp", hidden=8, dropout=0.5)])
def test_the_description_and_the_state_make_the_same_classifier(pooling, head):
    torch.manual_seed(0)
    classifier = load_classifier(ModelConfig(backbone=TINY, pooling=pooling, head=head)).eval()
    again = build_classifier(type(classifier.description).model_validate_json(classifier.description.model_dump_json()))
    load_into(again, classifier.state_dict(), source="memory")
    with torch.inference_mode():
        assert classifier(IMAGES).shape == (5, 2)
        assert torch.equal(classifier(IMAGES), again(IMAGES))


def test_normalisation_rides_inside():
    classifier = load_classifier(ModelConfig(backbone=TINY)).eval()
    spec = classifier.backbone.spec
    by_hand = (IMAGES / 255 - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.inference_mode():
        tokens = classifier.backbone(by_hand)
        torch.testing.assert_close(classifier.embed(IMAGES), tokens[:, 0], rtol=1e-4, atol=1e-4)


def test_the_buffers_of_normalisation_are_no_part_of_the_checkpoint():
    names = load_classifier(ModelConfig(backbone=TINY)).state_dict()
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}


def test_an_unknown_pooling_lists_the_choices():
    with pytest.raises(ConfigError, match="'max'"):
        load_classifier(ModelConfig(backbone=TINY, pooling="max"))
