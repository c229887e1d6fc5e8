"""Wrong labels: how many of the first 100 suspicious images have a label that was flipped.

    python -m benchmarks.bench_label_errors SETTINGS

In each seed, 5 % of the labels are flipped at random. `streetvision` ranks by the queue `suspicious` of
`streetvision label`. If cleanlab is installed, it ranks the same images as its tutorial does: probabilities by
scikit-learn's cross_val_predict, which ignores groups, and find_label_issues by self-confidence.
"""

import importlib.util
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from benchmarks.bench_labeling import parse_arguments, scan_features
from streetvision.data.splitting.partition import unit_name
from streetvision.labeling.queue import label_suspicion
from streetvision.labeling.strategies import FloatArray

SHARE, FIRST = 0.05, 100


def main() -> None:
    """Print precision and recall of each ranking."""
    given = parse_arguments(__doc__)
    with TemporaryDirectory() as name:
        index, features = scan_features(given.settings, Path(name))
    labels, groups = np.array([row.label for row in index.rows]), [unit_name(row) for row in index.rows]
    found: dict[str, list[int]] = {}
    n_flipped = round(SHARE * len(labels))
    for seed in range(given.seeds):
        flipped = np.random.default_rng(seed).permutation(len(labels))[:n_flipped]
        noisy = labels.copy()
        noisy[flipped] = 1 - noisy[flipped]
        rankings = {"streetvision": np.argsort(-label_suspicion(features, noisy, groups), kind="stable")}
        if importlib.util.find_spec("cleanlab") is not None:
            rankings["cleanlab"] = _cleanlab(features, noisy, seed)
        for tool, order in rankings.items():
            found.setdefault(tool, []).append(int(np.isin(order[:FIRST], flipped).sum()))
    sys.stdout.write(f"{len(labels)} images, {n_flipped} labels flipped\n")
    for tool, hits in found.items():
        mean = np.mean(hits)
        sys.stdout.write(f"{tool}: precision {mean / FIRST:.3f}, recall {mean / n_flipped:.3f}; by seed {hits}\n")


def _cleanlab(features: FloatArray, labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    from cleanlab.filter import find_label_issues  # type: ignore[import-not-found]

    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = LogisticRegression(max_iter=1000)
    probabilities = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    issues: NDArray[np.int64] = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence")
    return issues


if __name__ == "__main__":
    main()
