"""Simulations and measurements of `streetvision monitor`: python -m benchmarks.bench_monitoring SECTION.

false_alarms  streams without a shift: how often the tests and the risk bound ever raise an alarm
rate          updates a second, from predictions in files to the state
shifts        drawn scenes that change: share detected and delay, with a two-sample KS test, and with the martingale of
              MAPIE on the same distances and margins if it is installed, at the same level
prevalence    drawn scenes with other shares of the positive class: error of the estimate, and coverage of its interval
overhead      time of predict with signals, compared with predict alone
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from benchmarks.figures import interleaved_median
from streetvision.bundle.batch.files import NamedImage, predict_images
from streetvision.bundle.format import read_bundle
from streetvision.bundle.predictor import load_bundle
from streetvision.bundle.reference import encode_components
from streetvision.monitoring import history
from streetvision.monitoring.martingale import BINS, ExchangeabilityTest, bin_values
from streetvision.monitoring.monitor import Monitor
from streetvision.monitoring.risk import log_evidence_above
from streetvision.monitoring.rows import PredictionBatch

FloatArray = NDArray[np.float64]
REFERENCE = 250
TESTS = len(history.TESTS)


def false_alarms(streams: int, images: int, alpha: float) -> None:
    """Print the share of streams without a shift that ever raise an alarm."""
    rng = np.random.default_rng(0)
    alarms = dict.fromkeys(("any test", "tracks of 30, groups", "tracks of 30, no groups", "risk"), 0)
    for stream in range(streams):
        alarms["any test"] += any(_ever(rng, images, alpha / TESTS, stream) for _ in range(TESTS))
        alarms["tracks of 30, groups"] += any(_ever(rng, images // 30, alpha / TESTS, stream) for _ in range(TESTS))
        if stream < streams // 20:
            alarms["tracks of 30, no groups"] += _ever(rng, images, alpha / TESTS, stream, repeat=30)
        errors = rng.random(images) < 0.05
        at = np.flatnonzero(errors)
        evidence = log_evidence_above(np.arange(1, len(at) + 1), at + 1, 0.05)
        alarms["risk"] += bool((evidence >= -np.log(alpha)).any())
        if (stream + 1) % 200 == 0:
            sys.stderr.write(f"{stream + 1} streams: {alarms}\n")
    for name, count in alarms.items():
        n = streams // 20 if name.endswith("no groups") else streams
        error = np.sqrt(alpha * (1 - alpha) / n)
        sys.stdout.write(f"{name}: {count / n:.4f} of {n} streams ({alpha} + 2 errors: {alpha + 2 * error:.4f})\n")


def _ever(rng: np.random.Generator, images: int, alpha: float, seed: int, *, repeat: int = 1) -> bool:
    test = ExchangeabilityTest(seed, np.bincount(bin_values(rng.normal(size=REFERENCE), -6, 6), minlength=BINS))
    test.update(bin_values(np.repeat(rng.normal(size=-(-images // repeat)), repeat)[:images], -6, 6))
    return bool(test.log_max >= -np.log(alpha))


def rate(bundle: Path, images: int) -> None:
    """Print updates a second and the size of the state, with one group an image."""
    from streetvision.monitoring.update import update_state

    running = Monitor(read_bundle(bundle))
    rng = np.random.default_rng(0)
    texts = [encode_components(row) for row in rng.normal(size=(256, len(running.reference.scale))).astype(np.float32)]
    margins = rng.normal(size=images)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "p.jsonl").open("w") as handle:
            for index, margin in enumerate(margins.tolist()):
                signals = {"margin": margin, "features": texts[index % 256], "quality": [640, 480, 0.5, 0.2, 0.1, 90]}
                row = {"image": f"{index}.jpg", "label": "None", "decision": 0, "probability": 0.3, "certified": None}
                handle.write(json.dumps({**row, "signals": signals, "group": f"g{index}"}) + "\n")
        started = time.perf_counter()
        update_state(bundle, [folder / "p.jsonl"], state=folder / "state")
        seconds = time.perf_counter() - started
        size = (folder / "state").stat().st_size
    sys.stdout.write(f"{images / seconds:,.0f} predictions a second; state {size / 1e6:.2f} MB\n")


def shifts(bundle: Path, repeats: int, alpha: float) -> None:
    """Print, for each change of the scenes, what is detected after a stream without a change."""
    from benchmarks.monitoring_scenes import CHANGES, draw_stream

    predictor = load_bundle(bundle)
    predictor.record_signals()
    before, after = 250, 350
    calm, _ = draw_stream(predictor, "none", count=800, first_seed=10**6)
    for change in CHANGES:
        changed, _ = draw_stream(predictor, change, count=500, first_seed=2 * 10**6)
        rows = {"streetvision": [], "KS": []}  # type: dict[str, list[float]]
        if find_spec("mapie") is not None:
            rows["MAPIE"] = []
        for repeat in range(repeats):
            rng = np.random.default_rng(repeat)
            stream = _join(_take(calm, rng, before), _take(changed, rng, after))
            running = Monitor(predictor.bundle, alpha, seed=repeat)
            running.add(stream)
            at = [test.alarm_at for test in running.status.tests.values() if test.alarm_at is not None]
            rows["streetvision"].append(min(at, default=10**9))
            rows["KS"].append(_ks_alarm(running, stream, alpha))
            if "MAPIE" in rows:
                rows["MAPIE"].append(_mapie_alarm(running, stream, alpha, repeat))
        cells = []
        for name, alarms in rows.items():
            early = float(np.mean([alarm <= before for alarm in alarms]))
            delays = [alarm - before for alarm in alarms if before < alarm < 10**9]
            delay = f"{np.median(delays):.0f}" if delays else "-"
            cells.append(f"{name} {len(delays) / repeats:.2f} after {delay} (early {early:.2f})")
        sys.stdout.write(f"{change}: {'; '.join(cells)}\n")
        sys.stdout.flush()


def _take(batch: PredictionBatch, rng: np.random.Generator, count: int) -> PredictionBatch:
    return _rows(batch, rng.permutation(len(batch.names))[:count])


def _rows(batch: PredictionBatch, rows: NDArray[np.intp]) -> PredictionBatch:
    arrays: dict[str, Any] = {name: getattr(batch, name)[rows] for name in ARRAYS}
    return replace(batch, names=[batch.names[row] for row in rows], groups=[None] * len(rows), **arrays)


ARRAYS = ("margins", "probabilities", "decisions", "components", "quality", "times")


def _join(first: PredictionBatch, second: PredictionBatch) -> PredictionBatch:
    arrays: dict[str, Any] = {name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in ARRAYS}
    return replace(first, names=first.names + second.names, groups=first.groups + second.groups, **arrays)


def _ks_alarm(running: Monitor, stream: PredictionBatch, alpha: float, every: int = 50) -> float:
    """A KS test of the last 200 images against the reference, each `every` images, with Bonferroni over the tests."""
    distances = running.reference.nearest(stream.components)
    stops = range(200, len(stream.names) + 1, every)
    for stop in stops:
        pairs = (
            (distances[stop - 200 : stop], running.reference.distances),
            (stream.margins[stop - 200 : stop], running.reference.margins),
        )
        if min(float(ks_2samp(*pair).pvalue) for pair in pairs) <= alpha / (2 * len(stops)):
            return stop
    return 10**9


def _mapie_alarm(running: Monitor, stream: PredictionBatch, alpha: float, seed: int) -> float:
    """The simple jumper of MAPIE on the distances and on the margins, each at half of alpha."""
    from mapie.exchangeability_testing import OnlineMartingaleTest  # type: ignore[import-not-found]

    reference, alarms = running.reference, [10**9]
    values = (
        (reference.distances, reference.nearest(stream.components)),
        (reference.margins, stream.margins),
    )
    for before, after in values:
        test = OnlineMartingaleTest(test_level=alpha / 2, random_state=seed)
        both = np.concatenate([before, after])
        for position in range(len(before), len(both)):
            test.update_simple_jumper_martingale(test.compute_p_value(both[position], both[:position]))
            if test.current_martingale_value > test.reject_threshold:
                alarms.append(position - len(before) + 1)
                break
    return min(alarms)


def prevalence(bundle: Path, repeats: int, images: int) -> None:
    """Print the error of the estimated share, and the coverage of its interval, for streams of other shares."""
    from benchmarks.monitoring_scenes import draw_stream

    predictor = load_bundle(bundle)
    predictor.record_signals()
    batch, labels = draw_stream(predictor, "none", count=2000, first_seed=10**6)
    for share in (0.1, 0.2, 0.3, 0.5):
        errors, covered = [], 0
        for repeat in range(repeats):
            rng = np.random.default_rng(repeat)
            positives = rng.binomial(images, share)
            rows = [rng.choice(np.flatnonzero(labels == k), n) for k, n in ((1, positives), (0, images - positives))]
            order = rng.permutation(np.concatenate(rows))
            running = Monitor(predictor.bundle, seed=repeat)
            running.add(_rows(batch, order))
            found = running.finish().prevalence
            assert found is not None
            assert found.estimate is not None and found.low is not None and found.high is not None
            errors.append(abs(found.estimate - share))
            covered += found.low <= share <= found.high
        sys.stdout.write(
            f"share {share}: mean error {np.mean(errors):.4f}, largest {max(errors):.4f}, "
            f"interval covers {covered / repeats:.2f}\n"
        )


def overhead(bundle: Path, folder: Path, repeats: int) -> None:
    """Print the time of predict with signals, divided by that of predict alone, on the images of a folder."""
    plain, recording = load_bundle(bundle), load_bundle(bundle)
    recording.record_signals()
    files: list[NamedImage] = [(str(path), path) for path in sorted(folder.iterdir())[:128]]
    with_signals, alone = interleaved_median(
        lambda: [json.dumps(row) for row in predict_images(recording, files)],
        lambda: [json.dumps(row) for row in predict_images(plain, files)],
        repeats=repeats,
    )
    sys.stdout.write(f"{with_signals:.3f} s with signals, {alone:.3f} s without; ratio {with_signals / alone:.4f}\n")


def main() -> None:
    """Run one section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["false_alarms", "rate", "shifts", "prevalence", "overhead"])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=Path, help="folder of images, for overhead")
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--length", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--alpha", type=float, default=0.05)
    given = parser.parse_args()
    if given.section == "false_alarms":
        false_alarms(given.streams, given.length, given.alpha)
    elif given.bundle is None:
        parser.error("--bundle is needed")
    elif given.section == "rate":
        rate(given.bundle, given.length)
    elif given.section == "shifts":
        shifts(given.bundle, given.repeats, given.alpha)
    elif given.section == "prevalence":
        prevalence(given.bundle, given.repeats, min(given.length, 2000))
    elif given.images is None:
        parser.error("--images is needed")
    else:
        overhead(given.bundle, given.images, given.repeats)


if __name__ == "__main__":
    main()
