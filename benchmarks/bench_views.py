"""Views of many images in one call, against a loop over the views, on the backbone that ships."""

import torch
from torch import Tensor

from benchmarks.figures import Figure, interleaved_median
from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.progress import Progress
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.device import pick_device
from streetvision.models.module import Classifier, load_classifier
from streetvision.models.multi_view import map_views
from streetvision.models.views import VIEW_CHUNK_SIZE

IMAGES, VIEWS = 16, 10
TOLERANCE = 1e-5
REPEATS = 3


def bench_views(_: Progress) -> list[Figure]:
    """Ten views of a batch in one call; and what one view costs among ten and among twenty."""
    backbone = BackboneConfig(source="embedded", name="dinov3_scenes")
    device = pick_device()
    torch.backends.cudnn.allow_tf32 = False  # whose rounding differs with the size of a batch
    classifier = load_classifier(ModelConfig(backbone=backbone, pooling="cls_mean")).eval().to(device)
    few, many = (
        some_views(IMAGES, views, classifier.description.image_size).to(device) for views in (VIEWS, 2 * VIEWS)
    )
    with torch.inference_mode():
        furthest = float((together(classifier, few) - one_view_at_a_time(classifier, few)).abs().max())
        if furthest > TOLERANCE:
            raise StreetVisionError(f"one call and a loop over views differ by {furthest:.1e}, more than {TOLERANCE}")
        batched, looped = interleaved_median(
            lambda: together(classifier, few), lambda: one_view_at_a_time(classifier, few), repeats=REPEATS
        )
        again, one_by_one = interleaved_median(
            lambda: together(classifier, few), lambda: one_image_at_a_time(classifier, few), repeats=REPEATS
        )
        longer, shorter = interleaved_median(
            lambda: together(classifier, many), lambda: together(classifier, few), repeats=REPEATS
        )
    what = f"{VIEWS} views of {IMAGES} images"
    return [
        Figure(f"{what} in one call", batched, "a loop over the views, a batch each", looped),
        Figure(f"{what} in one call", again, "a loop over images and views", one_by_one),
        Figure(f"a view among {2 * VIEWS}", longer / (2 * VIEWS), f"a view among {VIEWS}", shorter / VIEWS),
    ]


def together(classifier: Classifier, pixels: Tensor) -> Tensor:
    """Features (B, V, P) of all views (B, V, 3, h, w), as many through the backbone at once as a bundle takes."""
    mask = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
    return map_views(classifier.embed, pixels, mask, chunk_size=VIEW_CHUNK_SIZE).cpu()


def one_view_at_a_time(classifier: Classifier, pixels: Tensor) -> Tensor:
    """The same, by a call for each view of the batch."""
    return torch.stack([classifier.embed(view) for view in pixels.unbind(dim=1)], dim=1).cpu()


def one_image_at_a_time(classifier: Classifier, pixels: Tensor) -> Tensor:
    """The same, by a call for each view of each image."""
    return torch.stack([torch.cat([classifier.embed(view[None]) for view in image]) for image in pixels]).cpu()


def some_views(images: int, views: int, size: tuple[int, int]) -> Tensor:
    """Random pixels (B, V, 3, h, w), always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (images, views, 3, *size), generator=generator, dtype=torch.uint8)
