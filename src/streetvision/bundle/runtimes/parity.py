"""Compare an exported bundle with its PyTorch original on labeled images, and reject one that is worse."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from streetvision.bundle.model import Logits
from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.policies import RuntimeParity
from streetvision.contracts.progress import Progress
from streetvision.eval.counts import confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.eval.thresholds import decide

if TYPE_CHECKING:
    from streetvision.bundle.predictor import Predictor

MAX_MCC_LOSS = 0.005


def compute_logits(
    predictor: "Predictor", paths: Sequence[Path], progress: Progress, *, batch_size: int = 64
) -> Logits:
    """Return the logits (N, 2) of image files, decoded and resized as in a prediction."""
    batches = predictor.stream_logits(paths, batch_size=batch_size)
    n_batches = -(-len(paths) // predictor.images_per_batch(batch_size))
    return np.concatenate(list(progress.track(batches, total=n_batches, label="parity")))


def measure_parity(reference: "Predictor", expected: Logits, actual: Logits, labels: Sequence[int]) -> RuntimeParity:
    """Compare logits of an exported bundle with those of its original, under the policy of the original.

    Args:
        reference: The PyTorch bundle.
        expected: Its logits (N, 2).
        actual: Logits (N, 2) of the exported bundle for the same images.
        labels: (N,)

    Raises:
        ArtifactError: `actual` is not finite.
    """
    if not np.isfinite(actual).all():
        raise ArtifactError("the exported graph returns logits that are not finite", "set --precision fp32")
    p_expected, p_actual = reference.probabilities(expected), reference.probabilities(actual)
    before, after = decide(p_expected, reference.threshold), decide(p_actual, reference.threshold)
    return RuntimeParity(
        n=len(labels),
        positives=sum(labels),
        max_logit_difference=float(np.abs(expected - actual).max()),
        max_probability_difference=float(np.abs(p_expected - p_actual).max()),
        decision_flips=int((before != after).sum()),
        certified_flips=int((reference.certified(expected) != reference.certified(actual)).sum()),
        pytorch_mcc=float(mcc(confusion_counts(labels, before))),
        mcc=float(mcc(confusion_counts(labels, after))),
        cpu=torch.backends.cpu.get_cpu_capability(),
    )


def check_parity(parity: RuntimeParity, *, name: str) -> None:
    """Check that an exported graph is not worse than PyTorch.

    Args:
        parity: From `measure_parity` on VAL_SELECT.
        name: Runtime and precision, for messages.

    Raises:
        ArtifactError: Its MCC is lower by more than MAX_MCC_LOSS; or the MCC of PyTorch is not above 0, so that it
            cannot show a loss, and a decision differs.
    """
    flips = f"{parity.decision_flips} of {parity.n} decisions differ"
    hint = "set a higher --precision, or use the PyTorch bundle"
    loss = parity.pytorch_mcc - parity.mcc
    if loss > MAX_MCC_LOSS:
        raise ArtifactError(
            f"{name} is rejected: its MCC on VAL_SELECT is {parity.mcc:.4f}, which is {loss:.4f} lower than PyTorch's "
            f"{parity.pytorch_mcc:.4f}; at most {MAX_MCC_LOSS} is allowed; {flips}",
            hint,
        )
    if parity.pytorch_mcc <= 0 and parity.decision_flips:
        raise ArtifactError(
            f"{name} is rejected: {flips}. All decisions must be equal, because PyTorch's MCC on VAL_SELECT is "
            f"{parity.pytorch_mcc:.4f} and cannot show a loss",
            hint,
        )
