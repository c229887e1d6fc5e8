"""Repeated cross-validation of the whole chain: each image is predicted by a chain that did not see its group.

In each repeat, the images are divided into outer folds by whole groups. For each outer fold, the chain runs on the
other images as in `train`: protocol, training, threshold, calibration. Its predictions of all outer folds are pooled.
"""

import csv
import io
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from threadpoolctl import threadpool_limits

from streetvision.bundle.predictor import load_bundle
from streetvision.calibration.config import MAC_CAL
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ArtifactError, ConfigError, DataError, StreetVisionError
from streetvision.contracts.phase import Context
from streetvision.contracts.policies import Artifact, Digest, EstimateWithInterval
from streetvision.contracts.split_contracts import NO_FOLD, Index, Partition, Row, Split
from streetvision.data.config import HF_SPLIT
from streetvision.data.splitting.partition import assign_folds, count_units, unit_name
from streetvision.data.splitting.splits_json import partition_from_json, partition_to_json
from streetvision.eval.bootstrap import paired_difference
from streetvision.eval.cross_validated import cross_validated_intervals
from streetvision.eval.intervals import Interval
from streetvision.eval.metrics import all_metrics
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling
from streetvision.experiments.cross_validation_report import (
    CrossValidation,
    CurvePoint,
    render_cross_validation,
    summary_lines,
)
from streetvision.io.atomic import read_json, sha256_json, write_json_atomic, write_text_atomic
from streetvision.io.lock import run_lock
from streetvision.io.manifests import code_sha256
from streetvision.io.process_pool import failure_reason, run_in_processes, write_output_to
from streetvision.io.validators import validate_json
from streetvision.models.device import default_jobs
from streetvision.models.module import load_classifier
from streetvision.pipeline.config import compose_config, settings_sha256
from streetvision.pipeline.console import Console
from streetvision.pipeline.data.partition_data import partition_rows
from streetvision.pipeline.data.scan_data import scan_data
from streetvision.pipeline.input_size import input_size
from streetvision.pipeline.probe_chain import fit_probe_chain
from streetvision.pipeline.probe_head import FeatureReader
from streetvision.pipeline.run import launch_training, resolve_run_config
from streetvision.pipeline.settings import CrossValidationConfig, RunConfig
from streetvision.training.config import is_solvable
from streetvision.training.features import FeatureCache
from streetvision.training.probe import FeatureBank

OWN_SETTINGS = ("data.root", "data.group", "data.protocol", "run_dir", "cross_validation.")
"""Prefixes of the settings that a chain in its own process does not get."""
USER_ERROR = 2
FEW_IMAGES = 2000
"""Images up to which a chain in memory uses one thread."""


class ChainResult(Artifact):
    """The predictions of one chain for its outer fold."""

    key: Digest
    """Digest of code, settings and splits."""
    protocol: str
    threshold: float
    probabilities: list[float] = Field(min_length=1)
    """Of class 1, in the order of the index."""
    decisions: list[bool]


@dataclass(frozen=True)
class Chain:
    """One chain of a cross-validation."""

    repeat: int
    fold: int
    share: float
    """Share of the groups outside the outer fold that it may use."""
    partition: Partition
    """Its images; VAL_TEST is the outer fold."""
    key: str
    folder: Path
    overrides: tuple[str, ...]
    """Settings, and `file` with further ones, of a chain in its own process."""
    file: Path | None

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"repeat{self.repeat}_fold{self.fold}_{self.share:.0%}".replace("%", "")

    @property
    def record(self) -> Path:
        """Written when the chain has finished."""
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """Output of its process."""
        return self.folder / f"{self.name}.log"

    def result(self) -> ChainResult | None:
        """The result, if the chain has finished with this code, settings and data."""
        try:
            result = validate_json(self.record, ChainResult)
        except ArtifactError:
            return None
        n_test = len(self.partition.rows(Split.VAL_TEST))
        return result if result.key == self.key and len(result.probabilities) == n_test else None

    def save(self, probabilities: Sequence[float], decisions: Sequence[bool], threshold: float) -> None:
        """Write the result."""
        result = ChainResult(
            key=self.key,
            protocol=self.partition.protocol.value,
            threshold=threshold,
            probabilities=list(probabilities),
            decisions=list(decisions),
        )
        write_json_atomic(self.record, result.model_dump(mode="json"))


