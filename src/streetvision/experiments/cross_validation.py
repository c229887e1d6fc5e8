"""Repeated cross-validation of the whole chain: each image is predicted by a chain that did not see its group.

In each repeat, the images are divided into outer folds by whole groups. For each outer fold, the chain runs on the
other images as in `train`: protocol, training, threshold, calibration. Its predictions of all outer folds are pooled.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from streetvision.calibration.config import MAC_CAL
from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError, DataError, StreetVisionError
from streetvision.contracts.policies import EstimateWithInterval
from streetvision.contracts.settings import no_effect
from streetvision.contracts.split_contracts import Index, Split
from streetvision.data.config import DataConfig, LoaderConfig
from streetvision.data.sources.discovery import is_dataset
from streetvision.data.splitting.partition import count_units
from streetvision.eval.cross_validated import cross_validated_difference, cross_validated_intervals
from streetvision.eval.intervals import Interval
from streetvision.eval.metrics import all_metrics
from streetvision.eval.predictions import Predictions
from streetvision.eval.resampling import Resampling
from streetvision.experiments.chains import MAX_SOURCE_FOLDS, Chain, check_phases, plan_chains, train_chain
from streetvision.experiments.cross_validation_report import (
    CrossValidation,
    CurvePoint,
    SourceResult,
    UnseenSources,
    render_cross_validation,
    summary_lines,
)
from streetvision.io.atomic import write_json_atomic, write_text_atomic
from streetvision.io.lock import run_lock
from streetvision.io.process_pool import failure_reason, run_in_processes
from streetvision.io.validators import validate_json
from streetvision.models.device import job_count
from streetvision.models.module import load_classifier
from streetvision.pipeline.config import compose_config, format_overrides
from streetvision.pipeline.console import Console
from streetvision.pipeline.data.scan_data import scan_without_splits
from streetvision.pipeline.engine import phase_order
from streetvision.pipeline.input_size import input_size
from streetvision.pipeline.phases import PHASES, PRELOADED
from streetvision.pipeline.probe_chain import fit_probe_chain
from streetvision.pipeline.probe_head import FeatureReader
from streetvision.pipeline.run import resolve_run_config
from streetvision.pipeline.settings import CrossValidationConfig, RunConfig, warn_without_effect
from streetvision.synthetic.scenes import SceneConfig
from streetvision.training.config import is_solvable
from streetvision.training.features import FeatureCache
from streetvision.training.probe import FeatureBank

FEW_IMAGES = 2000
"""Images up to which a chain in memory uses one thread."""


class RecordedData(DataConfig):
    """data.json: the data that a folder belongs to."""

    max_megapixels: float | None = None
    """loader.max_megapixels."""
    fingerprint: str | None = None
    """Digest of the index."""


def launch_cross_validation(
    overrides: Sequence[str], *, file: Path | None, jobs: int | None, console: Console
) -> ArtifactSchema:
    """Run the chains that are not finished, and write cross_validation.json and the report.

    Args:
        overrides: Settings as KEY=VALUE.
        file: A YAML file of settings.
        jobs: Processes at a time, for chains that train; None: one per core, on a GPU one.
        console: Receives progress and result.

    Raises:
        ConfigError: A setting, or `jobs`, has no effect here, a phase that a chain needs is missing, or the folder has
            the cross-validation of other data.
        DataError: There are too few groups.
        StreetVisionError: A chain failed.
    """
    config = compose_config(overrides, file=file)
    folder = config.root
    if config.run_dir is None:
        folder = folder.with_name(f"{folder.name}-cross-validation")
    schema = ArtifactSchema(folder)
    recorded = None
    if schema.cross_validation_data_json.is_file():
        recorded = validate_json(schema.cross_validation_data_json, RecordedData)
        overrides = [*_recorded_settings(recorded, schema, config), *overrides]
        config = compose_config(overrides, file=file)
    if not any(key.startswith("training") for key in config.overrides):
        overrides = [*overrides, "training=frozen"]
        config = compose_config(overrides, file=file)
        count = config.cross_validation.folds * config.cross_validation.repeats
        console.auto_setting("training=frozen", f"training=auto would fine-tune in each of {count} chains")
    config = config.with_defaults({"run_dir": folder})
    settings = config.cross_validation
    if config.phase5.method == MAC_CAL or "phase5_maccal" in config.pipeline.phases:
        raise ConfigError(f"cross-validate has no phase5.method={MAC_CAL}", "leave it out")
    if config.data.unlabeled:
        raise ConfigError("cross-validate uses no unlabeled images", "leave out data.unlabeled")
    if config.data.labels is not None:
        raise ConfigError(
            "cross-validate tests on every image, and data.labels may have images that a model selected for labeling",
            "leave out data.labels",
        )
    if config.model.init_from_explora and config.model.explora_checkpoint_path is None and not config.adapts:
        raise no_effect(
            "model.init_from_explora=true",
            "phase4a_explora is not in pipeline.phases",
            "set model.explora_checkpoint_path=... to the adapted backbone of a run",
        )
    if schema.splits_json.is_file():
        raise ConfigError(f"{str(schema.output_dir)!r} is the folder of a training run", "set run_dir=... to another")
    in_memory = _runs_in_memory(config)
    if in_memory and jobs is not None:
        raise no_effect("--jobs", "the chains only fit a head to features that are computed once", "set training=peft")
    processes = 1 if in_memory else job_count(jobs)
    read = {section for phase in phase_order(config.pipeline.phases, PHASES) for section in phase.config}
    check_phases(config)
    read |= {SceneConfig, DataConfig, LoaderConfig, CrossValidationConfig}
    warn_without_effect(config, read, "cross-validate", console)
    config = resolve_run_config(config, console=console)
    schema.ensure_output_dir()
    with run_lock(schema.lock_file):
        grouped = scan_without_splits(config, schema, console)
        index = grouped.index
        if recorded is not None and not _is_root(recorded, str(config.data.root)):
            if index.fingerprint != recorded.fingerprint:
                raise _other_data(recorded, schema, str(config.data.root))
            console.line(
                "data", f"moved to {config.data.root}: its {len(index.rows):,} images are those of this folder"
            )
        _check_units(index, settings)
        data = {"max_megapixels": config.loader.max_megapixels, "fingerprint": index.fingerprint}
        write_json_atomic(schema.cross_validation_data_json, config.data.model_dump(mode="json") | data)
        chains = list(plan_chains(index, config, schema.cross_validation_dir / "chains", console))
        started = time.perf_counter()
        waiting = [chain for chain in chains if chain.result() is None]
        skipped: dict[str, str] = {}
        if waiting and in_memory:
            skipped = _run_in_memory(waiting, index, config, schema, console)
        elif waiting:
            skipped = _run_in_processes(waiting, processes, console)
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


def _recorded_settings(recorded: RecordedData, schema: ArtifactSchema, config: RunConfig) -> list[str]:
    """Settings of the data that a folder has, as KEY=VALUE, for a command that names no data or a new place.

    Raises:
        ConfigError: The command names other data.
    """
    if any(key == "data.root" or key.startswith("scenes.") for key in config.overrides):
        root = config.data.root or str(schema.scenes_dir)
        if _is_root(recorded, root):
            return []
        if config.data.root is None or is_dataset(root, recorded.class_names):
            raise _other_data(recorded, schema, root)
    settings = recorded.model_dump(mode="json", exclude_defaults=True, exclude={"max_megapixels", "fingerprint"})
    limits = {} if recorded.max_megapixels is None else {"max_megapixels": recorded.max_megapixels}
    given = format_overrides({"data": settings, "loader": limits})
    return [setting for setting in given if setting.partition("=")[0] not in config.overrides]


def _is_root(recorded: RecordedData, root: str) -> bool:
    return Path(root).absolute() == Path(str(recorded.root)).absolute()


def _other_data(recorded: RecordedData, schema: ArtifactSchema, root: str) -> ConfigError:
    return ConfigError(
        f"{str(schema.output_dir)!r} has the cross-validation on {recorded.root!r}, and {root!r} has other images, "
        "labels or groups",
        f"set run_dir=... to another folder for that on {root!r}",
    )


def _check_units(index: Index, settings: CrossValidationConfig) -> None:
    for label, name in enumerate(index.class_names):
        units = count_units(index.rows, label)
        if units < settings.folds:
            raise DataError(
                f"class {name!r} has {units} groups, but cross_validation.folds is {settings.folds}",
                f"set cross_validation.folds to at most {units}, or add images of other places",
            )


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


def _run_in_processes(chains: Sequence[Chain], jobs: int, console: Console) -> dict[str, str]:
    """Train every chain in a process of its own; returns why chains failed."""
    failed = {}
    results = run_in_processes(train_chain, chains, jobs, preload=PRELOADED)
    for chain, code in console.track(results, total=len(chains), label="chains"):
        if code != 0 or chain.result() is None:
            failed[chain.name] = failure_reason(chain.log, code)
    return failed


def _summarize(chains: Sequence[Chain], index: Index, config: RunConfig) -> CrossValidation:
    """Pool the predictions of each repeat, and of each point of the learning curve."""
    settings = config.cross_validation
    resampling = Resampling(settings.n_resamples, settings.confidence_level, settings.seed)
    position = {row.path: number for number, row in enumerate(index.rows)}
    labels, groups = [row.label for row in index.rows], [row.group for row in index.rows]

    def pooled(repeat: int, share: float, *, by_source: bool = False) -> Predictions | None:
        """The predictions of all images; None if a chain of this point of the curve is missing.

        With `by_source`, of the images with a source, whose groups are their sources.
        """
        p, decisions = np.full(len(labels), np.nan), np.zeros(len(labels), dtype=bool)
        for chain in chains:
            if (chain.repeat, chain.share, chain.by_source) == (repeat, share, by_source):
                if (result := chain.result()) is None:
                    continue
                rows = [position[row.path] for row in chain.partition.rows(Split.VAL_TEST)]
                p[rows], decisions[rows] = result.probabilities, result.decisions
        if by_source:
            named = np.flatnonzero([row.source is not None for row in index.rows])
            sources = [index.rows[row].source for row in named]
            return Predictions([labels[row] for row in named], p[named], sources, decisions=decisions[named])
        return None if np.isnan(p).any() else Predictions(labels, p, groups, decisions=decisions)

    repeats = [pooled(repeat, 1.0) for repeat in range(settings.repeats)]
    complete = [repeat for repeat in repeats if repeat is not None]
    assert len(complete) == settings.repeats, "a missing chain has raised before"
    intervals = cross_validated_intervals(complete, resampling, folds=settings.folds)
    curve, last = [], None
    for share in sorted({*settings.learning_curve, 1.0}):
        if (predictions := pooled(0, share)) is not None:
            trained = [
                len(c.partition.index.rows) - len(c.partition.rows(Split.VAL_TEST))
                for c in chains
                if (c.share, c.by_source) == (share, False)
            ]
            mcc = cross_validated_intervals([predictions], resampling, folds=settings.folds)["mcc"]
            curve.append(CurvePoint(share=share, images=round(float(np.mean(trained))), mcc=_figure(mcc)))
            last = predictions if share < 1 else last
    gain = None
    if last is not None:
        gain = _figure(cross_validated_difference(complete[0], last, resampling, folds=settings.folds)["mcc"])
    results = [result for chain in chains if chain.share == 1 and (result := chain.result()) is not None]
    unseen = None
    if settings.leave_out is not None:
        unseen = _unseen_sources(index, complete[0], pooled(0, 1.0, by_source=True), resampling)
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
        unseen=unseen,
    )


def _unseen_sources(
    index: Index, ordinary: Predictions, unseen: Predictions | None, resampling: Resampling
) -> UnseenSources:
    """Compare predictions of unseen sources with those of the first repeat, on the images with a source."""
    assert unseen is not None, "a missing chain has raised before"
    assert unseen.groups is not None
    named = np.flatnonzero([row.source is not None for row in index.rows])
    seen = Predictions(
        ordinary.labels[named], ordinary.probabilities[named], unseen.groups, decisions=ordinary.decisions[named]
    )
    names = np.array(unseen.groups, dtype=object)
    sources = []
    for name in sorted(set(names.tolist())):
        of_source = names == name
        labels, p, decisions = (values[of_source] for values in (unseen.labels, unseen.probabilities, unseen.decisions))
        metrics, positives = all_metrics(labels, p, decisions), int(labels.sum())
        sources.append(
            SourceResult(
                name=name,
                images=len(labels),
                positives=positives,
                mcc=_none_if_nan(metrics["mcc"]) if 0 < positives < len(labels) else None,
                recall=_none_if_nan(metrics["recall"]) if positives else None,
                fpr=_none_if_nan(metrics["fpr"]) if positives < len(labels) else None,
            )
        )
    folds = min(len(sources), MAX_SOURCE_FOLDS)
    intervals = cross_validated_intervals([unseen], resampling, folds=folds)
    return UnseenSources(
        images=len(unseen),
        metrics={name: _figure(interval) for name, interval in intervals.items()},
        difference=_figure(cross_validated_difference(unseen, seen, resampling, folds=folds)["mcc"]),
        few_sources=intervals["mcc"].few_units,
        sources=sources,
    )


def _figure(interval: Interval) -> EstimateWithInterval:
    estimate, low, high = map(_none_if_nan, (interval.estimate, interval.low, interval.high))
    return EstimateWithInterval(estimate=estimate, low=low, high=high)


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
