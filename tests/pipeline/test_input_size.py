"""The size of the model's input: set, native, or chosen for the images."""

import pytest

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.split_contracts import Row
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.pipeline.input_size import auto_image_size, input_size

NATIVE = (224, 224)


def auto(sizes, patch=16, native=NATIVE, tokens=560):
    return auto_image_size(patch, native, images=sizes, tokens=tokens)


def model(**settings):
    return ModelConfig(backbone=BackboneConfig(source="random"), **settings)


@pytest.mark.parametrize(
    ("sizes", "patch", "expected"),
    [
        ([(1080, 1920)], 16, (288, 512)),
        ([(1920, 1080)], 16, (512, 288)),
        ([(640, 1024), (630, 1024), (640, 1024)], 16, (304, 480)),
        ([(3000, 4000)], 14, (280, 378)),
        ([(1080, 1920), (1080, 1920), (1000, 1000)], 16, (288, 512)),  # the median, not the mean
        ([(1080, 1920)], 32, (288, 512)),  # a stride of 32 counts as four patches of 16
    ],
)
def test_the_size_has_the_median_aspect_ratio_and_about_the_tokens(sizes, patch, expected):
    assert auto(sizes, patch=patch) == expected


def test_small_images_are_not_enlarged_beyond_the_size_of_the_training_of_the_backbone():
    assert auto([(50, 52)]) == (224, 224)
    assert auto([(20, 40)], native=(160, 160)) == (112, 224)
    assert auto([(300, 300)]) == (304, 304)


def test_a_backbone_that_was_trained_on_larger_images_keeps_to_the_tokens():
    height, width = auto([(2000, 2000)], patch=14, native=(518, 518))
    assert height == width == 14 * 24


def test_fewer_tokens_than_one_row_of_patches_are_refused():
    with pytest.raises(ConfigError, match=r"less than one row[\s\S]*at least 20"):
        auto([(100, 2000)], tokens=10)
    assert auto([(100, 2000)], tokens=20)[0] == 16


def test_a_size_that_is_set_is_taken():
    rows = [Row("a.jpg", 0, "0" * 64, 1920, 1080, 0.5)]
    assert input_size(model(image_size=96), rows)(16, NATIVE) == (96, 96)
    assert input_size(model(image_size=(64, 96)), rows)(16, NATIVE) == (64, 96)
    assert input_size(model(image_size="native"), rows)(16, NATIVE) == NATIVE
    assert input_size(model(), rows)(16, NATIVE) == (288, 512)
    assert input_size(model(image_tokens=140), rows)(16, NATIVE) == (144, 256)
