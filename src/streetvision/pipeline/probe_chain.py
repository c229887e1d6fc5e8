"""Phases 1, 2 and 5 on features of a frozen backbone, in memory: what cross-validation repeats many times."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from streetvision.calibration.base import FittedCalibrator
from streetvision.calibration.crossfit import CalibrationSet
from streetvision.calibration.selection import select_calibrator
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Partition, Split
from streetvision.eval.counts import BoolArray, FloatArray
from streetvision.eval.metrics import positive_probability
from streetvision.eval.predictions import Predictions
from streetvision.eval.stability import bagged_threshold
from streetvision.eval.thresholds import decide, select_threshold_max_mcc
from streetvision.models.losses import class_weights
from streetvision.pipeline.calibration_folds import with_possible_folds
from streetvision.pipeline.probe_head import FeatureReader, two_logits
from streetvision.pipeline.settings import RunConfig
from streetvision.training.probe import FeatureBank, LinearProbe, fit_probe


@dataclass(frozen=True)
class ProbeChain:
    """A linear head with its calibration and its threshold."""

    probe: LinearProbe
    calibrator: FittedCalibrator | None
    """None for phase6.policy=threshold, which uses the softmax."""
    threshold: float

    def predict(self, bank: FeatureBank) -> tuple[FloatArray, BoolArray]:
        """Return the probabilities of class 1 (N,), and whether class 1 is predicted (N,)."""
        margins = bank.read(self.probe.chosen.representation) @ self.probe.weight + self.probe.bias
        logits = two_logits(margins).numpy()
        p = positive_probability(logits) if self.calibrator is None else self.calibrator.probabilities(logits)
        return p, decide(p, self.threshold)


def fit_probe_chain(
    features: NDArray[np.float32], reader: FeatureReader, partition: Partition, config: RunConfig
) -> ProbeChain:
    """Fit head, calibrator and threshold as the phases do, on the splits or the folds of `partition`.

    Args:
        features: (N, P) of the rows of the partition, which `reader` describes.
        reader: How the features were made, and the choices of the probe.
        partition: The splits or the folds.
        config: The settings of the phases.
    """
    rows, roles = partition.index.rows, np.array(partition.roles)
    labels = np.array([row.label for row in rows])
    groups = [row.group for row in rows]
    train = np.flatnonzero(roles == Split.TRAIN)
    folds = None if partition.folds is None else np.array(partition.folds)[train]
    probe = fit_probe(
        FeatureBank(features[train], reader.pooling, reader.layers),
        labels[train],
        [rows[position].group or rows[position].sha256 for position in train],
        representations=reader.representations,
        class_weights=lambda of_rows: class_weights(config.training.loss, of_rows.tolist()),
        seed=config.training.seed,
        progress=Silent(),
        folds=folds,
    )
    if probe.out_of_fold is not None:
        scored, margins = train, probe.out_of_fold
    else:
        scored = np.flatnonzero(roles == Split.VAL_CALIB)
        bank = FeatureBank(features[scored], reader.pooling, reader.layers)
        margins = bank.read(probe.chosen.representation) @ probe.weight + probe.bias
    logits = two_logits(margins)
    if config.phase6.policy == "threshold":
        threshold, _, _ = select_threshold_max_mcc(
            logits, torch.from_numpy(labels[scored]), config.phase2.n_thresholds, return_curve=True
        )
        return ProbeChain(probe, None, threshold)
    calibration = CalibrationSet(logits.numpy(), labels[scored], [groups[position] for position in scored])
    settings = with_possible_folds(config.phase5, calibration, Silent())
    calibrator = select_calibrator(calibration, settings).calibrator
    predictions = Predictions(calibration.labels, calibrator.probabilities(calibration.logits), calibration.groups)
    return ProbeChain(probe, calibrator, bagged_threshold(predictions, seed=config.phase5.seed))
