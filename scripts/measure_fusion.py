"""Fusions of views on small objects, over several splits: MCC as shipped, the gate's decisions, and CPU time.

    streetvision data scenes small/ scenes.count=600 scenes.first_seed=200000 scenes.width=1280 scenes.height=720 \
        'scenes.area_fraction=[0.002,0.02]'
    OMP_NUM_THREADS=1 python scripts/measure_fusion.py small/ [KEY=VALUE of model]

Each split has half of the images in TRAIN, 15 % each in VAL_SELECT (gate) and VAL_CALIB (threshold), and 20 % in
VAL_TEST. The backbone is frozen. The features of all views are computed once, with the package's own code, and kept in
small/fusion_cache. "Shuffled" fuses the tiles of other images, which the gate must reject.
"""

import csv
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from streetvision.calibration.crossfit import CalibrationSet, crossfit
from streetvision.calibration.parametric import PlattCalibrator
from streetvision.contracts.progress import Silent
from streetvision.contracts.split_contracts import Row
from streetvision.data.config import LoaderConfig
from streetvision.eval.counts import confusion_counts
from streetvision.eval.gate import compare_nll
from streetvision.eval.intervals import corrected_t_interval
from streetvision.eval.metrics import mcc, positive_probability
from streetvision.eval.predictions import Predictions
from streetvision.eval.stability import bagged_threshold
from streetvision.eval.thresholds import decide
from streetvision.io.atomic import sha256_file
from streetvision.models.config import (
    AnyEvidencePoolingConfig,
    GatedAttentionConfig,
    LseConfig,
    ModelConfig,
    TopKConfig,
)
from streetvision.models.fused import FusedClassifier
from streetvision.models.module import Classifier, load_classifier
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.gates import Compared, decide_cheapest
from streetvision.pipeline.input_size import input_size
from streetvision.pipeline.probe_head import set_head
from streetvision.pipeline.steps.train_cvfm import dense_size
from streetvision.training.config import CvfmTrainedConfig, DenseConfig, FusionSettings, MilConfig
from streetvision.training.evidence import fit_evidence
from streetvision.training.features import ViewCache, ViewFeatures
from streetvision.training.fusion import fit_fusion, fused_logits
from streetvision.training.probe import FeatureBank, Representation, fit_probe, grouped_folds

SEEDS = 5
AUTO = ("dense, ratio 4", "mil, lse")
"""The arms that phase4c.mode=auto compares, the cheapest first."""
SHARES = (0.5, 0.15, 0.15)
READ = Representation("cls_mean", 6)
POOLINGS: tuple[AnyEvidencePoolingConfig, ...] = (LseConfig(), TopKConfig(), GatedAttentionConfig())
ARMS: dict[str, FusionSettings] = {
    **{f"mil, {pooling.name}": MilConfig(pooling=pooling) for pooling in POOLINGS},
    "mil, shuffled": MilConfig(),
    **{f"dense, ratio {ratio:g}": DenseConfig(dense_ratio=ratio) for ratio in (4.0, 6.0)},
    "cvfm_trained": CvfmTrainedConfig(),
}


def read_rows(root: Path) -> tuple[Row, ...]:
    """The images of a folder of scenes, all of the same size."""
    config = compose_config(["scenes.width=1280", "scenes.height=720"]).scenes
    with (root / "index.csv").open() as lines:
        index = list(csv.DictReader(lines))
    return tuple(
        Row(line["path"], int(line["label"]), sha256_file(root / line["path"]), config.width, config.height, 0.5)
        for line in index
    )


def fit(settings: FusionSettings, model: FusedClassifier, train: ViewFeatures, select: ViewFeatures, seed: int) -> None:
    """Fit head and fusion of `model` as phases 1 and 4c do; each image is its own group."""
    features, labels, groups = train.features[:, 0].numpy(), train.labels.numpy(), range(len(train.labels))
    folds = grouped_folds(labels, groups, seed=seed)
    probe = fit_probe(
        FeatureBank(features, READ.pooling, READ.layers),
        labels,
        groups,
        representations=[READ],
        class_weights=lambda _: (1.0, 1.0),
        seed=seed,
        progress=Silent(),
        folds=folds,
    )
    assert probe.out_of_fold is not None
    assert isinstance(model.classifier, Classifier)
    set_head(model.classifier, probe.weight, probe.bias)
    if isinstance(settings, CvfmTrainedConfig):
        fit_fusion(model, train, select, config=settings, progress=Silent())
        return
    assert model.description.pooling is not None
    fitted = fit_evidence(
        *model.instances(train.embedded),
        labels,
        probe.out_of_fold,
        groups,
        pooling=model.description.pooling,
        seed=seed,
        progress=Silent(),
    )
    model.fusion.load_state_dict(fitted.state)


