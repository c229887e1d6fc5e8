"""How the backbone that ships with the package was trained: `python scripts/train_scene_backbone.py OUT`.

A small DINOv3 ViT from random weights, on procedural scenes of seeds that nothing else uses. The renderer knows where
the roadwork is, so every patch has a label of its own: the loss is the cross-entropy of the image plus the binary
cross-entropy of its patches, which a transformer without any prior learns from many times faster than from one bit an
image.

Shapes: B images, S pixels a side, T patches, G = sqrt(T) patches a side, D width of a token.
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
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import DINOv3ViTModel

from streetvision.contracts.progress import Progress
from streetvision.data.datamodule import shuffled
from streetvision.data.decode import decode_image, resize_square
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc, roc_auc
from streetvision.io.atomic import write_text_atomic
from streetvision.models.backbone import BackboneConfig, load_backbone
from streetvision.models.device import pick_device
from streetvision.models.network import Backbone
from streetvision.synthetic.scenes import SceneConfig, draw_scene
from streetvision.training.optim import cosine_with_warmup, make_adamw
from streetvision.training.precision import has_fast_bf16

TRAIN_SEEDS = 10_000_000
"""Seed of the first training scene; the demo and the tests stay far below."""
HELD_OUT_SEEDS = 20_000_000
CLEAR_SHARE, NO_SHARE = 0.12, 0.03
"""A patch is roadwork above the first share of its area, none below the second, and unjudged between."""
CHUNK = 64
"""Scenes that a process draws before it answers."""

Drawn: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8], int]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the training gives."""

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
    """Drawn scenes in memory."""

    images: Tensor
    """uint8 (N, 3, S, S)."""
    shares: Tensor
    """(N, G, G) uint8: share of each patch that shows roadwork, in 255ths."""
    labels: Tensor
    """(N,) int64."""


class DenseClassifier(nn.Module):
    """A backbone with one head for the image and one for its patches."""

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
        """Images (B, 3, S, S) in 0 to 255 -> logits of the image (B, 2) and of its patches (B, T)."""
        tokens: Tensor = self.backbone((images - self.mean) / self.std)
        patches = tokens[:, self.backbone.spec.prefix_tokens :]
        pooled = torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=1)
        return self.image_head(pooled), self.patch_head(patches)[..., 0]


def draw(first_seed: int, count: int, recipe: Recipe, progress: Progress) -> Scenes:
    """The scenes of `count` seeds as the classifier will see them: through JPEG, squashed to a square."""
    drawn = progress.track(_drawn(range(first_seed, first_seed + count), recipe), total=count, label="scenes")
    images, shares, labels = zip(*drawn, strict=True)
    return Scenes(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(shares)), torch.tensor(labels))


