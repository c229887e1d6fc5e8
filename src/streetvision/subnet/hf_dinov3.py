"""Convert a DINOv3 ViT classifier to timm's, which transformers loads with TimmWrapperForImageClassification.

timm has a LayerNorm after the pooling as well, so backbone and head are copied unchanged.
Shapes: D is the width of a token.
"""

from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from streetvision.io.resize import ImageSize
from streetvision.models.module import Classifier
from streetvision.subnet.hf_head import LABELS, HFClassifier, LinearHead, State, check_config, saved_size, saved_state

ARCHITECTURE = "vit_small_patch16_dinov3_qkvb"
"""Name in timm; the sizes are in model_args, which transformers reads since 4.53."""
NEEDS, ALSO = "4.53", "timm 1.0.20"
PARTS = {
    "norm1": "norm1",
    "attention.o_proj": "attn.proj",
    "norm2": "norm2",
    "mlp.gate_proj": "mlp.fc1_g",
    "mlp.up_proj": "mlp.fc1_x",
    "mlp.down_proj": "mlp.fc2",
}
"""Part of a block in transformers -> in timm; without a gate, timm calls up_proj fc1."""


def convert_dinov3(classifier: Classifier, head: LinearHead) -> HFClassifier:
    """Convert to TimmWrapper; raises ArtifactError for a setting that timm's architecture does not have."""
    network: Any = classifier.backbone.network
    config = network.config
    check_config(
        config,
        {
            "hidden_act": "silu" if config.use_gated_mlp else "gelu",
            "layer_norm_eps": head.norm.eps,  # timm has one for all its norms
            "key_bias": False,
            "num_channels": 3,
        },
    )
    described: dict[str, JsonValue] = {
        "model_type": "timm_wrapper",
        "architectures": ["TimmWrapperForImageClassification"],
        "architecture": ARCHITECTURE,
        "model_args": _model_args(config, classifier.description.image_size),
        "num_classes": len(LABELS),
        "label_names": list(LABELS.values()),  # TimmWrapper reads them here
        "torch_dtype": "float32",
    }
    state = _body(config, saved_state(network))
    state |= {"fc_norm.weight": head.norm.weight, "fc_norm.bias": head.norm.bias}
    state |= {
        "head.weight": torch.stack([torch.zeros_like(head.weight), head.weight]),
        "head.bias": torch.tensor([0.0, head.bias]),
    }
    return HFClassifier(described, {f"timm_model.{name}": value for name, value in state.items()}, NEEDS, ALSO)


def _model_args(config: Any, image_size: ImageSize) -> dict[str, JsonValue]:
    return {
        "img_size": saved_size(image_size),
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,  # timm rounds the product down
        "swiglu_mlp": config.use_gated_mlp,
        "swiglu_align_to": 1,  # 0 would mean another layout of the same MLP
        "num_reg_tokens": config.num_register_tokens,
        "rope_temperature": config.rope_theta,
        "init_values": 1.0,  # enables the layer scale; its values are in the weights
        "global_pool": "token",
        "use_post_transformer_norm": True,
        "use_fc_norm": True,
    }


def _body(config: Any, ours: State) -> State:
    """The backbone under timm's names."""
    found = {
        "cls_token": ours["embeddings.cls_token"],
        "patch_embed.proj.weight": ours["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": ours["embeddings.patch_embeddings.bias"],
        "norm.weight": ours["norm.weight"],
        "norm.bias": ours["norm.bias"],
    }
    if config.num_register_tokens:
        found["reg_token"] = ours["embeddings.register_tokens"]
    for layer in range(config.num_hidden_layers):
        found |= {f"blocks.{layer}.{name}": value for name, value in _block(ours, f"layer.{layer}.").items()}
    return found


def _block(ours: State, prefix: str) -> State:
    gated = f"{prefix}mlp.gate_proj.weight" in ours
    found = {
        "attn.qkv.weight": torch.cat([ours[f"{prefix}attention.{part}_proj.weight"] for part in "qkv"]),
        "gamma_1": ours[f"{prefix}layer_scale1.lambda1"],
        "gamma_2": ours[f"{prefix}layer_scale2.lambda1"],
    }
    for part in "qv":
        found[f"attn.{part}_bias"] = _bias(ours, f"{prefix}attention.{part}_proj")
    for part, theirs in PARTS.items():
        if f"{prefix}{part}.weight" in ours:
            name = theirs if gated else theirs.removesuffix("_x")
            found[f"{name}.weight"] = ours[f"{prefix}{part}.weight"]
            found[f"{name}.bias"] = _bias(ours, f"{prefix}{part}")
    return found


def _bias(ours: State, part: str) -> Tensor:
    """The bias of a layer; zeros when it has none, because timm always has one."""
    return ours.get(f"{part}.bias", torch.zeros(len(ours[f"{part}.weight"])))
