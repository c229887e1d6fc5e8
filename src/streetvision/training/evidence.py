"""Evidence of tiles or patches, fitted to labels of whole images (multiple-instance learning).

The fused log-odds are those of the single view plus the evidence of the instances (tiles or patches), pooled as a class
in EVIDENCE does. Only the evidence is fitted, in principal components of the features. The loss is that of fused
log-odds after Platt's calibration of the single view, because the shipped scores are calibrated later.

Shapes: N images, T instances, P width of an instance's features, R principal components.

References:
    Log-sum-exp pooling of instances: Ramon and De Raedt 2000, Multi Instance Neural Networks, section 3. Base margins
    from cross-validation: Wolpert 1992, Stacked Generalization, Neural Networks 5, pages 241 to 259. Calibration: Platt
    1999; Lin, Lin and Weng 2007, https://doi.org/10.1007/s10994-007-5018-6.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.utils.extmath import randomized_svd
from torch import Tensor
from torch.nn.functional import layer_norm, softplus
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from streetvision.contracts.progress import Progress
from streetvision.models.config import AnyEvidencePoolingConfig
from streetvision.models.evidence import EVIDENCE, EvidenceFusion
from streetvision.models.network import seeded
from streetvision.training.callbacks import State, cpu_state_dict
from streetvision.training.probe import grouped_folds

FloatArray = NDArray[np.float64]
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""L2 penalties of the calibrated score that are tried, from the strongest; features are standardized and the loss is
the mean NLL."""
WORSE_PENALTIES = 2
"""Penalties in a row with a higher NLL than the best before, after which no weaker one is tried."""
COMPONENTS = 128
"""Principal components in which the evidence is fitted, which is faster than with all of the features."""
ROWS_FOR_COMPONENTS = 2000
"""Instances, drawn at random, from which the components are computed."""
CHUNK = 64
"""Images whose features are projected at a time."""
SEARCH_ITERATIONS, FINAL_ITERATIONS = 50, 300
EPSILON = 1e-6
MIN_CALIBRATED_DEVIATION = 0.1
"""Least standard deviation, in nats, of the calibrated margins of the single view. It keeps the slope positive where
the single view does not separate the classes."""


@dataclass(frozen=True)
class FittedEvidence:
    """A fitted evidence term."""

    state: State
    """State dict of the class in EVIDENCE for features of width P."""
    penalty: float
    """The penalty with the lowest NLL."""
    path: tuple[float, ...]
    """Calibrated NLL at each of the first of PENALTIES, each row predicted by a fit without its group."""
    base_nll: float
    """NLL of the single view on the same rows, by the same calibrations."""


class Calibration(NamedTuple):
    """Platt's calibration of margins: slope * margin + offset."""

    slope: float
    """Positive."""
    offset: float


def fit_evidence(
    features: Tensor,
    mask: Tensor,
    labels: NDArray[np.int64],
    base: FloatArray,
    groups: Sequence[object],
    *,
    pooling: AnyEvidencePoolingConfig,
    seed: int,
    progress: Progress,
) -> FittedEvidence:
    """Choose the penalty by grouped cross-validation, and fit the evidence.

    Args:
        features: (N, T, P).
        mask: (N, T), False for instances that do not count. An image without any is predicted by its base margin.
        labels: (N,).
        base: (N,) log-odds of the single view, each by a fit without the group of the row.
        groups: Group of each row (N,).
        pooling: How the evidence is pooled.
        seed: Seed of the folds, of the instances from which the components are computed, and of initial weights.
        progress: Shows a progress bar.

    Raises:
        DataError: A class has one group only.
    """
    directions, mean = _components(features, mask, seed=seed)
    chunks = torch.split(features, CHUNK)
    inputs = torch.cat([_normalised(chunk) @ directions for chunk in chunks]) - mean @ directions  # (N, T, R)
    data = inputs, mask, torch.from_numpy(labels), torch.from_numpy(base)

    def untrained() -> EvidenceFusion:
        with seeded(seed):
            return EVIDENCE[pooling.name](pooling, mask.shape[1], inputs.shape[2])

    folds = torch.from_numpy(grouped_folds(labels, groups, seed=seed))
    tests = [folds == fold for fold in range(int(folds.max()) + 1)]
    calibrations = [_platt(base[~test.numpy()], labels[~test.numpy()]) for test in tests]
    modules = [untrained() for _ in tests]
    path: list[float] = []
    for penalty in progress.track(PENALTIES, total=len(PENALTIES), label="evidence"):
        margins = torch.empty(len(labels), dtype=torch.float64)
        for fold, (test, calibration) in enumerate(zip(tests, calibrations, strict=True)):
            if not modules[fold].warm_start:
                modules[fold] = untrained()
            train = (part[~test] for part in data)
            _solve(modules[fold], *train, calibration=calibration, penalty=penalty, iterations=SEARCH_ITERATIONS)
            with torch.no_grad():
                fused = data[3][test] + modules[fold].pool(inputs[test], mask[test]).margin
            margins[test] = calibration.slope * fused + calibration.offset
        path.append(_nll(margins, data[2]).item())
        if len(path) - 1 - int(np.argmin(path)) == WORSE_PENALTIES:
            break
    penalty = PENALTIES[int(np.argmin(path))]
    final = untrained()
    _solve(final, *data, calibration=_platt(base, labels), penalty=penalty, iterations=FINAL_ITERATIONS)
    for test, calibration in zip(tests, calibrations, strict=True):
        margins[test] = calibration.slope * data[3][test] + calibration.offset
    state = cpu_state_dict(final)
    state["weight"] = state["weight"] @ directions.T
    state["bias"] = state["bias"] - state["weight"] @ mean
    return FittedEvidence(state, penalty, tuple(path), _nll(margins, data[2]).item())