def _drawn(seeds: range, recipe: Recipe) -> Iterator[Drawn]:
    one = partial(draw_one, size=recipe.image_size, grid=recipe.image_size // recipe.patch_size)
    if len(seeds) <= CHUNK:  # sooner done than a process is started
        yield from map(one, seeds)
        return
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(one, seeds, chunksize=CHUNK)


def draw_one(seed: int, *, size: int, grid: int) -> Drawn:
    """One scene: uint8 (3, S, S), share of roadwork a patch (G, G) in 255ths, label.

    As numpy arrays, since each tensor that crosses processes would keep a file open.
    """
    scene = draw_scene(seed, SceneConfig())
    jpeg = io.BytesIO()
    Image.fromarray(scene.image).save(jpeg, "JPEG", quality=90)
    mask = torch.from_numpy(scene.roadwork)[None, None].float()
    share = F.interpolate(mask, size=(grid, grid), mode="area")[0, 0]
    image = resize_square(decode_image(jpeg.getvalue()), size).contiguous()
    return image.numpy(), (255 * share).round().byte().numpy(), scene.label


def train(scenes: Scenes, recipe: Recipe, progress: Progress) -> DenseClassifier:
    """Fit a new network; the same recipe gives the same weights on the same machine."""
    torch.manual_seed(recipe.seed)
    device = pick_device()
    model = DenseClassifier(_new_backbone(recipe)).to(device).train()
    optimizer = make_adamw(model, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * (len(scenes.labels) // recipe.batch_size)
    schedule = cosine_with_warmup(optimizer, total_steps=steps, warmup_steps=recipe.warmup_steps)
    for images, shares, labels in progress.track(_batches(scenes, recipe), total=steps, label="train"):
        images, shares = augment(images.to(device).float(), shares.to(device).float() / 255)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            image_logits, patch_logits = model(images)
        loss = F.cross_entropy(image_logits.float(), labels.to(device))
        loss = loss + recipe.patch_weight * patch_loss(patch_logits.float(), shares.flatten(1))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def _new_backbone(recipe: Recipe) -> Backbone:
    r = recipe
    return load_backbone(
        BackboneConfig(
            source="random",
            image_size=r.image_size,
            width=r.width,
            depth=r.depth,
            heads=r.heads,
            patch_size=r.patch_size,
            seed=r.seed,
        )
    )


def _batches(scenes: Scenes, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    n = len(scenes.labels)
    for epoch in range(recipe.epochs):
        order = shuffled(n, seed=recipe.seed, epoch=epoch)
        for start in range(0, n - recipe.batch_size + 1, recipe.batch_size):
            chosen = order[start : start + recipe.batch_size]
            yield scenes.images[chosen], scenes.shares[chosen], scenes.labels[chosen]


def patch_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Binary cross-entropy of patches (B, T) whose share is clear; roadwork, being rare, counts four times."""
    target = (shares > CLEAR_SHARE).float()
    judged = ((shares > CLEAR_SHARE) | (shares < NO_SHARE)).float()
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (each * judged * (1 + 3 * target)).mean()


def augment(images: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Flip, zoom, shift and relight images (B, 3, S, S) in 0 to 255, and their shares (B, G, G) with them."""
    b, device = len(images), images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(b, *shape, device=device).uniform_(low, high)

    zoom, stretch = uniform(0.8, 1.05), uniform(0.92, 1.08)
    flip = torch.where(torch.rand(b, device=device) < 0.5, -1.0, 1.0)
    room = (1 - zoom).clamp(min=0.03)
    affine = torch.zeros(b, 2, 3, device=device)
    affine[:, 0, 0], affine[:, 1, 1] = flip * zoom * stretch, zoom / stretch
    affine[:, 0, 2], affine[:, 1, 2] = room * uniform(-1, 1), room * uniform(-1, 1)
    images, shares = _warp(images, affine), _warp(shares[:, None], affine)[:, 0]
    images = images * uniform(0.9, 1.1, 3, 1, 1) * uniform(0.75, 1.25, 1, 1, 1)
    middle = images.mean((1, 2, 3), keepdim=True)
    return (images - middle) * uniform(0.8, 1.2, 1, 1, 1) + middle, shares


def _warp(planes: Tensor, affine: Tensor) -> Tensor:
    grid = F.affine_grid(affine, list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, align_corners=False, padding_mode="reflection")


@torch.inference_mode()
def judge(model: DenseClassifier, scenes: Scenes) -> tuple[float, float]:
    """MCC at 0.5 and ROC-AUC of the image head on scenes that the model has not seen."""
    device = pick_device()
    logits = torch.cat([model(part.to(device).float())[0].cpu() for part in torch.split(scenes.images, 128)])
    probabilities = logits.double().softmax(dim=1)[:, 1].numpy()
    counts = confusion_counts(scenes.labels.numpy(), probabilities >= 0.5)
    return float(mcc(counts)), roc_auc(scenes.labels.numpy(), probabilities)


def make_backbone(out: Path, recipe: Recipe, progress: Progress) -> str:
    """Draw, train, judge on scenes of other seeds, and write the backbone with its card; returns the card."""
    started = time.perf_counter()
    model = train(draw(TRAIN_SEEDS, recipe.scenes, recipe, progress), recipe, progress)
    minutes = (time.perf_counter() - started) / 60
    score, auc = judge(model, draw(HELD_OUT_SEEDS, recipe.held_out, recipe, progress))
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
        mcc=score,
        auc=auc,
    )
    write_text_atomic(out / "README.md", card)
    return card


CARD = """# dinov3_scenes

A DINOv3 ViT for images of {image_size} px: {parameters:,} parameters, width {width}, {depth} blocks, {heads} heads,
patch {patch_size}, 4 registers. It ships so that the demo and the tests have a backbone that sees, with no download.

- Made by: `python scripts/train_scene_backbone.py OUT`, from random weights.
- On: {scenes:,} procedural scenes of the seeds from {first_seed:,}; the demo draws the seeds from 0.
- Objective: cross-entropy of the image's label plus {patch_weight} times the binary cross-entropy of the labels of its
  patches, since the renderer knows which show roadwork. It has been taught this question, on drawings: it says nothing
  of DINOv3's own weights, and little of photographs.
- Recipe: {epochs} epochs, batches of {batch_size}, AdamW at {learning_rate}, weight decay {weight_decay},
  {warmup_steps} steps of warm-up, cosine; flips, zoom, shift, light and colour; seed {seed}; {precision}.
- Took: {minutes:.0f} minutes on {machine}, drawing the scenes included.
- On {held_out:,} scenes of other seeds (from {held_out_seed:,}): MCC {mcc:.3f} at 0.5 and ROC-AUC {auc:.3f}, by the
  head for images that it was trained with, which does not ship.

Licence: Apache-2.0, as the package.
"""