def launch_cross_validation(
    overrides: Sequence[str], *, file: Path | None, jobs: int | None, console: Console
) -> ArtifactSchema:
    """Run the chains that are not finished, and write cross_validation.json and the report.

    Args:
        overrides: Settings as KEY=VALUE.
        file: A YAML file of settings.
        jobs: Processes at a time, for chains that train; None: one a core, on a GPU one.
        console: Receives progress and result.

    Raises:
        ConfigError: A setting has no effect here.
        DataError: There are too few groups.
        StreetVisionError: A chain failed.
    """
    config = compose_config(overrides, file=file)
    if not any(key.startswith("training") for key in config.overrides):
        overrides = [*overrides, "training=frozen"]
        config = compose_config(overrides, file=file)
        count = config.cross_validation.folds * config.cross_validation.repeats
        console.auto_setting("training=frozen", f"training=auto would fine-tune in each of {count} chains")
    config = config.with_defaults({"run_dir": config.root.with_name(f"{config.root.name}-cross-validation")})
    schema, settings = ArtifactSchema(config.root), config.cross_validation
    if config.phase5.method == MAC_CAL or "phase5_maccal" in config.pipeline.phases:
        raise ConfigError(f"cross-validate has no phase5.method={MAC_CAL}", "leave it out")
    if config.data.unlabeled:
        raise ConfigError("cross-validate uses no unlabelled images", "leave out data.unlabeled")
    if config.data.labels is not None:
        raise ConfigError(
            "cross-validate tests on every image, and data.labels may have images that were chosen for their label",
            "leave out data.labels",
        )
    if schema.splits_json.is_file():
        raise ConfigError(f"{str(schema.output_dir)!r} is the folder of a training run", "set run_dir=... to another")
    config = resolve_run_config(config, console=console)
    schema.ensure_output_dir()
    with run_lock(schema.lock_file):
        scan_context = Context("data", schema, console, config.sections(), _no_partition)
        grouped = scan_data(scan_context)
        index = grouped.index
        _check_units(index, settings)
        chains = list(_plan(index, config, overrides, file, schema.cross_validation_dir / "chains", console))
        in_memory = _runs_in_memory(config)
        started = time.perf_counter()
        waiting = [chain for chain in chains if chain.result() is None]
        skipped: dict[str, str] = {}
        if waiting and in_memory:
            skipped = _run_in_memory(waiting, index, config, schema, console)
        elif waiting:
            skipped = _run_in_processes(waiting, index, jobs, console)
        for chain in chains:
            if chain.share == 1 and chain.name in skipped:
                raise StreetVisionError(
                    f"{chain.name} failed: {skipped[chain.name]}", f"see {chain.log}" if chain.log.exists() else None
                )
            if chain.name in skipped:
                console.warn(f"the learning curve has no point at {chain.share:.0%}: {skipped[chain.name]}")
        seconds = time.perf_counter() - started
        console.line("chains", f"{len(chains)}, {len(chains) - len(waiting)} of them finished before", seconds=seconds)
        content = _summarize(chains, index, config)
        write_json_atomic(schema.cross_validation_json, content.model_dump(mode="json"))
        write_text_atomic(schema.cross_validation_html, render_cross_validation(content))
    for line in summary_lines(content):
        console.text(line)
    console.line("report", str(schema.cross_validation_html))
    return schema


def _no_partition() -> Partition:
    raise AssertionError("a scan opens no split")


def _check_units(index: Index, settings: CrossValidationConfig) -> None:
    for label, name in enumerate(index.class_names):
        units = count_units(index.rows, label)
        if units < settings.folds:
            raise DataError(
                f"class {name!r} has {units} groups, but cross_validation.folds is {settings.folds}",
                f"set cross_validation.folds to at most {units}, or add images of other places",
            )


def _plan(
    index: Index, config: RunConfig, overrides: Sequence[str], file: Path | None, folder: Path, console: Console
) -> Iterator[Chain]:
    """The chains of all repeats and outer folds; those of the learning curve in the first repeat only."""
    settings = config.cross_validation
    kept = tuple(setting for setting in overrides if not setting.startswith(OWN_SETTINGS))
    base = [code_sha256(), settings_sha256(config.model_copy(update={"cross_validation": CrossValidationConfig()}))]
    for repeat in range(settings.repeats):
        outer = assign_folds(index.rows, settings.folds, seed=settings.seed + repeat)
        for fold in range(settings.folds):
            test = [row for row, of_row in zip(index.rows, outer, strict=True) if of_row == fold]
            train = [row for row, of_row in zip(index.rows, outer, strict=True) if of_row != fold]
            shares = (1.0, *settings.learning_curve) if repeat == 0 else (1.0,)
            for share in shares:
                subset = _share_of_groups(train, share, seed=settings.seed)
                paths = {row.path for row in (*subset, *test)}
                rows = tuple(row for row in index.rows if row.path in paths)
                try:
                    partition = _partition(replace(index, rows=rows), test, config, console)
                except DataError as error:
                    if share == 1:
                        raise
                    console.warn(f"the learning curve has no point at {share:.0%}: {error.message}")
                    continue
                key = sha256_json([*base, index.fingerprint, partition.split_sha256])
                yield Chain(repeat, fold, share, partition, key, folder, kept, file)