def _components(features: Tensor, mask: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Directions (P, R) of standardized features and their mean (P,), from instances drawn at random."""
    positions = mask.nonzero()
    drawn = np.random.default_rng(seed).permutation(len(positions))[:ROWS_FOR_COMPONENTS]
    sample = _normalised(features[tuple(positions[drawn].T)])
    mean, scale = sample.mean(dim=0), sample.std(dim=0, correction=0) + EPSILON
    standardised = ((sample - mean) / scale).numpy()
    components = randomized_svd(standardised, min(COMPONENTS, *standardised.shape), random_state=seed)[2].T  # (P, R)
    return torch.from_numpy(np.ascontiguousarray(components)) / scale[:, None], mean


def _normalised(features: Tensor) -> Tensor:
    """A LayerNorm without parameters, as EvidenceFusion has it."""
    return layer_norm(features.float(), features.shape[-1:])


def _platt(margins: FloatArray, labels: NDArray[np.int64]) -> Calibration:
    """Fit Platt's calibration with a positive slope to margins (N,), with his smoothed targets."""
    positives, mean, deviation = int(labels.sum()), margins.mean(), margins.std() + EPSILON
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    x = np.column_stack([(margins - mean) / deviation, np.ones(len(labels))])

    def loss_and_gradient(solution: FloatArray) -> tuple[float, FloatArray]:
        z = x @ solution
        return float((np.logaddexp(0, z) - targets * z).mean()), x.T @ (expit(z) - targets) / len(labels)

    bounds = [(MIN_CALIBRATED_DEVIATION, None), (None, None)]
    slope, offset = minimize(loss_and_gradient, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds).x
    return Calibration(float(slope / deviation), float(offset - slope * mean / deviation))


def _solve(
    module: EvidenceFusion,
    inputs: Tensor,
    mask: Tensor,
    labels: Tensor,
    base: Tensor,
    *,
    calibration: Calibration,
    penalty: float,
    iterations: int,
) -> None:
    """Fit `module` to the lowest penalized loss, from its present weights."""
    parameters, (slope, offset) = list(module.parameters()), calibration

    def loss_and_gradient(solution: FloatArray) -> tuple[float, FloatArray]:
        vector_to_parameters(torch.from_numpy(solution).float(), parameters)
        margins = slope * (base + module.pool(inputs, mask).margin) + offset
        loss = _nll(margins, labels) + penalty * (slope * module.weight[0]).square().sum() + module.weight_penalty()
        gradient = parameters_to_vector(torch.autograd.grad(loss, parameters))
        return loss.item(), gradient.double().numpy()

    start = parameters_to_vector(parameters).detach().double().numpy()
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "gtol": 1e-5 * slope}
    solution = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    vector_to_parameters(torch.from_numpy(solution).float(), parameters)


def _nll(margins: Tensor, labels: Tensor) -> Tensor:
    return softplus(torch.where(labels == 1, -margins, margins)).mean()
