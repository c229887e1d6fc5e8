"""Train the backbone that ships with the package: `python scripts/train_scene_backbone.py OUT`.

A small DINOv3 ViT is trained from random weights on drawn scenes, with seeds that are not used elsewhere. The
renderer knows where the roadwork is, so every patch has a label. The loss is the cross-entropy of the image plus the
binary cross-entropy of its patches; a randomly initialized transformer learns much faster from labels per patch than
from one label per image.

Shapes: B images, S pixels per side, T patches, G = sqrt(T) patches per side, D width of a token.
"""

import io
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import DINOv3ViTModel

from streetvision.contracts.progress import Progress
from streetvision.data.datamodule import shuffled
from streetvision.data.decode import decode_image
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc, roc_auc
from streetvision.io.atomic import write_text_atomic
from streetvision.io.resize_tensor import resize_tensor
from streetvision.models.backbone import BackboneConfig, load_backbone
from streetvision.models.device import has_fast_bf16, pick_device
from streetvision.models.module import fixed_size
from streetvision.models.network import Backbone
from streetvision.pipeline.console import Console
from streetvision.synthetic.scenes import SceneConfig, draw_scene
from streetvision.training.optim import cosine_with_warmup, make_adamw

TRAIN_SEEDS = 10_000_000
"""Seed of the first training scene; the demo and the tests use much smaller seeds."""
HELD_OUT_SEEDS = 20_000_000
"""Seed of the first scene for evaluation."""
POSITIVE_FRACTION, NEGATIVE_FRACTION = 0.12, 0.03
"""A patch is positive if roadwork covers more than the first fraction of it, negative below the second one, and ignored
in between."""
CHUNK = 64
"""Scenes per task of a worker process."""

SceneArrays: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8], int]


@dataclass(frozen=True)
class Recipe:
    """All settings that affect the result of the training."""

    scenes: int = 20_000
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 300
    patch_weight: float = 2.0
    image_size: int = 160
    width: int = 128
    depth: int = 6
    heads: int = 4
    patch_size: int = 16
    held_out: int = 2_000
    seed: int = 0


@dataclass(frozen=True)
class Scenes:
    """Scenes in memory."""

    images: Tensor
    """uint8 (N, 3, S, S)."""
    patch_coverage: Tensor
    """(N, G, G) uint8: fraction of each patch that is covered by roadwork, times 255."""
    labels: Tensor
    """(N,) int64."""


class DenseClassifier(nn.Module):
    """A backbone with a head for the image and a head for its patches."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        spec = backbone.spec
        self.backbone = backbone
        self.image_head = nn.Linear(2 * spec.embed_dim, 2)
        self.patch_head = nn.Linear(spec.embed_dim, 1)
        self.register_buffer("mean", 255 * torch.tensor(spec.mean).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(spec.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 3, S, S) in [0, 255] to logits of the images (B, 2) and of their patches (B, T)."""
        (tokens,) = self.backbone((images - self.mean) / self.std)
        patches = tokens[:, self.backbone.spec.prefix_tokens :]
        pooled = torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)
        return self.image_head(pooled), self.patch_head(patches)[..., 0]


def draw(first_seed: int, count: int, recipe: Recipe, progress: Progress) -> Scenes:
    """Draw the scenes of `count` seeds as the classifier gets them: JPEG-compressed and resized to a square."""
    seeds = range(first_seed, first_seed + count)
    scenes = progress.track(_draw_seeds(seeds, recipe), total=count, label="scenes")
    images, coverage, labels = zip(*scenes, strict=True)
    return Scenes(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(coverage)), torch.tensor(labels))


def _draw_seeds(seeds: range, recipe: Recipe) -> Iterator[SceneArrays]:
    draw_seed = partial(draw_one, size=recipe.image_size, grid=recipe.image_size // recipe.patch_size)
    if len(seeds) <= CHUNK:  # starting a process would take longer
        yield from map(draw_seed, seeds)
        return
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw_seed, seeds, chunksize=CHUNK)


