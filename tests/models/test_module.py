import pytest
import torch
from omegaconf import OmegaConf

from streetvision.contracts.errors import ConfigError
from streetvision.data.augmentation import get_val_transforms
from streetvision.io.tensors import load_into
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import LinearHeadConfig, MlpHeadConfig, ModelConfig
from streetvision.models.losses import FocalLoss
from streetvision.models.module import (
    build_classifier,
    create_model_with_compile,
    load_classifier,
)

TINY = BackboneConfig(source="random", width=16, depth=1, heads=2)
IMAGES = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
@pytest.mark.parametrize("head", [LinearHeadConfig(), MlpHeadConfig(hidden=8, dropout=0.5)])
def test_description_and_state_rebuild_the_classifier(pooling, head):
    torch.manual_seed(0)
    classifier = load_classifier(ModelConfig(backbone=TINY, image_size=32, pooling=pooling, head=head)).eval()
    rebuilt = build_classifier(
        type(classifier.description).model_validate_json(classifier.description.model_dump_json())
    )
    load_into(rebuilt, classifier.state_dict(), source="memory")
    with torch.inference_mode():
        assert classifier(IMAGES).shape == (5, 2)
        assert torch.equal(classifier(IMAGES), rebuilt(IMAGES))


def test_normalization_is_a_part_of_the_classifier():
    classifier = load_classifier(ModelConfig(backbone=TINY, image_size=32)).eval()
    spec = classifier.backbone.spec
    normalized = (IMAGES / 255 - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.inference_mode():
        (tokens,) = classifier.backbone(normalized)
        torch.testing.assert_close(classifier.embed(IMAGES), tokens[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(20, 50), (32, 32), (100, 31)])
def test_images_are_prepared_as_the_validation_data(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prepared = load_classifier(ModelConfig(backbone=TINY, image_size=32)).prepare(image)
    assert torch.equal(prepared, get_val_transforms(image_size=32)(image))


def test_the_normalization_buffers_are_not_in_the_checkpoint():
    names = load_classifier(ModelConfig(backbone=TINY, image_size=32)).state_dict()
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}


def test_an_unknown_pooling_lists_the_choices():
    with pytest.raises(ConfigError, match="'average'"):
        load_classifier(ModelConfig(backbone=TINY, image_size=32, pooling="average"))


@pytest.mark.slow
@pytest.mark.parametrize("compile_", [True, False])
def test_a_model_is_built_and_compiled_from_one_configuration(compile_, compile_calls):
    config = OmegaConf.create(
        {
            "hardware": {"compile": compile_, "compiler": {"dynamic": True} if compile_ else {}},
            "model": {"backbone": TINY.model_dump(exclude_defaults=True)},
        }
    )
    torch.manual_seed(0)
    model = create_model_with_compile(config).eval()
    torch.manual_seed(0)
    eager = load_classifier(ModelConfig(backbone=TINY, image_size=32)).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES), eager(IMAGES))
    assert [call["dynamic"] for call in compile_calls] == [True] * compile_


def test_the_focal_loss_can_be_imported_from_the_module():
    from streetvision.models import module

    assert module.FocalLoss is FocalLoss
