"""Convert a ViT or DINOv2 classifier to the image classifier of transformers, with the parameter names of 4.45.

The head of transformers is one linear layer on the CLS token after the last LayerNorm. Our head has a LayerNorm of its
own before the linear layer, which a linear layer cannot express. The converted network therefore gets one more block:

- Its attention returns zeros.
- Its MLP applies the backbone's last LayerNorm and returns GAIN * z, by gelu(z) - gelu(-z) = z.
- GAIN is so large that the residual stream vanishes in float32, and a LayerNorm is invariant to scale. The last
  LayerNorm of the converted network is the one of our head.

The conversion is exact to float32. Shapes: D is the width of a token.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import JsonValue

from streetvision.contracts.errors import ArtifactError
from streetvision.models.backbone_spec import token_count
from streetvision.models.module import Classifier
from streetvision.subnet.hf_head import PINNED, HFClassifier, LinearHead, State, check_config, saved_size, saved_state

GAIN = 2.0**24
"""A power of two, so that multiplication is exact."""

GATE_ON = 128.0
"""Input of a gate at which its sigmoid is 1 in float32."""


@dataclass(frozen=True)
class Family:
    """Parameter names of one classifier family of transformers."""

    model_type: str
    architecture: str
    attention_norm: str
    mlp_norm: str
    up: str
    down: str
    scales: tuple[str, ...] = ()
    """LayerScale vectors of a block."""
    head_inputs: int = 1
    """Input width of the head as a multiple of D; inputs after the CLS token get weight 0."""
    gated: bool = False
    """Whether `up` holds gate and values, and the MLP is silu(gate) * values."""
    transformers: str = PINNED
    """The first version that has it."""

    def block(self, layer: int, part: str) -> str:
        """The name of a part of a block."""
        return f"encoder.layer.{layer}.{part}"


VIT = Family(
    "vit",
    "ViTForImageClassification",
    attention_norm="layernorm_before",
    mlp_norm="layernorm_after",
    up="intermediate.dense",
    down="output.dense",
)
DINOV2 = Family(
    "dinov2",
    "Dinov2ForImageClassification",
    attention_norm="norm1",
    mlp_norm="norm2",
    up="mlp.fc1",
    down="mlp.fc2",
    scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
    head_inputs=2,
)
REGISTERS = replace(
    DINOV2,
    model_type="dinov2_with_registers",
    architecture="Dinov2WithRegistersForImageClassification",
    transformers="4.48",
)
FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (VIT, DINOV2, REGISTERS)}
"""model_type -> its classifier family."""

TIMM_TO_VIT = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
ATTENTION = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))


@dataclass(frozen=True)
class StockBackbone:
    """A backbone under the parameter names of transformers, without prefix."""

    family: Family
    config: dict[str, JsonValue]
    state: State


def convert_vit(classifier: Classifier, head: LinearHead) -> HFClassifier:
    """Convert to the classifier of the backbone's family; raises ArtifactError when there is none."""
    body = _body(classifier)
    family, state = body.family, dict(body.state)
    layer, width = int(str(body.config["num_hidden_layers"])), len(head.weight)
    state |= _gain_block(body, layer, width)
    state |= {"layernorm.weight": head.norm.weight, "layernorm.bias": head.norm.bias}
    weight = torch.zeros(2, family.head_inputs * width)
    weight[1, :width] = head.weight
    named = {f"{family.model_type}.{name}": value for name, value in state.items()}
    named |= {"classifier.weight": weight, "classifier.bias": torch.tensor([0.0, head.bias])}
    config = body.config | {
        "num_hidden_layers": layer + 1,
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "image_size": saved_size(classifier.description.image_size),
        "torch_dtype": "float32",
    }
    return HFClassifier(config, named, family.transformers)


def _body(classifier: Classifier) -> StockBackbone:
    config = classifier.backbone.spec.architecture.get("config")
    if isinstance(config, dict):
        return _from_transformers(classifier, FAMILIES[str(config["model_type"])])
    return _from_timm(classifier)


def _from_transformers(classifier: Classifier, family: Family) -> StockBackbone:
    network: Any = classifier.backbone.network
    if getattr(network.config, "use_swiglu_ffn", False):
        family = replace(family, up="mlp.weights_in", down="mlp.weights_out", gated=True)
    else:
        check_config(network.config, {"hidden_act": "gelu"})
    state = saved_state(network)
    (height, width), channels = classifier.description.image_size, network.config.hidden_size
    stored = state["embeddings.position_embeddings"]
    # The classifier does not interpolate, or not in the same way.
    if (height, width) != (network.config.image_size,) * 2:
        tokens = token_count((height, width), network.config.patch_size) + 1
        stored = network.embeddings.interpolate_pos_encoding(torch.empty(1, tokens, channels), height, width)
    state["embeddings.position_embeddings"] = stored
    config = {key: value for key, value in network.config.to_dict().items() if key in _CONFIG_KEYS}
    body = StockBackbone(family, config, state)
    return body if family is VIT or height == width else _as_vit(body, network.config)


