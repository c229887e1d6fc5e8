"""Convert a DINOv3 ConvNeXt classifier to the ConvNeXt classifier of transformers 4.45 and later.

The stages are the same under other names. The head of transformers is one LayerNorm on the mean over the feature map;
ours has the backbone's LayerNorm on that mean, and then its own. The converted network gets two additions:

1. One more block in the last stage. Its depthwise convolution computes the mean: at the center of a map of at most
   7 x 7 positions its window covers the whole map. Its LayerNorm is the backbone's. It returns GAIN * z, next to which
   the residual stream vanishes in float32 (as in `hf_vit`).
2. One more stage of six channels. The LayerNorm before its convolution is the head's, and the convolution applies the
   head's linear layer at the tap that meets the center. The values at the other positions must not count: a depthwise
   convolution is chosen so that the sum of its output over the map is the value at the center. Two channels of
   +-OFFSET dominate the LayerNorms of this stage, so that these stay linear in the value.

Shapes: D is the width of the last stage; rows x columns are the positions of its map.
"""

from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from streetvision.contracts.errors import ArtifactError
from streetvision.io.resize import ImageSize
from streetvision.models.module import Classifier
from streetvision.subnet.hf_head import HFClassifier, LinearHead, State, check_config, saved_size, saved_state
from streetvision.subnet.hf_vit import GAIN

OFFSET = 2.0**16
"""So large that (logit / OFFSET)^2 vanishes in float32, and exact in every sum."""
CHANNELS = 6
"""+OFFSET, -OFFSET, the logit, its negative, and room for the value at the center and its negative."""
WINDOW = 7
LARGEST_MAP = 7
CENTER_TAPS = {1: (0.0, 1.0, 0.0), 2: (0.0, 0.0, 1.0), 3: (1.0, -1.0, 1.0)}
"""Positions along a side of the added stage's map -> three taps whose output sums to the value at the center."""
PARTS = {
    "depthwise_conv": "dwconv",
    "layer_norm": "layernorm",
    "pointwise_conv1": "pwconv1",
    "pointwise_conv2": "pwconv2",
}