def _partition(index: Index, test: Sequence[Row], config: RunConfig, console: Console) -> Partition:
    """The splits or folds of the rows outside `test`, which is VAL_TEST."""
    return partition_rows(
        index,
        None,  # the groups contain the near-duplicates
        config.data,
        config.phase5.risk,
        protocol=config.data.protocol,
        roles={row.sha256: Split.VAL_TEST for row in test},
        folds={row.sha256: NO_FOLD for row in test},
        progress=console,
        keep_test=True,
    )


def _share_of_groups(rows: Sequence[Row], share: float, *, seed: int) -> list[Row]:
    """A part of the groups of each class; a smaller share is a part of a larger one."""
    kept: set[str] = set()
    for label in (0, 1):
        names = sorted({unit_name(row) for row in rows if row.label == label})
        order = np.random.default_rng(seed).permutation(len(names))
        kept |= {names[position] for position in order[: math.ceil(share * len(names))]}
    return [row for row in rows if unit_name(row) in kept] if share < 1 else list(rows)


def _runs_in_memory(config: RunConfig) -> bool:
    """Whether all chains need the same features only."""
    return (
        config.training.mode == "frozen"
        and is_solvable(config.model.head, config.training.loss)
        and config.phase4c.mode == "single_view"
        and not config.adapts
        and config.model.explora_checkpoint_path is None
    )


def _run_in_memory(
    chains: Sequence[Chain], index: Index, config: RunConfig, schema: ArtifactSchema, console: Console
) -> dict[str, str]:
    """Compute the features once, and fit every chain on them; returns why chains of the learning curve failed."""
    classifier = load_classifier(config.model, input_size(config.model, index.rows))
    reader = FeatureReader.of(classifier.backbone, config.model)
    cache = FeatureCache(schema.feature_cache_dir, reader.classifier, loader=config.loader, progress=console)
    computed, _ = cache.features(index.rows, root=index.root, name="of all images")
    features: NDArray[np.float32] = computed.numpy()
    position = {row.path: number for number, row in enumerate(index.rows)}
    failed = {}
    # Several threads slow the fits of a few hundred images down.
    with threadpool_limits(1 if len(features) <= FEW_IMAGES else None, user_api="blas"):
        for chain in console.track(chains, total=len(chains), label="chains"):
            rows = [position[row.path] for row in chain.partition.index.rows]
            test = [position[row.path] for row in chain.partition.rows(Split.VAL_TEST)]
            try:
                fitted = fit_probe_chain(features[rows], reader, chain.partition, config)
            except DataError as error:
                failed[chain.name] = error.message
                continue
            p, decisions = fitted.predict(FeatureBank(features[test], reader.pooling, reader.layers))
            chain.save(p.tolist(), decisions.tolist(), fitted.threshold)
    return failed


def _run_in_processes(chains: Sequence[Chain], index: Index, jobs: int | None, console: Console) -> dict[str, str]:
    """Train every chain in a process of its own; returns why chains failed."""
    for chain in chains:
        root = chain.folder / chain.name
        root.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "label", "group"])
        for row in chain.partition.index.rows:
            writer.writerow([(index.root / row.path).absolute(), row.label, row.group or ""])
        write_text_atomic(root / "index.csv", text.getvalue())
    count = jobs or default_jobs()
    failed = {}
    results = run_in_processes(train_chain, chains, count, preload=("streetvision.pipeline.steps.train_baseline",))
    for chain, code in console.track(results, total=len(chains), label="chains"):
        if code != 0 or chain.result() is None:
            failed[chain.name] = failure_reason(chain.log, code)
    return failed


