"""The threshold that ships compared with the threshold of highest MCC, on images that neither was selected on.

    python -m benchmarks.bench_thresholds RUN [RUN ...]

RUN is a run with `data.protocol=cross_fit`. Its out-of-fold scores, after Platt's calibration, are divided into two
halves by group 100 times. Both thresholds are selected on one half and evaluated on the other. VAL_TEST is not read.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from streetvision.calibration.crossfit import CalibrationSet
from streetvision.calibration.ensemble import fit_named
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.split_contracts import Split
from streetvision.data.splitting.partition import unit_name
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.eval.counts import BoolArray, confusion_counts
from streetvision.eval.metrics import mcc
from streetvision.eval.predictions import Predictions
from streetvision.eval.stability import bagged_threshold
from streetvision.eval.thresholds import decide, threshold_for_prevalence
from streetvision.io.atomic import read_json
from streetvision.io.scores import load_scores

HALVES = 100


def main() -> None:
    """Print the mean MCC of both thresholds, and of 0.5, for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for run in parser.parse_args().runs:
        rows = _scores(ArtifactSchema(run))
        found = np.array([_on_the_other_half(rows, seed) for seed in range(HALVES)])
        highest, bagged, argmax = found.mean(axis=0)
        better = (found[:, 1] > found[:, 0]).mean()
        sys.stdout.write(
            f"{run}: {len(rows.labels)} images; highest MCC {highest:.4f}, bagged {bagged:.4f} "
            f"({bagged - highest:+.4f}, better in {better:.0%}), 0.5 {argmax:.4f}\n"
        )


def _scores(schema: ArtifactSchema) -> CalibrationSet:
    scores = load_scores(
        logits=schema.val_calib_logits, labels=schema.val_calib_labels, record=schema.val_calib_scores_json
    )
    partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
    rows = [row for row in partition.rows(Split.VAL_CALIB) if not row.train_only]
    if not scores.out_of_fold or len(rows) != len(scores.labels):
        sys.exit(f"{schema.output_dir}: the run needs data.protocol=cross_fit and scores of all folds")
    return CalibrationSet(scores.logits.numpy(), scores.labels.numpy(), [unit_name(row) for row in rows])


def _on_the_other_half(rows: CalibrationSet, seed: int) -> tuple[float, float, float]:
    """MCC at both thresholds and at 0.5, on the half that they were not selected on."""
    names, unit = np.unique(np.array(rows.groups), return_inverse=True)
    class_of_unit = np.array([rows.labels[unit == number].max() for number in range(len(names))])
    first = np.zeros(len(names), dtype=bool)
    for label in (0, 1):
        of_class = np.random.default_rng(seed).permutation(np.flatnonzero(class_of_unit == label))
        first[of_class[: len(of_class) // 2]] = True
    selected: BoolArray = first[unit]
    half, other = rows.subset(selected), rows.subset(~selected)
    calibrator = fit_named("platt", half, {})
    of_half = Predictions(half.labels, calibrator.probabilities(half.logits), half.groups)
    thresholds = (threshold_for_prevalence(of_half.labels, of_half.probabilities), bagged_threshold(of_half), 0.5)
    p = calibrator.probabilities(other.logits)
    highest, bagged, argmax = (float(mcc(confusion_counts(other.labels, decide(p, at)))) for at in thresholds)
    return highest, bagged, argmax


if __name__ == "__main__":
    main()
