"""Whether an exported graph answers as the model that was calibrated: measured on labelled images, and the gate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import RuntimeParity
from streetvision.contracts.progress import Progress
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.eval.thresholds import decide
from streetvision.models.fused import images_per_batch

if TYPE_CHECKING:
    from streetvision.bundle.predictor import Predictor

MAX_MCC_FALL = 0.005
BATCH = 64


def measure_parity(reference: "Predictor", expected: Tensor, found: Tensor, labels: Sequence[int]) -> RuntimeParity:
    """Compare the logits (N, 2) of the reference with those `found` by another runtime, of images with labels (N,).

    Raises ArtifactError when those found are not finite.
    """
    if not torch.isfinite(found).all():
        raise ArtifactError("the exported graph gives logits that are not finite", "take --precision fp32")
    p, q = reference.probabilities(expected), reference.probabilities(found)
    before, after = decide(p, reference.threshold), decide(q, reference.threshold)
    return RuntimeParity(
        n=len(labels),
        positives=sum(labels),
        max_logit_difference=float((expected - found).abs().max()),
        max_probability_difference=float(np.abs(p - q).max()),
        decision_flips=int((before != after).sum()),
        certified_flips=int((reference.certified(expected) != reference.certified(found)).sum()),
        pytorch_mcc=float(mcc(confusion_counts(labels, before))),
        mcc=float(mcc(confusion_counts(labels, after))),
        cpu=torch.backends.cpu.get_cpu_capability(),
    )


def check_parity(parity: RuntimeParity, *, name: str) -> None:
    """The gate: raise ArtifactError when the graph called `name` is worse than PyTorch by more than MAX_MCC_FALL.

    Where PyTorch's own MCC is not above 0 it shows no fall, and then no decision may differ.
    """
    differ = f"{parity.decision_flips} of {parity.n} decisions differ"
    hint = "take a finer --precision, or the bundle as it is, which runs in PyTorch"
    fall = parity.pytorch_mcc - parity.mcc
    if fall > MAX_MCC_FALL:
        raise ArtifactError(
            f"{name} is refused: on VAL_SELECT its MCC is {parity.mcc:.4f} and PyTorch's {parity.pytorch_mcc:.4f}, a "
            f"fall of {fall:.4f}, and {MAX_MCC_FALL} is let through; {differ}",
            hint,
        )
    if parity.pytorch_mcc <= 0 and parity.decision_flips:
        raise ArtifactError(
            f"{name} is refused: {differ}, and with an MCC of {parity.pytorch_mcc:.4f} on VAL_SELECT in PyTorch nobody "
            "can see whether that is a fall",
            hint,
        )


def ask(predictor: "Predictor", paths: Sequence[Path], progress: Progress) -> Tensor:
    """The predictor's logits (N, 2) for the images."""
    batches = predictor.stream_logits(paths, batch_size=BATCH)
    total = -(-len(paths) // images_per_batch(predictor.model, BATCH))
    return torch.cat(list(progress.track(batches, total=total, label="parity")))
