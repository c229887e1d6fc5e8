import pytest
import torch

from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.module import load_classifier
from streetvision.training.config import AutoConfig, FrozenConfig, FullConfig, LastNConfig, PeftConfig
from streetvision.training.finetune_modes import MODES, prepare, rate_scales
from streetvision.training.optim import make_adamw

SOURCES = {
    "transformers": BackboneConfig(source="random", width=16, depth=3, heads=2),
    "timm": BackboneConfig(source="timm", name="vit_tiny_patch16_224"),
}


CONFIGS = {"auto": AutoConfig, "frozen": FrozenConfig, "peft": PeftConfig, "last_n": LastNConfig, "full": FullConfig}


def classifier(source="transformers"):
    torch.manual_seed(0)
    return load_classifier(ModelConfig(backbone=SOURCES[source], image_size=32))


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("mode", MODES)
def test_the_head_is_always_trained_and_the_trainable_parameters_are_counted(mode):
    model = classifier()
    count = prepare(model, CONFIGS[mode]())
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert {name for name in trainable(model) if name.startswith("head.")} == {
        f"head.{name}" for name, _ in model.head.named_parameters()
    }


def test_frozen_trains_the_head_and_full_all_but_the_mask_token():
    model = classifier()
    prepare(model, FrozenConfig())
    assert all(name.startswith("head.") for name in trainable(model))
    model = classifier()
    prepare(model, FullConfig())
    fixed = {name for name, _ in model.named_parameters()} - trainable(model)
    assert all(name.endswith("mask_token") for name in fixed)


@pytest.mark.parametrize("source", SOURCES)
def test_last_n_trains_the_last_blocks_and_the_layers_after_them(source):
    model = classifier(source)
    prepare(model, LastNConfig(last_blocks=1))
    block = {"transformers": ".layer.2.", "timm": ".blocks.11."}[source]
    inside = [name for name in trainable(model) if name.startswith("backbone.")]
    assert any(block in name for name in inside)
    assert {name for name in inside if block not in name} == {
        "backbone.network.norm.weight",
        "backbone.network.norm.bias",
    }


@pytest.mark.parametrize("source", SOURCES)
def test_the_learning_rate_falls_by_one_factor_per_block(source):
    model = classifier(source)
    scales = rate_scales(model, 0.5)
    assert set(scales) == {name for name, _ in model.named_parameters()}
    depth = {"transformers": 3, "timm": 12}[source]
    blocks = {"transformers": "layer", "timm": "blocks"}[source]
    for name, scale in scales.items():
        if name.startswith("head.") or ".network.norm." in name:
            assert scale == 1.0
        elif f".{blocks}." in name:
            number = int(name.split(f".{blocks}.")[1].split(".")[0])
            assert scale == 0.5 ** (depth - number)
        else:
            assert scale == 0.5 ** (depth + 1), name


def test_a_layer_between_blocks_belongs_to_the_block_after_it():
    """A Swin merges patches between its stages of 2, 2, 6 and 2 blocks."""
    torch.manual_seed(0)
    model = load_classifier(
        ModelConfig(
            backbone=BackboneConfig(source="timm", name="swin_tiny_patch4_window7_224"), pooling="mean", image_size=64
        )
    )
    scales = rate_scales(model, 0.5)
    for stage, first in ((1, 3), (2, 5), (3, 11)):
        assert scales[f"backbone.network.layers.{stage}.downsample.reduction.weight"] == 0.5 ** (13 - first)
        assert scales[f"backbone.network.layers.{stage}.blocks.0.mlp.fc1.weight"] == 0.5 ** (13 - first)
    assert scales["backbone.network.patch_embed.proj.weight"] == 0.5**13
    prepare(model, LastNConfig(last_blocks=3))
    parts = {name.partition("network.")[2] for name in trainable(model) if name.startswith("backbone.")}
    opened = ("layers.2.blocks.5.", "layers.3.downsample.", "layers.3.blocks.0.", "layers.3.blocks.1.", "norm.")
    assert all(name.startswith(opened) for name in parts)
    assert all(any(name.startswith(part) for name in parts) for part in opened)


def test_scales_reach_the_optimizer():
    model = classifier()
    optimizer = make_adamw(model, learning_rate=2.0, weight_decay=0.1, scales=rate_scales(model, 0.5))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == pytest.approx(2.0 * rate_scales(model, 0.5)[name])