def draw_one(seed: int, *, size: int, grid: int) -> SceneArrays:
    """Draw one scene: image uint8 (3, S, S), patch coverage uint8 (G, G) times 255, and label.

    The results are numpy arrays, because every tensor that is sent to another process keeps a file open.
    """
    scene = draw_scene(seed, SceneConfig())
    jpeg = io.BytesIO()
    Image.fromarray(scene.image).save(jpeg, "JPEG", quality=90)
    mask = torch.from_numpy(scene.roadwork)[None, None].float()
    coverage = F.interpolate(mask, size=(grid, grid), mode="area")[0, 0]
    image = resize_tensor(decode_image(jpeg.getvalue()), (size, size)).contiguous()
    return image.numpy(), (255 * coverage).round().byte().numpy(), scene.label


def train(scenes: Scenes, recipe: Recipe, progress: Progress) -> DenseClassifier:
    """Train a new network; on the same machine the same recipe gives the same weights."""
    torch.manual_seed(recipe.seed)
    device = pick_device()
    backbone = load_backbone(
        BackboneConfig(
            source="random",
            width=recipe.width,
            depth=recipe.depth,
            heads=recipe.heads,
            patch_size=recipe.patch_size,
            seed=recipe.seed,
        ),
        fixed_size(recipe.image_size),
    )
    model = DenseClassifier(backbone).to(device).train()
    optimizer = make_adamw(model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * (len(scenes.labels) // recipe.batch_size)
    schedule = cosine_with_warmup(optimizer, total_steps=steps, warmup_steps=recipe.warmup_steps)
    for images, coverage, labels in progress.track(_batches(scenes, recipe), total=steps, label="train"):
        images, coverage = augment(images.to(device).float(), coverage.to(device).float() / 255)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            image_logits, patch_logits = model(images)
        loss = F.cross_entropy(image_logits.float(), labels.to(device))
        loss = loss + recipe.patch_weight * patch_loss(patch_logits.float(), coverage.flatten(1))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _batches(scenes: Scenes, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    n = len(scenes.labels)
    for epoch in range(recipe.epochs):
        order = shuffled(n, seed=recipe.seed, epoch=epoch)
        for start in range(0, n - recipe.batch_size + 1, recipe.batch_size):
            rows = order[start : start + recipe.batch_size]
            yield scenes.images[rows], scenes.patch_coverage[rows], scenes.labels[rows]


def patch_loss(logits: Tensor, coverage: Tensor) -> Tensor:
    """Return the binary cross-entropy of the patches that are clearly positive or negative.

    Args:
        logits: (B, T).
        coverage: (B, T), fraction of each patch that is covered by roadwork.
    """
    target = (coverage > POSITIVE_FRACTION).float()
    valid = ((coverage > POSITIVE_FRACTION) | (coverage < NEGATIVE_FRACTION)).float()
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # Positive patches are rare, so they have four times the weight.
    return (losses * valid * (1 + 3 * target)).mean()


def augment(images: Tensor, coverage: Tensor) -> tuple[Tensor, Tensor]:
    """Flip, zoom, shift and re-light images (B, 3, S, S) in [0, 255]; the coverage (B, G, G) moves with them."""
    b, device = len(images), images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(b, *shape, device=device).uniform_(low, high)

    zoom, stretch = uniform(0.8, 1.05), uniform(0.92, 1.08)
    flip = torch.where(torch.rand(b, device=device) < 0.5, -1.0, 1.0)
    max_shift = (1 - zoom).clamp(min=0.03)
    affine = torch.zeros(b, 2, 3, device=device)
    affine[:, 0, 0], affine[:, 1, 1] = flip * zoom * stretch, zoom / stretch
    affine[:, 0, 2], affine[:, 1, 2] = max_shift * uniform(-1, 1), max_shift * uniform(-1, 1)
    images, coverage = _warp(images, affine), _warp(coverage[:, None], affine)[:, 0]
    images = images * uniform(0.9, 1.1, 3, 1, 1) * uniform(0.75, 1.25, 1, 1, 1)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * uniform(0.8, 1.2, 1, 1, 1) + mean, coverage


def _warp(planes: Tensor, affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine, list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, align_corners=False, padding_mode="reflection")


@torch.inference_mode()
def evaluate(model: DenseClassifier, scenes: Scenes) -> tuple[float, float]:
    """Return the MCC at threshold 0.5 and the ROC-AUC of the image head."""
    device = pick_device()
    logits = torch.cat([model(chunk.to(device).float())[0].cpu() for chunk in torch.split(scenes.images, 128)])
    probabilities = logits.double().softmax(dim=1)[:, 1].numpy()
    counts = confusion_counts(scenes.labels.numpy(), probabilities >= 0.5)
    return float(mcc(counts)), roc_auc(scenes.labels.numpy(), probabilities)


def make_backbone(out: Path, recipe: Recipe, progress: Progress) -> str:
    """Train and evaluate a backbone on scenes, write it with its model card to `out`, and return the card."""
    started = time.perf_counter()
    model = train(draw(TRAIN_SEEDS, recipe.scenes, recipe, progress), recipe, progress)
    minutes = (time.perf_counter() - started) / 60
    test_mcc, auc = evaluate(model, draw(HELD_OUT_SEEDS, recipe.held_out, recipe, progress))
    network = model.backbone.network.cpu()
    assert isinstance(network, DINOv3ViTModel)
    network.save_pretrained(out)
    device = pick_device()
    card = CARD.format(
        **asdict(recipe),
        parameters=sum(p.numel() for p in network.parameters()),
        first_seed=TRAIN_SEEDS,
        held_out_seed=HELD_OUT_SEEDS,
        precision="bf16 autocast" if has_fast_bf16(device) else "fp32",
        machine=f"{os.cpu_count()} CPU cores" if device.type == "cpu" else f"one {device.type} device",
        minutes=minutes,
        mcc=test_mcc,
        auc=auc,
    )
    write_text_atomic(out / "README.md", card)
    return card


CARD = """# dinov3_scenes

A DINOv3 ViT for images of {image_size} px: {parameters:,} parameters, width {width}, {depth} blocks, {heads} heads,
patch {patch_size}, 4 registers. It ships with the package, so that the demo and the tests have a trained backbone
without a download.

- Command: `python scripts/train_scene_backbone.py OUT`, from random weights.
- Training data: {scenes:,} drawn scenes with seeds from {first_seed:,}; the demo uses seeds from 0.
- Loss: cross-entropy of the image's label plus {patch_weight} times the binary cross-entropy of the labels of its
  patches, which the renderer provides. The backbone was trained for this task on drawings, so its results are no
  evidence for photographs or for the published DINOv3 weights.
- Recipe: {epochs} epochs, batches of {batch_size}, AdamW at {learning_rate}, weight decay {weight_decay},
  {warmup_steps} warm-up steps, cosine decay; random flips, zoom, shift, light and color; seed {seed}; {precision}.
- Time: {minutes:.0f} minutes on {machine}, including drawing the scenes.
- Result on {held_out:,} scenes with other seeds (from {held_out_seed:,}): MCC {mcc:.3f} at threshold 0.5 and ROC-AUC
  {auc:.3f}, with the image head of the training, which does not ship.

License: Apache-2.0, like the package.
"""


def main(out: Path, scenes: int = Recipe.scenes, epochs: int = Recipe.epochs) -> None:
    """Draw scenes, train on them, and write config.json, model.safetensors and README.md to OUT."""
    console = Console()
    console.text(make_backbone(out, Recipe(scenes=scenes, epochs=epochs), console))


if __name__ == "__main__":
    typer.run(main)