def calibrated(logits: torch.Tensor, labels: torch.Tensor) -> Predictions:
    """Cross-fitted probabilities, as the gate compares them."""
    data = CalibrationSet(logits.numpy(), labels.numpy(), list(map(str, range(len(labels)))))
    p = crossfit(lambda part: PlattCalibrator().fit(part.logits, part.labels), data, folds=5, seed=0)
    return Predictions(labels.numpy(), p, data.groups)


def test_mcc(logits: torch.Tensor, labels: torch.Tensor, calib: torch.Tensor, test: torch.Tensor) -> float:
    """MCC on VAL_TEST at the threshold of VAL_CALIB."""
    p = positive_probability(logits.numpy())
    threshold = bagged_threshold(Predictions(labels[calib].numpy(), p[calib]))
    return float(mcc(confusion_counts(labels[test].numpy(), decide(p[test], threshold))))


def report(
    name: str, results: list[tuple[float, float, bool]], of_mil: list[tuple[float, float, bool]], costs: str
) -> None:
    """Print the MCC of an arm, and its differences to the single view and to mil with their intervals."""
    shipped, alone = np.mean([result[:2] for result in results], axis=0)
    texts = []
    for differences in ([a - b for a, b, _ in results], [a[0] - b[0] for a, b in zip(results, of_mil, strict=True)]):
        interval = corrected_t_interval(differences, tested=0.25, level=0.95)
        texts.append(f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]")
    print(
        f"{name}: MCC {shipped:.3f}, single view {alone:.3f}, difference {texts[0]}, to mil {texts[1]}; accepted "
        f"{sum(result[2] for result in results)} of {SEEDS}; {costs}",
        [round(result[0], 3) for result in results],
        flush=True,
    )


def main() -> None:
    """Measure, and print a table."""
    root, changes = Path(sys.argv[1]), sys.argv[2:]
    model_config = compose_config([*changes, f"model.pooling={READ.pooling}", f"model.layers={READ.layers}"]).model
    rows = read_rows(root)
    classifier = load_classifier(ModelConfig.model_validate(model_config), input_size(model_config, rows)).eval()
    results: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in ARMS}
    predictions: dict[str, list[Predictions]] = {name: [] for name in ARMS}
    singles: list[Predictions] = []
    for name, settings in ARMS.items():
        model = FusedClassifier(classifier, settings.description(dense_size(classifier, rows)))
        cache = ViewCache(root / "fusion_cache", model, loader=LoaderConfig(num_workers=0), progress=Silent())
        started = time.process_time()
        views = cache.features(rows, root=root, name=name)
        seconds = time.process_time() - started
        if name == "mil, shuffled":
            order = torch.from_numpy(np.random.default_rng(0).permutation(len(rows)))
            views = views._replace(features=torch.cat([views.features[:, :1], views.features[order, 1:]], dim=1))
        for seed in range(SEEDS):
            order = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows)))
            parts = torch.split(order, [round(share * len(rows)) for share in (*SHARES, 1 - sum(SHARES))])
            train, select, calib, test = parts
            torch.manual_seed(seed)
            model = FusedClassifier(classifier, model.description)
            started = time.process_time()
            fit(settings, model, views.select(train), views.select(select), seed)
            fit_seconds = time.process_time() - started
            fused = fused_logits(model, views)
            with torch.no_grad():
                single = classifier.head(views.features[:, 0])
            started = time.process_time()
            candidate, baseline = (calibrated(x[select], views.labels[select]) for x in (fused, single))
            gate = compare_nll(candidate, baseline)
            gate_seconds = time.process_time() - started
            shipped = fused if gate.accepted else single
            mccs = [test_mcc(logits, views.labels, calib, test) for logits in (shipped, single)]
            results[name].append((mccs[0], mccs[1], gate.accepted))
            predictions[name].append(candidate)
            if name == "mil, lse":
                singles.append(baseline)
        costs = f"{1000 * seconds / len(rows):.0f} ms of CPU an image" if seconds > 1 else "views in the cache"
        report(name, results[name], results["mil, lse"], f"{costs}, fit {fit_seconds:.1f} s, gate {gate_seconds:.2f} s")
    taken = []
    for seed in range(SEEDS):
        compared = Compared(AUTO, tuple(predictions[name][seed] for name in AUTO), singles[seed])
        with TemporaryDirectory() as folder:
            number, _ = decide_cheapest(
                "on", compared, stage="", section="phase4c", path=Path(folder) / "gate.json", progress=Silent()
            )
        taken.append(AUTO[number])
    auto = [results[name][seed] for seed, name in enumerate(taken)]
    report("auto", auto, results["mil, lse"], f"takes {', '.join(taken)}")


if __name__ == "__main__":
    main()
