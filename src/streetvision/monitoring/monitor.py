"""The monitor of a bundle: tests of exchangeability, prevalence and risk of a stream of predictions."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streetvision.bundle.format import Bundle, read_bundle_reference
from streetvision.bundle.monitor_status import MonitorStatus, RiskStatus, TestName, TestStatus, read_status
from streetvision.bundle.reference import Reference
from streetvision.calibration.calibrators import restore_calibrator
from streetvision.contracts.errors import ConfigError
from streetvision.contracts.policies import EstimateWithInterval, RiskControl, ScrcPolicy
from streetvision.eval.predictions import Predictions
from streetvision.eval.stability import bagged_threshold
from streetvision.monitoring.history import TESTS
from streetvision.monitoring.martingale import BINS, bin_values
from streetvision.monitoring.prevalence import estimate_prevalence, logit_bins
from streetvision.monitoring.risk import risk_bounds
from streetvision.monitoring.rows import PredictionBatch, group_hashes
from streetvision.monitoring.state import MAX_EXAMPLES, SEEDS, MonitorState, read_state

ALPHA = 0.01
MARGIN_LIMIT = 30.0
"""Margins beyond it are not distinguished."""
LOG_DISTANCE = -5.0, 7.0
"""Range of the natural logarithm of distances."""
MAX_NAME = 1000
"""Characters of a name in the state."""
LN10 = np.log(10)


@dataclass
class Monitor:
    """A bundle's monitor, which knows its reference and its policy.

    Args:
        bundle: The bundle.
        alpha: Probability that the tests ever raise a false alarm, and the same for the risk.
        seed: Seed for ties; None: a random one.
    """

    bundle: Bundle
    alpha: float = ALPHA
    seed: int | None = None
    reference: Reference = field(init=False)
    state: MonitorState = field(init=False)
    status: MonitorStatus = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha {self.alpha} must be between 0 and 1", "0.01 is usual")
        if self.seed is not None and not 0 <= self.seed < SEEDS:
            raise ConfigError(f"seed {self.seed} must be between 0 and {SEEDS - 1}", "leave it out for a random one")
        self.reference = read_bundle_reference(self.bundle)
        self.state = self.new_state()
        tests = {
            name: TestStatus(
                reference=int(self.state.tests[name].counts.sum()), log10_martingale=0.0, log10_maximum=0.0
            )
            for name in self.test_names
        }
        control = self.risk_control
        self.status = MonitorStatus(
            bundle=self.bundle.manifest.digest,
            alpha=self.alpha,
            images=0,
            units=0,
            without_group=0,
            failures=0,
            tests=tests,
            risk=RiskStatus(
                kind="error" if control is None else control.kind,
                limit=control.alpha if control is not None and control.certified else None,
                labels=0,
                errors=0,
                lower=0.0,
                upper=1.0,
            ),
        )

    @property
    def test_names(self) -> list[TestName]:
        """The tests; without points in the reference there is no test of the images and their quality."""
        return list(TESTS) if len(self.reference.points) else ["scores"]

    @property
    def risk_control(self) -> RiskControl | None:
        """The certificate of the bundle."""
        policy = self.bundle.manifest.policy
        return policy.scrc_params.risk_control if isinstance(policy, ScrcPolicy) else None

    def new_state(self) -> MonitorState:
        """Return the state before the first image. A reference that is not exact does not enter the ranks."""
        reference, header = self.reference, self.reference.header
        counts = {}
        if len(reference.points):
            counts["images"] = np.bincount(_distance_bins(reference.distances), minlength=BINS) * header.exact_features
            # No model is involved.
            counts["quality"] = np.bincount(_distance_bins(reference.quality_distances), minlength=BINS)
        counts["scores"] = np.bincount(_margin_bins(reference.margins), minlength=BINS) * header.exact_scores
        return MonitorState.new(counts, len(self.reference.scale), self.seed)

    def load(self, path: Path) -> None:
        """Continue from a state file.

        Raises:
            ArtifactError: The file is damaged, or belongs to another bundle.
            ConfigError: It has another alpha.
        """
        # The status first: the arrays of another bundle would be reported as damaged.
        status = read_status(path, bundle=self.bundle.manifest.digest)
        if status.alpha != self.alpha:
            raise ConfigError(
                f"the monitoring state {str(path)!r} has alpha {status.alpha:g}, not {self.alpha:g}",
                f"use --alpha {status.alpha:g}, or another --state file",
            )
        self.state, self.status = read_state(path, self.new_state()), status

    def add(self, batch: PredictionBatch) -> None:
        """Add predictions in their order; of each group, the first image counts."""
        grouped = np.array([group is not None for group in batch.groups], dtype=np.bool_)
        counts = ~grouped
        counts[grouped] = self.state.count_groups(group_hashes([group for group in batch.groups if group is not None]))
        units = np.flatnonzero(counts)
        updates = {
            "images": len(batch.names) + batch.failures,
            "units": len(units),
            "without_group": int((~grouped).sum()),
            "failures": batch.failures,
        }
        totals = {name: getattr(self.status, name) + more for name, more in updates.items()}
        tests = self._test(batch, units) if len(units) else self.status.tests
        self.status = self.status.model_copy(update={**totals, "tests": tests})

    def _test(self, batch: PredictionBatch, units: NDArray[np.intp]) -> dict[TestName, TestStatus]:
        components, times = batch.components[units], batch.times[units]
        bins: dict[TestName, NDArray[np.int64]] = {"scores": _margin_bins(batch.margins[units])}
        if len(self.reference.points):
            distances = self.reference.nearest(components)
            bins["images"] = _distance_bins(distances)
            bins["quality"] = _distance_bins(self.reference.nearest_quality(batch.quality[units]))
            farthest = np.argsort(-distances)[:MAX_EXAMPLES]
            named = [(float(distances[i]), _printable(batch.names[units[i]])) for i in farthest]
            self.state.examples = sorted({*self.state.examples, *named}, reverse=True)[:MAX_EXAMPLES]
        limit, paths = np.log(len(self.test_names) / self.alpha), []
        tests: dict[TestName, TestStatus] = {}
        for name in TESTS:
            if name not in bins:
                paths.append(np.zeros(len(units)))
                continue
            test, before = self.state.tests[name], self.status.tests[name]
            first = test.steps + 1
            path = test.update(bins[name])
            found: dict[str, object] = {
                "log10_martingale": test.log_value / LN10,
                "log10_maximum": test.log_max / LN10,
            }
            if before.alarm_at is None and (path >= limit).any():
                position = int(np.argmax(path >= limit))
                time = float(times[position])
                found |= {"alarm_at": first + position, "alarm_time": None if np.isnan(time) else time}
            tests[name] = before.model_copy(update=found)
            paths.append(path)
        self.state.history.add(
            logit_bins(batch.probabilities[units]),
            batch.quality[units],
            components,
            np.stack(paths, axis=1),
            times,
        )
        return tests

    def has_label(self, name: str) -> bool:
        """Return whether the label of an image was counted."""
        return _hash(f"i{name}") in self.state.seen_labels

    def add_label(self, name: str, group: str | None, label: int, margin: float, decision: int) -> None:
        """Add the label of a predicted image; an image or a group counts once.

        It counts if it can be an error of the kind that the bundle certifies: for fnr, a positive that is not
        abstained.
        """
        seen = [_hash(f"i{name}"), *([] if group is None else [_hash(f"g{group}")])]
        if not self.state.seen_labels.isdisjoint(seen):
            self.state.seen_labels.update(seen)
            return
        self.state.seen_labels.add(seen[0])
        control, kind = self.risk_control, self.status.risk.kind
        prediction: int | None = decision
        if control is not None and control.lo is not None and control.hi is not None:
            # Computed again, because the prediction has no certified class after the certificate is withdrawn.
            prediction = 1 if margin >= control.hi else 0 if margin < control.lo else None
        if prediction is None or (kind == "fnr" and label == 0) or (kind == "fpr" and label == 1):
            return
        self.state.seen_labels.update(seen)
        self.state.labels += 1
        self.state.errors += prediction != label
        # The bounds are taken after each label, because a bound that was once passed stays passed.
        risk = self.status.risk
        lower, upper = risk_bounds(self.state.errors, self.state.labels, self.alpha)
        risk = risk.model_copy(
            update={"labels": self.state.labels, "errors": self.state.errors, "lower": lower, "upper": upper}
        )
        withdrawn = self.status.withdrawn
        if withdrawn is None and risk.limit is not None and lower > risk.limit:
            withdrawn = (
                f"{kind} is above {risk.limit:g}: {self.state.errors} errors in {self.state.labels} labelled images, "
                f"lower bound {lower:.3f} at confidence {1 - self.alpha:g}"
            )
        self.status = self.status.model_copy(update={"risk": risk, "withdrawn": withdrawn})

    def finish(self) -> MonitorStatus:
        """Estimate the prevalence and return the status."""
        history = self.state.history
        margins, labels = self.reference.margins, self.reference.labels
        policy = self.bundle.manifest.policy
        logits = np.stack([np.zeros_like(margins), margins], axis=1)
        if isinstance(policy, ScrcPolicy):
            probabilities = restore_calibrator(policy.scrc_params.calibrator).probabilities(logits)
        else:
            raise AssertionError("only bundles with a policy scrc have a reference")
        bins = logit_bins(probabilities)
        everything = slice(0, len(history.count))
        found: dict[str, object] = {}
        for name, part in (("prevalence", everything), ("recent_prevalence", history.recent())):
            estimate = estimate_prevalence(history.probability[part].sum(axis=0).astype(np.int64), bins, labels)
            found[name] = None
            if estimate is not None:
                found[name] = EstimateWithInterval(estimate=estimate.estimate, low=estimate.low, high=estimate.high)
                share = float(np.clip(estimate.estimate, 1e-3, 1 - 1e-3))
                found["suited_threshold"] = bagged_threshold(Predictions(labels, probabilities), share)
        self.status = self.status.model_copy(update=found)
        return self.status


def _margin_bins(margins: NDArray[np.float64]) -> NDArray[np.int64]:
    return bin_values(margins, -MARGIN_LIMIT, MARGIN_LIMIT)


def _distance_bins(distances: NDArray[np.float64]) -> NDArray[np.int64]:
    return bin_values(np.log(np.maximum(distances, 1e-3)), *LOG_DISTANCE)


def _printable(name: str) -> str:
    """A name that JSON can hold; a path may have bytes that are not UTF-8."""
    return name[:MAX_NAME].encode(errors="backslashreplace").decode()


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
