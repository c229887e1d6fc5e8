"""Descriptions from untrusted bundles, and names and sizes that cannot be built."""

import pytest

from streetvision.contracts.errors import ArtifactError, ConfigError
from streetvision.models.backbone import BackboneConfig, build_backbone, load_backbone
from streetvision.models.module import fixed_size
from tests.models.test_backbone import TINY

GOOD = {
    "source": "transformers",
    "config": {"model_type": "dinov3_vit", **TINY["dinov3_vit"]},
    "image_size": [32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 10**9}, "out of bounds"),
        ({"num_hidden_layers": 10_000}, "at most 512 layers"),
        ({"hidden_size": 32_768, "intermediate_size": 65_536, "num_hidden_layers": 8}, "parameters"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": -16}, "cannot be built"),
        ({"num_attention_heads": 0}, "cannot be built"),
        ({"num_attention_heads": 3}, "cannot run"),
        ({"hidden_act": "nonsense"}, "cannot be built"),
        ({"layer_norm_eps": float("nan")}, "out of bounds"),
        ({"num_channels": 1}, "cannot run"),
        ({"patch_size": [8, 8]}, "one positive integer"),
        ({"patch_size": 0}, "one positive integer"),
        ({"_attn_implementation": "someone/kernel"}, "has no field _attn_implementation"),
        ({"model_type": "bert"}, "no transformers model_type 'bert'"),
    ],
)
def test_hostile_transformers_descriptions_are_rejected(fields: dict[str, object], message: str) -> None:
    description = {**GOOD, "config": {**GOOD["config"], **fields}}
    with pytest.raises((ArtifactError, ConfigError), match=message):
        build_backbone(description)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "pickle"}, "no backbone architecture 'pickle'"),
        ({"extra": 1}, "extra"),
        ({"std": [0.0, 1.0, 1.0]}, "std"),
        ({"mean": [float("nan"), 1.0, 1.0]}, "mean"),
        ({"image_size": [10**6 * 8] * 2}, "more than 65536 tokens"),
        ({"image_size": [0, 0]}, "nearest valid values: 8"),
        ({"config": None}, "config"),
    ],
)
def test_hostile_descriptions_are_rejected(change: dict[str, object], message: str) -> None:
    with pytest.raises((ArtifactError, ConfigError), match=message):
        build_backbone({**GOOD, **change})


def test_hostile_timm_descriptions_are_rejected() -> None:
    good = {"source": "timm", "name": "test_vit", "image_size": [160, 160], "mean": [0.5] * 3, "std": [0.5] * 3}
    for change in ({"image_size": [0, 160]}, {"image_size": [1_600_000] * 2}, {"name": "hf-hub:someone/vit"}):
        with pytest.raises(ConfigError, match=r"nearest valid values|65536 tokens|timm has no model"):
            build_backbone({**good, **change})


def test_the_number_of_parameters_is_limited_for_both_libraries() -> None:
    by_name = {"source": "timm", "name": "test_vit", "image_size": [160, 160], "mean": [0.5] * 3, "std": [0.5] * 3}
    for description in (GOOD, by_name):
        build_backbone(description)
        with pytest.raises(ConfigError, match="at most 100 are allowed"):
            build_backbone(description, max_parameters=100)


def test_timm_names_that_do_not_exist_are_rejected() -> None:
    for name in ("deit_tiny_patch16_225", "hf-hub:someone/vit", "local-dir:/tmp"):
        with pytest.raises(ConfigError, match="timm has no model"):
            load_backbone(BackboneConfig(source="timm", name=name))
    with pytest.raises(ConfigError, match=r"deit_tiny_patch16_224\.fb_in1k"):
        load_backbone(BackboneConfig(source="timm", name="deit_tiny_patch16_224.nonsense"))


def test_a_timm_error_about_the_size_names_the_native_size() -> None:
    with pytest.raises(ConfigError, match=r"does not run at image_size=.64, 64.*\n.*trained at 224 x 224"):
        load_backbone(BackboneConfig(source="timm", name="visformer_tiny"), fixed_size(64))