def train_chain(chain: Chain, threads: int) -> None:
    """Run the phases of a chain, predict its outer fold and write the result; call it in a process of its own.

    Ends the process with exit code 2 and one line for a user error.
    """
    write_output_to(chain.log)
    import torch

    torch.set_num_threads(threads)
    root = chain.folder / chain.name
    settings = [
        *chain.overrides,
        # The index has the group of each image; settings of the file that describe the original data are taken back.
        f"data.root={root / 'index.csv'}",
        "data.group_column=null",
        "data.group_pattern=null",
        "data.source_column=null",
        f"data.hf_split={HF_SPLIT}",
        "data.grouping.by=[column]",
        f"data.protocol={chain.partition.protocol.value}",
        f"run_dir={root}",
    ]
    schema = ArtifactSchema(root)
    try:
        config = compose_config(settings, file=chain.file)
        if not schema.splits_json.is_file():
            absolute = [
                replace(row, path=str((chain.partition.index.root / row.path).absolute()))
                for row in chain.partition.index.rows
            ]
            index = replace(chain.partition.index, root=root, rows=tuple(absolute))
            write_json_atomic(schema.splits_json, partition_to_json(replace(chain.partition, index=index)))
        launch_training(config, console=Console())
        partition = partition_from_json(read_json(schema.splits_json), schema.splits_json)
        predictor = load_bundle(schema.export_dir)
        predictions = predictor.predict([partition.index.root / row.path for row in partition.rows(Split.VAL_TEST)])
    except StreetVisionError as error:
        print(f"error: {error.message}", flush=True)  # noqa: T201 (the log)
        sys.exit(USER_ERROR)
    chain.save([p.probability for p in predictions], [p.decision == 1 for p in predictions], predictor.threshold)


def _summarize(chains: Sequence[Chain], index: Index, config: RunConfig) -> CrossValidation:
    """Pool the predictions of each repeat, and of each point of the learning curve."""
    settings = config.cross_validation
    resampling = Resampling(settings.n_resamples, settings.confidence_level, settings.seed)
    position = {row.path: number for number, row in enumerate(index.rows)}
    labels, groups = [row.label for row in index.rows], [row.group for row in index.rows]

    def pooled(repeat: int, share: float) -> Predictions | None:
        """The predictions of all images; None if a chain of this point of the curve is missing."""
        p, decisions = np.full(len(labels), np.nan), np.zeros(len(labels), dtype=bool)
        for chain in chains:
            if (chain.repeat, chain.share) == (repeat, share) and (result := chain.result()) is not None:
                rows = [position[row.path] for row in chain.partition.rows(Split.VAL_TEST)]
                p[rows], decisions[rows] = result.probabilities, result.decisions
        return None if np.isnan(p).any() else Predictions(labels, p, groups, decisions=decisions)

    repeats = [pooled(repeat, 1.0) for repeat in range(settings.repeats)]
    complete = [repeat for repeat in repeats if repeat is not None]
    assert len(complete) == settings.repeats, "a missing chain has raised before"
    intervals = cross_validated_intervals(complete, resampling, folds=settings.folds)
    curve, last = [], None
    for share in sorted({*settings.learning_curve, 1.0}):
        if (predictions := pooled(0, share)) is not None:
            trained = [
                len(c.partition.index.rows) - len(c.partition.rows(Split.VAL_TEST)) for c in chains if c.share == share
            ]
            mcc = cross_validated_intervals([predictions], resampling, folds=settings.folds)["mcc"]
            curve.append(CurvePoint(share=share, images=round(float(np.mean(trained))), mcc=_figure(mcc)))
            last = predictions if share < 1 else last
    gain = None if last is None else _figure(paired_difference(complete[0], last, resampling)["mcc"])
    results = [result for chain in chains if chain.share == 1 and (result := chain.result()) is not None]
    return CrossValidation(
        data=Path(str(config.data.root)).name,
        class_names=index.class_names,
        images=len(labels),
        positives=sum(labels),
        units=intervals["mcc"].units,
        few_units=intervals["mcc"].few_units,
        grouped=complete[0].units.grouped,
        folds=settings.folds,
        repeats=settings.repeats,
        level=settings.confidence_level,
        metrics={name: _figure(interval) for name, interval in intervals.items()},
        by_repeat=[
            {name: _none_if_nan(value) for name, value in all_metrics(r.labels, r.probabilities, r.decisions).items()}
            for r in complete
        ],
        thresholds=[result.threshold for result in results],
        protocols=dict(Counter(result.protocol for result in results)),
        curve=curve,
        gain=gain,
    )


def _figure(interval: Interval) -> EstimateWithInterval:
    estimate, low, high = map(_none_if_nan, (interval.estimate, interval.low, interval.high))
    return EstimateWithInterval(estimate=estimate, low=low, high=high)


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