def convert_convnext(classifier: Classifier, head: LinearHead) -> HFClassifier:
    """Convert to ConvNextForImageClassification; raises ArtifactError for an unsupported map size or setting."""
    network: Any = classifier.backbone.network
    config, image_size = network.config, classifier.description.image_size
    check_config(config, {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "num_channels": 3})
    stride = classifier.backbone.spec.patch_size
    positions = (image_size[0] // stride, image_size[1] // stride)
    if not all(2 <= count <= LARGEST_MAP for count in positions):
        raise ArtifactError(
            f"this head cannot be exported at {image_size[0]} x {image_size[1]} pixels: the last map has "
            f"{positions[0]} x {positions[1]} positions",
            f"train with model.image_size from {2 * stride} to {LARGEST_MAP * stride} for this export",
        )
    ours, depths, widths = saved_state(network), list(config.depths), list(config.hidden_sizes)
    state = _stages(ours, depths)
    state |= _mean_block(f"encoder.stages.{len(depths) - 1}.layers.{depths[-1]}", ours, positions)
    state |= _center_stage(f"encoder.stages.{len(depths)}", head, positions)
    described: dict[str, JsonValue] = {
        "model_type": "convnext",
        "architectures": ["ConvNextForImageClassification"],
        "num_stages": len(depths) + 1,
        "depths": [*depths[:-1], depths[-1] + 1, 1],
        "hidden_sizes": [*widths, CHANNELS],
        "hidden_act": "gelu",
        "patch_size": 4,
        "num_channels": 3,
        "image_size": saved_size(image_size),
        "layer_scale_init_value": 1.0,  # enables the layer scale; its values are in the weights
        "torch_dtype": "float32",
    }
    named = {f"convnext.{name}": value for name, value in state.items()}
    line = torch.zeros(2, CHANNELS)
    line[1, 4:] = torch.tensor([1.0, -1.0])
    return HFClassifier(described, named | {"classifier.weight": line, "classifier.bias": torch.zeros(2)})


def _stages(ours: State, depths: list[int]) -> State:
    """The backbone without its last LayerNorm, under the names of transformers."""
    found: State = {}
    for kind in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.{kind}"] = ours[f"stages.0.downsample_layers.0.{kind}"]
        found[f"embeddings.layernorm.{kind}"] = ours[f"stages.0.downsample_layers.1.{kind}"]
        for stage, depth in enumerate(depths):
            for number in (0, 1) if stage else ():
                theirs = f"encoder.stages.{stage}.downsampling_layer.{number}.{kind}"
                found[theirs] = ours[f"stages.{stage}.downsample_layers.{number}.{kind}"]
            for layer in range(depth):
                block, place = f"stages.{stage}.layers.{layer}", f"encoder.stages.{stage}.layers.{layer}"
                for part, theirs in PARTS.items():
                    found[f"{place}.{theirs}.{kind}"] = ours[f"{block}.{part}.{kind}"]
                found[f"{place}.layer_scale_parameter"] = ours[f"{block}.gamma"]
    return found


def _mean_block(place: str, ours: State, positions: ImageSize) -> State:
    """The block added to the last stage: at the center of the map, GAIN times the normalized mean."""
    width = len(ours["layer_norm.weight"])
    pair = torch.cat([torch.eye(width), -torch.eye(width), torch.zeros(2 * width, width)])  # gelu(z) - gelu(-z) = z
    return _block(
        place,
        window=torch.full((width, 1, WINDOW, WINDOW), 1.0 / (positions[0] * positions[1])),
        window_bias=torch.zeros(width),
        norm=ours["layer_norm.weight"],
        norm_bias=ours["layer_norm.bias"],
        up=pair,
        down=GAIN * pair.T,
    )


def _center_stage(place: str, head: LinearHead, positions: ImageSize) -> State:
    """The added stage, and the network's last LayerNorm, which only scales its output."""
    rows, columns = positions[0] // 2, positions[1] // 2  # of the center before this stage, and of its own map
    row_tap, column_tap = rows % 2, columns % 2
    line = torch.zeros(CHANNELS, len(head.weight), 2, 2)
    line[2, :, row_tap, column_tap], line[3, :, row_tap, column_tap] = head.weight, -head.weight
    still = torch.tensor([OFFSET, -OFFSET, 0.0, 0.0, 0.0, 0.0])
    taps = torch.zeros(2, WINDOW)
    taps[:, 2:5] = torch.tensor([CENTER_TAPS[rows], CENTER_TAPS[columns]])
    window = torch.zeros(CHANNELS, 1, WINDOW, WINDOW)
    window[2:4, 0] = torch.outer(taps[0], taps[1])
    up = torch.zeros(4 * CHANNELS, CHANNELS)
    up[0, 2:4], up[1, 2:4] = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
    down = torch.zeros(CHANNELS, 4 * CHANNELS)
    down[4, :2], down[5, :2] = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])
    spread = OFFSET * (2 / CHANNELS) ** 0.5  # the standard deviation over the channels
    scale = torch.full((CHANNELS,), spread / 2)  # half, because a value is read as a channel minus its negative
    added = {
        "downsampling_layer.0.weight": head.norm.weight,
        "downsampling_layer.0.bias": head.norm.bias,
        "downsampling_layer.1.weight": line,
        "downsampling_layer.1.bias": still + torch.tensor([0.0, 0.0, head.bias, -head.bias, 0.0, 0.0]),
    }
    block = _block(
        f"{place}.layers.0",
        window=window,
        window_bias=still,
        norm=scale,
        norm_bias=torch.zeros(CHANNELS),
        up=up,
        down=down,
    )
    last = {"layernorm.weight": scale * rows * columns, "layernorm.bias": torch.zeros(CHANNELS)}
    return {f"{place}.{name}": value for name, value in added.items()} | block | last


def _block(
    place: str, *, window: Tensor, window_bias: Tensor, norm: Tensor, norm_bias: Tensor, up: Tensor, down: Tensor
) -> State:
    return {
        f"{place}.layer_scale_parameter": torch.ones(len(down)),
        f"{place}.dwconv.weight": window,
        f"{place}.dwconv.bias": window_bias,
        f"{place}.layernorm.weight": norm,
        f"{place}.layernorm.bias": norm_bias,
        f"{place}.pwconv1.weight": up,
        f"{place}.pwconv1.bias": torch.zeros(len(up)),
        f"{place}.pwconv2.weight": down,
        f"{place}.pwconv2.bias": torch.zeros(len(down)),
    }
