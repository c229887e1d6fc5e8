import pytest
import torch

from streetvision.contracts.errors import ConfigError, StreetVisionError
from streetvision.models.adapters import attach, block_names, last_blocks, merge
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ADAPTERS, AdapterConfig, ModelConfig
from streetvision.models.module import load_classifier

IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def classifier(depth=2):
    torch.manual_seed(0)
    backbone = BackboneConfig(source="random", width=16, depth=depth, heads=2, image_size=32)
    return load_classifier(ModelConfig(backbone=backbone)).eval()


def learn_something(model):
    """Move what learns as far as a few hundred steps would."""
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("method", ADAPTERS)
def test_attaching_changes_nothing_and_merging_keeps_what_was_learnt(method):
    model = classifier()
    names, before = set(model.state_dict()), model(IMAGES).detach()
    adapted = attach(model.backbone, AdapterConfig(method=method, rank=4))
    torch.testing.assert_close(model(IMAGES).detach(), before, rtol=1e-3, atol=1e-4)
    assert len(adapted) == 2 * 6
    learning = [name for name, p in model.backbone.named_parameters() if p.requires_grad]
    assert learning
    assert all("lora" in name for name in learning)
    learn_something(model)
    learnt = model(IMAGES).detach()
    assert not torch.allclose(learnt, before, atol=1e-3)
    assert merge(model, IMAGES) < 1e-4
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(IMAGES).detach(), learnt, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [{"rank": 2}, {"method": "dora"}, {"targets": ("q_proj",)}, {"last_blocks": 1}],
    ids=lambda c: next(iter(c)),
)
def test_every_setting_changes_what_learns(change):
    def shapes(config):
        model = classifier()
        attach(model.backbone, config)
        return {n: tuple(p.shape) for n, p in model.backbone.named_parameters() if p.requires_grad}

    plain = AdapterConfig(rank=4)
    assert shapes(plain) != shapes(plain.model_copy(update=change))


@pytest.mark.parametrize(
    "change", [{"alpha": 8.0}, {"method": "rslora"}, {"dropout": 0.5}], ids=lambda c: next(iter(c))
)
def test_every_setting_changes_what_is_computed(change):
    def answer(config):
        model = classifier()
        torch.manual_seed(1)
        attach(model.backbone, config)
        for name, parameter in model.backbone.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, 0.1)
        torch.manual_seed(2)
        return model.train()(IMAGES)

    plain = AdapterConfig(rank=4)
    assert not torch.equal(answer(plain), answer(plain.model_copy(update=change)))


def test_the_last_blocks_are_the_deepest():
    model = classifier(depth=3)
    attach(model.backbone, AdapterConfig(rank=2, last_blocks=1))
    learning = {name.split(".lora")[0] for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert all(".2." in name for name in learning)


@pytest.mark.parametrize(
    ("targets", "blocks"),
    [
        (["n.blocks.0.attn.qkv", "n.blocks.0.mlp.fc1", "n.blocks.1.attn.qkv"], ["n.blocks.0", "n.blocks.1"]),
        (["n.layers.0.blocks.0.mlp.fc1", "n.layers.0.down.reduction"], ["n.layers.0.blocks.0"]),
        (["n.head"], []),
    ],
)
def test_blocks_are_read_from_the_backbones_own_names(targets, blocks):
    assert list(block_names(targets)) == blocks


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"targets": ("qkv",)}, "there is no linear layer 'qkv'"), ({"last_blocks": 9}, "this backbone has 2")],
)
def test_what_the_backbone_does_not_have_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        attach(classifier().backbone, AdapterConfig(**settings))


def test_an_unknown_method_lists_the_choices():
    with pytest.raises(ConfigError, match="'adalora'"):
        AdapterConfig(method="adalora")


def test_more_blocks_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match="has 1"):
        last_blocks(["n.blocks.0.fc"], 2)


def test_a_merge_that_moves_a_logit_is_an_error(monkeypatch):
    model = classifier()
    attach(model.backbone, AdapterConfig(rank=4))
    learn_something(model)
    monkeypatch.setattr("peft.tuners.lora.Linear.merge", lambda *_, **__: None)
    with pytest.raises(StreetVisionError, match="merging the adapters moves a logit"):
        merge(model, IMAGES)
