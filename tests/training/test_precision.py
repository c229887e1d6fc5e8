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
from streetvision.training.precision import AttentionInFp32, Bf16OnCpu, lightning_precision

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


def attended(*inputs, **named):
    """Attention in fp32, rounded once."""
    return F.scaled_dot_product_attention(*(value.float() for value in inputs), **named).bfloat16()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3)]


def test_under_autocast_attention_is_computed_in_fp32_and_rounded_once(inputs):
    q, k, v = inputs
    mask = torch.rand(5, 5, generator=torch.Generator().manual_seed(1))
    with Bf16OnCpu().forward_context():
        positional = F.scaled_dot_product_attention(q, k, v)
        named = F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask, scale=0.5)
        product = q @ k.transpose(-1, -2)
    assert product.dtype is torch.bfloat16
    for result, expected in ((positional, attended(q, k, v)), (named, attended(q, k, v, attn_mask=mask, scale=0.5))):
        assert result.dtype is torch.bfloat16
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_outside_autocast_attention_keeps_the_precision_of_its_inputs(inputs):
    double = [value.double() for value in inputs]
    with AttentionInFp32():
        assert F.scaled_dot_product_attention(*double).dtype is torch.float64
        assert F.scaled_dot_product_attention(*inputs).dtype is torch.bfloat16


class Spy(TorchFunctionMode):
    """Records the types of the inputs of torch's attention."""

    def __init__(self):
        super().__init__()
        self.input_types = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            values = (*args, *(kwargs or {}).values())
            self.input_types.append({value.dtype for value in values if isinstance(value, torch.Tensor)})
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "backbone",
    [
        BackboneConfig(source="embedded", name="dinov3_scenes"),
        BackboneConfig(source="timm", name="test_vit3", pretrained=False),
    ],
    ids=["transformers", "timm"],
)
def test_the_attention_of_each_kind_of_backbone_is_in_fp32(backbone):
    classifier = load_classifier(ModelConfig(backbone=backbone, pooling="mean")).train()
    size = classifier.description.image_size
    images = torch.zeros(2, 3, *size, dtype=torch.uint8)
    with Spy() as spy, Bf16OnCpu().forward_context():
        logits = classifier(images)
    logits.float().sum().backward()
    assert len(spy.input_types) >= 3  # one a block
    assert all(types == {torch.float32} for types in spy.input_types)
    grads = [p.grad for p in classifier.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)
