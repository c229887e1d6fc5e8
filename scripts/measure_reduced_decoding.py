"""How much a JPEG that the decoder reduces changes pixels and probabilities: preprocessing version 2 against version 1.

python scripts/measure_reduced_decoding.py                                                       # drawn scenes
python scripts/measure_reduced_decoding.py --index INDEX.csv --weights MODEL.safetensors --name deit_tiny_patch16_224

Every image is saved at a size from which a reduction by FACTOR leaves MARGIN times the pixels of the model's input. A
linear head is fitted in grouped cross-validation. Printed are the differences of pixels (root of the mean square, in
gray levels) and of probabilities from version 1, and the NLL where the head is fitted and evaluated on version 2. A
JPEG of quality 90, written again, is the yardstick.
"""

import argparse
import csv
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from streetvision.contracts.progress import Silent
from streetvision.data.decode import as_tensor
from streetvision.data.image_file import decode_file
from streetvision.models.backbone import BackboneConfig
from streetvision.models.config import ModelConfig
from streetvision.models.module import Classifier, load_classifier
from streetvision.pipeline.config import compose_config
from streetvision.synthetic.scenes import SceneConfig, write_scenes

FACTORS, MARGINS = (2, 4, 8), (1.0, 1.17, 1.25, 1.5, 2.0)
SIZE, SMALL_SIZE = (160, 208), (80, 112)
"""Size of the input, and for a reduction by 8, so that the images are not too large."""
SCENES, WIDTH, HEIGHT = 320, 1664, 1248
QUALITY, YARDSTICK = 92, 90
STRENGTH = 0.01
"""Inverse penalty of the head."""

Floats = NDArray[np.float64]


def saved(image: Image.Image, quality: int) -> bytes:
    """The image as a JPEG."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=quality)
    return jpeg.getvalue()


def resized(path: Path, width: int, height: int) -> Image.Image:
    """The image of a file at another size."""
    return Image.open(path).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def prepared(classifier: Classifier, files: Sequence[bytes], factor: int) -> Tensor:
    """The input (N, 3, h, w) of the model, from images reduced by `factor`."""

    def least(size: tuple[int, int]) -> tuple[int, int]:
        return -(-size[0] // factor), -(-size[1] // factor)

    return torch.stack([classifier.prepare(as_tensor(decode_file(file, decode_size=least).pixels)) for file in files])


def out_of_fold(fitted: Floats, evaluated: Floats, labels: NDArray[np.int64], groups: Sequence[str]) -> Floats:
    """Probabilities by heads that were fitted on the features `fitted` of other groups."""
    p = np.zeros(len(labels))
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(fitted, labels, groups):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=3000))
        p[test] = head.fit(fitted[train], labels[train]).predict_proba(evaluated[test])[:, 1]
    return p


def features_of(classifier: Classifier, images: Tensor) -> Floats:
    """Features (N, P)."""
    with torch.inference_mode():
        return np.concatenate([classifier.embed(part).numpy() for part in torch.split(images, 8)]).astype(np.float64)


def measure(index: Path, load: Callable[[tuple[int, int]], Classifier]) -> None:
    """Print a line for each factor and margin, and for the yardstick."""
    with index.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    labels, groups = np.array([int(row["label"]) for row in rows]), [row["group"] for row in rows]
    originals = [index.parent / row["path"] for row in rows]
    widest = Image.open(originals[0]).width
    for factor in FACTORS:
        size = SIZE if factor < 8 else SMALL_SIZE
        classifier = load(size)
        for margin in MARGINS:
            height, width = (factor * round(side * margin) for side in size)
            if width > widest:
                continue
            files = [saved(resized(path, width, height), QUALITY) for path in originals]
            again = [saved(Image.fromarray(decode_file(file).pixels), YARDSTICK) for file in files]
            whole = prepared(classifier, files, 1)
            features = features_of(classifier, whole)
            p = out_of_fold(features, features, labels, groups)
            for name, images in (
                (f"1/{factor}, margin {margin:4.2f}", prepared(classifier, files, factor)),
                (f"JPEG of quality {YARDSTICK}", prepared(classifier, again, 1)),
            ):
                error = float((images.float() - whole.float()).square().mean().sqrt())
                changed = features_of(classifier, images)
                difference = np.abs(out_of_fold(features, changed, labels, groups) - p)
                refitted = log_loss(labels, out_of_fold(changed, changed, labels, groups))
                print(
                    f"{name:<20} pixels {error:.2f}; probabilities mean {difference.mean():.4f}, 95 % "
                    f"{np.quantile(difference, 0.95):.4f}, largest {difference.max():.3f}; "
                    f"NLL {log_loss(labels, p):.4f} -> {refitted:.4f}",
                    flush=True,
                )


def main() -> None:
    """Measure on the images of an index, or on scenes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="columns path, label and group")
    parser.add_argument("--weights", type=Path, help="of a timm model; default: the packaged backbone")
    parser.add_argument("--name", default="deit_tiny_patch16_224")
    options = parser.parse_args()

    def load(size: tuple[int, int]) -> Classifier:
        backbone = compose_config([]).model.backbone
        if options.weights is not None:
            backbone = BackboneConfig(source="timm", name=options.name, weights=options.weights)
        return load_classifier(ModelConfig(backbone=backbone, image_size=size, pooling="cls_mean", layers=4)).eval()

    if options.index is not None:
        measure(options.index, load)
        return
    with tempfile.TemporaryDirectory() as name:
        write_scenes(Path(name), SceneConfig(count=SCENES, width=WIDTH, height=HEIGHT, first_seed=50_000), Silent())
        measure(Path(name) / "index.csv", load)


if __name__ == "__main__":
    main()
