import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.overrides import TorchFunctionMode

from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.module import load_classifier
from streetvision.training import precision
from streetvision.training.config import MixedPrecisionConfig
from streetvision.training.precision import Bf16OnCpu, UnfusedAttention, lightning_precision

CPU = torch.device("cpu")


def test_precision_follows_the_device_and_is_never_fp16(monkeypatch):
    for fast, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(precision, "has_fast_bf16", lambda _, fast=fast: fast)
        assert lightning_precision("auto", CPU).precision == expected
    assert lightning_precision("fp32", CPU).precision == "32-true"
    assert lightning_precision("bf16", CPU).precision == "bf16-mixed"
    with pytest.raises(ValidationError):
        MixedPrecisionConfig(dtype="fp16")


def test_on_a_gpu_attention_is_under_autocast():
    assert isinstance(lightning_precision("bf16", CPU), Bf16OnCpu)
    plugin = lightning_precision("bf16", torch.device("cuda"))
    assert (plugin.precision, plugin.device, isinstance(plugin, Bf16OnCpu)) == ("bf16-mixed", "cuda", False)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 8, generator=generator).requires_grad_() for _ in range(3)]


MASK = torch.rand(5, 5, generator=torch.Generator().manual_seed(1))
OPTIONS = [{}, {"attn_mask": MASK, "scale": 0.5}, {"attn_mask": MASK > 0.3}, {"is_causal": True}, {"enable_gqa": True}]


@pytest.mark.parametrize("options", OPTIONS)
def test_attention_and_its_gradients_are_those_of_torch_up_to_rounding(inputs, options):
    q, k, v = inputs
    expected = F.scaled_dot_product_attention(q, k, v, **options)
    expected_grads = torch.autograd.grad(expected.square().sum(), inputs)
    with Bf16OnCpu().forward_context():
        actual = F.scaled_dot_product_attention(query=q.bfloat16(), key=k.bfloat16(), value=v.bfloat16(), **options)
    assert actual.dtype is torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.02)
    grads = torch.autograd.grad(actual.float().square().sum(), inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0.05, atol=0.05)


def test_dropout_leaves_the_mean_of_attention(inputs):
    q, k, v = inputs
    torch.manual_seed(0)
    with Bf16OnCpu().forward_context():
        dropped = [F.scaled_dot_product_attention(q, k, v, dropout_p=0.5).float() for _ in range(500)]
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(torch.stack(dropped).mean(0), F.scaled_dot_product_attention(q, k, v), rtol=0, atol=0.2)


def test_outside_autocast_attention_keeps_the_precision_of_its_inputs(inputs):
    double = [value.double() for value in inputs]
    with UnfusedAttention():
        actual = F.scaled_dot_product_attention(*double)
    torch.testing.assert_close(actual, F.scaled_dot_product_attention(*double), rtol=0, atol=0)


class Spy(TorchFunctionMode):
    """Counts calls of torch's fused attention."""

    def __init__(self):
        super().__init__()
        self.fused = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.fused += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "backbone",
    [
        BackboneConfig(source="embedded", name="dinov3_scenes"),
        BackboneConfig(source="timm", name="test_vit3", pretrained=False),
    ],
    ids=["transformers", "timm"],
)
def test_each_kind_of_backbone_uses_fused_attention_only_without_gradients(backbone):
    classifier = load_classifier(ModelConfig(backbone=backbone, pooling="mean")).train()
    size = classifier.description.image_size
    images = torch.zeros(2, 3, *size, dtype=torch.uint8)
    with Spy() as spy, Bf16OnCpu().forward_context():
        logits = classifier(images)
    assert spy.fused == 0
    logits.float().sum().backward()
    grads = [p.grad for p in classifier.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)
    with Spy() as spy, Bf16OnCpu().forward_context(), torch.no_grad():
        classifier(images)
    assert spy.fused >= 3  # one a block
