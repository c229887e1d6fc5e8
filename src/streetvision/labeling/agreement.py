"""Agreement of the people who labeled the same images."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from sklearn.metrics import cohen_kappa_score

from streetvision.data.labels.decisions import valid_events
from streetvision.data.labels.store import LabelEvent


@dataclass(frozen=True)
class Agreement:
    """How far two people agree on the images that both have labeled."""

    labelers: tuple[str, str]
    images: int
    agreed: int
    kappa: float | None
    """Cohen's kappa; None if both gave one class only, so that chance agreement is total."""


def agreements(events: Iterable[LabelEvent]) -> list[Agreement]:
    """Return the agreement of each two people with common images.

    References:
        Cohen, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 20 (1960).
    """
    labels: dict[str, dict[str, int]] = defaultdict(dict)
    for (sha256, labeler), event in valid_events(events).items():
        if event.label is not None:
            labels[labeler][sha256] = event.label
    found = []
    for first, second in combinations(sorted(labels), 2):
        common = sorted(labels[first].keys() & labels[second].keys())
        if common:
            a, b = (np.array([labels[name][sha256] for sha256 in common]) for name in (first, second))
            kappa = float(cohen_kappa_score(a, b)) if len({*a.tolist(), *b.tolist()}) == 2 else None
            found.append(Agreement((first, second), len(common), int((a == b).sum()), kappa))
    return found
