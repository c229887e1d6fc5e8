"""metrics.csv of a training, and the check of merged adapters."""

import csv
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.data.decode import read_row
from streetvision.models.module import Classifier
from streetvision.training.lightning_module import EpochRow

MERGE_CHECK_IMAGES = 8


def metrics_csv(history: Sequence[EpochRow]) -> str:
    """The content of metrics.csv: a header, and one row per epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def merge_check_images(classifier: Classifier, context: Context) -> Tensor:
    """Images (B, 3, h, w) of TRAIN, whose logits must stay the same when adapters are merged."""
    limits = context.settings(LoaderConfig).limits
    rows = context.rows(Split.TRAIN)[:MERGE_CHECK_IMAGES]
    images = (read_row(context.data_root, row, limits=limits, decode_size=classifier.decode_size) for row in rows)
    return torch.stack([classifier.prepare(image) for image in images])