def _as_vit(body: StockBackbone, config: Any) -> StockBackbone:
    """A DINOv2 under the names of ViT, with its LayerScale in the weights.

    The DINOv2 classifier of transformers stores position embeddings of a square only, and that of ViT of any size.
    """
    if body.family.gated or config.model_type != DINOV2.model_type:
        raise ArtifactError(
            f"a {config.model_type} cannot be exported at a size that is not square: its classifier in transformers "
            "stores position embeddings of a square only",
            "train with model.image_size=S, for example 224, for this export",
        )
    state = {name: value for name, value in body.state.items() if name.startswith(("embeddings.", "layernorm."))}
    state.pop("embeddings.mask_token", None)
    for layer in range(config.num_hidden_layers):
        block = {name: body.state[VIT.block(layer, name)] for name in _DINOV2_TO_VIT}
        for name, theirs in _DINOV2_TO_VIT.items():
            value = block[name]
            for scaled, scale in (("attention.output.dense", "layer_scale1"), ("mlp.fc2", "layer_scale2")):
                if name.startswith(f"{scaled}."):
                    factor = body.state[VIT.block(layer, f"{scale}.lambda1")]
                    value = value * (factor[:, None] if value.ndim == 2 else factor)
            state[VIT.block(layer, theirs)] = value
    fields: dict[str, JsonValue] = {key: body.config[key] for key in _VIT_CONFIG_KEYS}
    return StockBackbone(VIT, fields | {"intermediate_size": len(block["mlp.fc1.bias"])}, state)


_DINOV2_TO_VIT = {
    f"{ours}.{kind}": f"{theirs}.{kind}"
    for ours, theirs in {
        **{part: part for part in (*ATTENTION, "attention.output.dense")},
        **{"norm1": "layernorm_before", "norm2": "layernorm_after"},
        **{"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"},
    }.items()
    for kind in ("weight", "bias")
}
"""Part of a block of DINOv2 -> of ViT."""
_VIT_CONFIG_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size"),
    *("num_channels", "qkv_bias"),
)
_CONFIG_KEYS = {
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "mlp_ratio", "hidden_act"),
    *("layer_norm_eps", "patch_size", "num_channels", "qkv_bias", "use_swiglu_ffn", "layerscale_value"),
    "num_register_tokens",
}


def _from_timm(classifier: Classifier) -> StockBackbone:
    network: Any = classifier.backbone.network
    patch_size = classifier.backbone.spec.patch_size
    depth, state = len(getattr(network, "blocks", ())), dict(network.state_dict())
    found: State = {}
    try:
        found["embeddings.cls_token"] = state.pop("cls_token")
        if state["pos_embed"].shape[1] == token_count(classifier.description.image_size, patch_size) + 1:
            found["embeddings.position_embeddings"] = state.pop("pos_embed")
        for kind in ("weight", "bias"):
            found[f"embeddings.patch_embeddings.projection.{kind}"] = state.pop(f"patch_embed.proj.{kind}")
            found[f"layernorm.{kind}"] = state.pop(f"norm.{kind}")
            for layer in range(depth):
                for part, value in zip(ATTENTION, state.pop(f"blocks.{layer}.attn.qkv.{kind}").chunk(3), strict=True):
                    found[VIT.block(layer, f"{part}.{kind}")] = value
                for theirs, stock in TIMM_TO_VIT.items():
                    found[VIT.block(layer, f"{stock}.{kind}")] = state.pop(f"blocks.{layer}.{theirs}.{kind}")
    except KeyError as error:
        state[f"(without {error})"] = torch.empty(0)
    if state:
        name = classifier.backbone.spec.architecture.get("name")
        raise ArtifactError(
            f"timm's {name!r} is not a plain vision transformer: {', '.join(sorted(state)[:3])}",
            "train with a plain one for this export, for example model=deit_tiny",
        )
    block = network.blocks[0]
    config: dict[str, JsonValue] = {
        "hidden_size": network.embed_dim,
        "num_hidden_layers": depth,
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": network.norm.eps,
        "patch_size": patch_size,
        "num_channels": 3,
        "qkv_bias": True,
    }
    return StockBackbone(VIT, config, found)


def _gain_block(body: StockBackbone, layer: int, width: int) -> State:
    """The added block: zeros from its attention, GAIN times the backbone's last LayerNorm from its MLP."""
    family, state = body.family, body.state
    like = {name.removeprefix(family.block(0, "")): value for name, value in state.items()}
    added = {name: torch.zeros_like(value) for name, value in like.items() if family.block(0, name) in state}
    added[f"{family.attention_norm}.weight"] = torch.ones(width)
    added[f"{family.mlp_norm}.weight"] = state["layernorm.weight"]
    added[f"{family.mlp_norm}.bias"] = state["layernorm.bias"]
    fill = _pass_gated if family.gated else _pass_through_gelu
    added |= fill(family, added, width)
    added |= {name: torch.ones(width) for name in family.scales}
    return {family.block(layer, name): value for name, value in added.items()}


def _pass_through_gelu(family: Family, zeros: State, width: int) -> State:
    """GAIN * (gelu(z) - gelu(-z)) = GAIN * z."""
    up, down = zeros[f"{family.up}.weight"].clone(), zeros[f"{family.down}.weight"].clone()
    _check_hidden(len(up), 2 * width)
    identity = torch.eye(width)
    up[: 2 * width] = torch.cat([identity, -identity])
    down[:, : 2 * width] = GAIN * torch.cat([identity, -identity], dim=1)
    return {f"{family.up}.weight": up, f"{family.down}.weight": down}


def _pass_gated(family: Family, zeros: State, width: int) -> State:
    """GAIN / GATE_ON * silu(GATE_ON) * z = GAIN * z, because the sigmoid of GATE_ON is 1 in float32."""
    up, gate = zeros[f"{family.up}.weight"].clone(), zeros[f"{family.up}.bias"].clone()
    down = zeros[f"{family.down}.weight"].clone()
    hidden = len(up) // 2
    _check_hidden(hidden, width)
    gate[:width] = GATE_ON
    up[hidden : hidden + width] = torch.eye(width)
    down[:, :width] = GAIN / GATE_ON * torch.eye(width)
    return {f"{family.up}.weight": up, f"{family.up}.bias": gate, f"{family.down}.weight": down}


def _check_hidden(hidden: int, needed: int) -> None:
    if hidden < needed:
        raise ArtifactError(f"the added block needs {needed} hidden units, and this backbone's blocks have {hidden}")
