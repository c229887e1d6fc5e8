import pytest
import torch
from pydantic import ValidationError

from streetvision.contracts.errors import ConfigError, StreetVisionError
from streetvision.models.adapters import attach_adapters, block_names, last_blocks, merge_adapters, merged_state_dict
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import AdapterConfig, ModelConfig
from streetvision.models.module import load_classifier

IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def classifier(depth=2):
    torch.manual_seed(0)
    backbone = BackboneConfig(source="random", width=16, depth=depth, heads=2)
    return load_classifier(ModelConfig(backbone=backbone, image_size=32)).eval()


def train_adapters(model):
    """Change the trainable parameters about as much as a few hundred steps would."""
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"init_lora_weights": "pissa"},
        {"use_dora": True, "use_rslora": True, "init_lora_weights": "pissa"},
    ],
    ids=str,
)
def test_attaching_does_not_change_logits_and_merging_keeps_the_trained_logits(method):
    model = classifier()
    names, before = set(model.state_dict()), model(IMAGES).detach()
    adapted = attach_adapters(model.backbone, AdapterConfig(rank=4, **method))
    torch.testing.assert_close(model(IMAGES).detach(), before, rtol=1e-3, atol=1e-4)
    assert len(adapted) == 2 * 6
    trainable = [name for name, p in model.backbone.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora" in name for name in trainable)
    train_adapters(model)
    trained = model(IMAGES).detach()
    assert not torch.allclose(trained, before, atol=1e-3)
    assert merge_adapters(model, IMAGES) < 1e-4
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(IMAGES).detach(), trained, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"rank": 2}, {"use_dora": True}, {"targets": ("q_proj",)}, {"last_blocks": 1}],
    ids=lambda c: next(iter(c)),
)
def test_settings_that_change_the_trainable_parameters(change):
    def shapes(config):
        model = classifier()
        attach_adapters(model.backbone, config)
        return {n: tuple(p.shape) for n, p in model.backbone.named_parameters() if p.requires_grad}

    base = AdapterConfig(rank=4)
    assert shapes(base) != shapes(base.model_copy(update=change))


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 8.0},
        {"use_rslora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "gaussian"},
        {"dropout": 0.5},
    ],
    ids=lambda c: next(iter(c)),
)
def test_settings_that_change_the_logits(change):
    def logits(config):
        model = classifier()
        torch.manual_seed(1)
        attach_adapters(model.backbone, config)
        for name, parameter in model.backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.1)
        torch.manual_seed(2)
        return model.train()(IMAGES)

    base = AdapterConfig(rank=4)
    assert not torch.equal(logits(base), logits(base.model_copy(update=change)))


def test_the_last_blocks_are_the_deepest():
    model = classifier(depth=3)
    attach_adapters(model.backbone, AdapterConfig(rank=2, last_blocks=1))
    trainable = {name.split(".lora")[0] for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert all(".2." in name for name in trainable)


@pytest.mark.parametrize(
    ("targets", "blocks"),
    [
        (["n.blocks.0.attn.qkv", "n.blocks.0.mlp.fc1", "n.blocks.1.attn.qkv"], ["n.blocks.0", "n.blocks.1"]),
        (["n.layers.0.blocks.0.mlp.fc1", "n.layers.0.down.reduction"], ["n.layers.0.blocks.0"]),
        (["n.head"], []),
    ],
)
def test_block_names_come_from_layer_names(targets, blocks):
    assert list(block_names(targets)) == blocks


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"targets": ("qkv",)}, "there is no linear layer 'qkv'"), ({"last_blocks": 9}, "this backbone has 2 blocks")],
)
def test_layers_and_blocks_that_do_not_exist_are_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        attach_adapters(classifier().backbone, AdapterConfig(**settings))


def test_an_unknown_initialization_lists_the_choices():
    with pytest.raises(ValidationError, match="'gaussian' or 'pissa'"):
        AdapterConfig(init_lora_weights="adalora")


def test_too_many_last_blocks_are_an_error():
    with pytest.raises(ConfigError, match="has 1"):
        last_blocks(["n.blocks.0.fc"], 2)


def test_a_merge_that_changes_a_logit_is_an_error(monkeypatch):
    model = classifier()
    attach_adapters(model.backbone, AdapterConfig(rank=4))
    train_adapters(model)
    monkeypatch.setattr("peft.tuners.lora.Linear.merge", lambda *_, **__: None)
    with pytest.raises(StreetVisionError, match="at most 1e-04 is allowed") as caught:
        merge_adapters(model, IMAGES, settings="phase4a.alpha")
    assert "phase4a.alpha" in caught.value.hint


def test_the_merged_state_dict_has_the_trained_values_and_leaves_the_classifier_as_it_is():
    model = classifier()
    names = set(model.state_dict())
    plain, error = merged_state_dict(model, {"head.2.bias": torch.ones(2)}, None)
    assert (set(plain), error) == (names, None)
    assert torch.equal(plain["head.2.bias"], torch.ones(2))
    assert not torch.equal(model.state_dict()["head.2.bias"], torch.ones(2))

    attach_adapters(model.backbone, AdapterConfig(rank=4))
    trained = {name: value + 0.05 for name, value in model.state_dict().items() if "lora_" in name}
    before = model(IMAGES).detach()
    merged, error = merged_state_dict(model, trained, IMAGES)
    assert set(merged) == names
    assert error < 1e-4
    assert torch.equal(model(IMAGES).detach(), before)
    model.load_state_dict(trained, strict=False)
    expected = classifier()
    expected.load_state_dict(merged)
    torch.testing.assert_close(expected(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-4)
