"""phase4c_cvfm: fuse the views of each image as phase4c.mode defines, and score VAL_CALIB with the fusion that ships.

Backbone and head are those of phase 1 and do not change. Evidence is fitted on TRAIN; under cross_fit, on views by the
models of the folds that did not see the image. A trained fusion is fitted on TRAIN, and VAL_SELECT selects its epoch.
The gate compares on VAL_SELECT; under cross_fit, out of fold.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import median

import torch
from torch import Tensor

from streetvision.contracts.errors import ConfigError, DataError
from streetvision.contracts.phase import Context, Metrics, Outcome
from streetvision.contracts.policies import FusionRef
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import LoaderConfig
from streetvision.eval.counts import FloatArray
from streetvision.io.atomic import sha256_file, write_json_atomic, write_text_atomic
from streetvision.io.resize import ImageSize
from streetvision.io.scores import ScoresRecord
from streetvision.io.tensors import load_into, save_tensors
from streetvision.io.validators import validate_json
from streetvision.models.config import FusionDescription
from streetvision.models.evidence import EvidenceFusion
from streetvision.models.fused import FusedClassifier, add_margin, load_fused
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import CVFM_SCORES
from streetvision.pipeline.fold_models import fold_classifiers, save_out_of_fold
from streetvision.pipeline.gates import Compared, calibrated_predictions, decide_cheapest, one_group_problem
from streetvision.pipeline.input_size import LARGEST_PATCH, auto_image_size
from streetvision.pipeline.scores import open_classifier, rows_of_folds, save_val_calib
from streetvision.pipeline.training_outputs import metrics_csv
from streetvision.training.callbacks import State, cpu_state_dict
from streetvision.training.config import (
    CvfmConfig,
    CvfmInferenceConfig,
    CvfmTrainedConfig,
    FusingConfig,
    FusionSettings,
)
from streetvision.training.evidence import fit_evidence
from streetvision.training.features import ViewCache, ViewFeatures
from streetvision.training.fusion import (
    EVALUATION_BATCH,
    FusionFit,
    argmax_mcc,
    evaluate_fusion,
    fit_fusion,
    fused_logits,
)
from streetvision.training.lightning_module import EpochRow
from streetvision.training.probe import FeatureBank, Representation, fit_probe, grouped_folds


@dataclass(frozen=True)
class Candidate:
    """A fusion that is compared with the single view."""

    settings: FusionSettings
    model: FusedClassifier
    fitted: FusionFit
    logits: Tensor
    """(M, 2) of the rows on which the gate compares."""
    fold_weights: tuple[State, ...] = ()
    """Under cross_fit: the fusion of each fold."""
    problem: str | None = None
    """Why nothing could be fitted; the fusion is then the single view."""


@dataclass
class ViewsOf:
    """The views of the rows of a run or of a fold."""

    context: Context
    seconds: float = 0.0
    """Time for computing or reading views."""

    def features(self, model: FusedClassifier, split: Split) -> ViewFeatures:
        """Return the features of all views of `split`."""
        started = time.perf_counter()
        loader = self.context.settings(LoaderConfig)
        folder, progress = self.context.schema.feature_cache_dir, self.context.progress
        cache = ViewCache(folder, model, loader=loader, progress=progress)
        views = cache.features(self.context.rows(split), root=self.context.data_root, name=split.value)
        self.seconds += time.perf_counter() - started
        return views


def run(context: Context) -> Outcome:
    """Fit the fusions that are compared, and score VAL_CALIB with the one that ships."""
    schema, config = context.schema, context.settings(CvfmConfig)
    assert isinstance(config, FusingConfig)
    classifier = open_classifier(context.schema, schema.phase1_checkpoint)
    models = _models(context, config, classifier)
    of_run, n_folds = ViewsOf(context), 0
    if context.n_folds > 0:
        n_folds = len(validate_json(schema.val_calib_scores_json, ScoresRecord).reference.fold_models)
        candidates, single_view, seconds = _cross_fit(of_run, models, classifier, n_folds)
        rows, where = rows_of_folds(context, Split.TRAIN, n_folds), "out-of-fold"
    else:
        candidates, single_view = _split(of_run, models)
        rows, where, seconds = context.rows(Split.VAL_SELECT), "VAL_SELECT", of_run.seconds

    started = time.perf_counter()
    compared = _compared(config, candidates, single_view, rows)
    number, gate = decide_cheapest(
        config.gate,
        compared,
        stage="the fusion",
        section="phase4c",
        path=schema.fusion_gate_json,
        progress=context.progress,
    )
    gate_seconds, chosen = time.perf_counter() - started, candidates[number]
    settings, fitted, description = chosen.settings, chosen.fitted, chosen.model.description

    schema.cvfm_weights.unlink(missing_ok=True)  # of an earlier run in another mode
    weights = schema.cvfm_weights if description.has_weights else None
    if weights is not None:
        save_tensors(weights, fitted.best)
        for fold, state in zip(context.folds(), chosen.fold_weights, strict=False):
            save_tensors(fold.schema.cvfm_weights, state)
    write_json_atomic(schema.cvfm_config_json, description.model_dump(mode="json"))
    write_text_atomic(schema.cvfm_metrics_csv, metrics_csv(fitted.history))
    reference = FusionRef(
        description_sha256=sha256_file(schema.cvfm_config_json),
        weights_sha256=sha256_file(weights) if weights else None,
    )
    if not gate.ships:
        for name in CVFM_SCORES[:3]:  # of an earlier run whose fusion ships
            schema.path(name).unlink(missing_ok=True)
    elif n_folds:
        save_out_of_fold(context, chosen.logits, CVFM_SCORES, classifier, n_folds=n_folds, fusion=reference)
    else:
        original = open_classifier(context.schema, schema.phase1_checkpoint)
        saved = load_fused(original, description, weights, chunk_size=context.settings(LoaderConfig).batch_size)
        save_val_calib(context, saved, schema.phase1_checkpoint, artifacts=CVFM_SCORES, fusion=reference)

    labels = torch.tensor([row.label for row in rows])
    mcc, single_view_mcc = argmax_mcc(chosen.logits, labels), argmax_mcc(single_view, labels)
    by = f" by {settings.inference.mode}" if isinstance(settings, CvfmInferenceConfig) else ""
    selected = "auto: " if len(candidates) > 1 else ""
    summary = f"{selected}{settings.mode}{by}, {_size(chosen.model)}; {where} MCC {mcc:.3f}"
    summary += f" (single view {single_view_mcc:.3f})"
    if isinstance(settings, CvfmTrainedConfig):
        summary += f"; epoch {fitted.best_epoch} of {settings.epochs}"
    if description.pooling is not None and chosen.problem is None:
        summary += f"; {description.pooling.name}, penalty {fitted.best_row['penalty']:g}"
    summary += f"; {'the fusion' if gate.ships else 'the single view'} ships ({gate.reason})"
    metrics: Metrics = {
        **fitted.best_row,
        **gate.metrics,
        "fusion": settings.mode,
        "val_select_mcc": mcc,
        "single_view_val_select_mcc": single_view_mcc,
        "views_seconds": seconds,
        "gate_seconds": gate_seconds,
    }
    extra = [schema.path(name) for name in CVFM_SCORES[:3]] if gate.ships else []
    extra += [weights] if weights else []
    extra += [fold.schema.cvfm_weights for fold in islice(context.folds(), n_folds) if weights]
    return Outcome(summary, metrics, extra_outputs=tuple(extra))


def dense_size(classifier: Classifier, rows: Sequence[Row]) -> Callable[[float], ImageSize]:
    """Return a function from a multiple of the single view's pixels to the size of a dense pass for `rows`."""
    spec = classifier.backbone.spec
    side = 2 * spec.patch_size  # an averaged token has 2 x 2 patches
    single_view = spec.image_size[0] * spec.image_size[1] / min(side, LARGEST_PATCH) ** 2
    images = [(row.height, row.width) for row in rows]
    return lambda ratio: auto_image_size(
        side, spec.image_size, images=images, tokens=max(1, round(ratio * single_view))
    )


def _models(
    context: Context, config: FusingConfig, classifier: Classifier
) -> list[tuple[FusionSettings, FusedClassifier]]:
    """The candidates, the cheapest first; of several, those that the backbone cannot compute are left out."""
    size = dense_size(classifier, context.rows(Split.TRAIN))
    models = []
    for settings in config.candidates:
        try:
            torch.manual_seed(config.seed)
            models.append((settings, _fused(context, classifier, settings.description(size))))
        except ConfigError as error:
            if len(config.candidates) == 1:
                raise ConfigError(error.message, f"set another phase4c.mode than {settings.mode}") from error
            context.progress.warn(f"phase4c.mode={settings.mode} is not compared: {error.message}")
    return sorted(models, key=lambda pair: pair[1].views_per_image)


def _fused(context: Context, classifier: Classifier, description: FusionDescription) -> FusedClassifier:
    return FusedClassifier(classifier, description, chunk_size=context.settings(LoaderConfig).batch_size)


def _size(model: FusedClassifier) -> str:
    if model.dense is None:
        return f"{model.views_per_image} views"
    return f"{model.dense.count} patches of {' x '.join(map(str, model.dense.backbone.spec.image_size))} pixels"


def _split(of_run: ViewsOf, models: Sequence[tuple[FusionSettings, FusedClassifier]]) -> tuple[list[Candidate], Tensor]:
    """Fit each candidate; return them with their logits of VAL_SELECT, and those (M, 2) of the single view."""
    candidates, context = [], of_run.context
    groups = _groups(context.rows(Split.TRAIN))
    base = None
    for settings, model in models:
        select = of_run.features(model, Split.VAL_SELECT)
        if model.description.pooling is None:
            fitted = _fit(of_run, settings, model, select)
        else:
            train = of_run.features(model, Split.TRAIN)
            if base is None:
                base = _cross_validated_margins(context, model, train, groups)
            fitted = _fit_evidence(context, model, train, base, groups)
        candidates.append(Candidate(settings, model, fitted, fused_logits(model, select)))
    with torch.no_grad():
        return candidates, model.classifier.head(select.features[:, 0])


def _cross_fit(
    of_run: ViewsOf, models: Sequence[tuple[FusionSettings, FusedClassifier]], classifier: Classifier, n_folds: int
) -> tuple[list[Candidate], Tensor, float]:
    """Fit each candidate in each of the first folds, on the classifier of the fold, and then on all images.

    Returns:
        The candidates with their out-of-fold logits, those (M, 2) of the single view, and the time for views.
    """
    context = of_run.context
    fold_of_rows = torch.tensor([fold for fold in context.fold_of_evaluated_rows if fold < n_folds])
    logits, single_view = torch.empty(len(models), len(fold_of_rows), 2), torch.empty(len(fold_of_rows), 2)
    fits: list[list[FusionFit]] = [[] for _ in models]
    out_of_fold: list[list[ViewFeatures]] = [[] for _ in models]
    seconds = 0.0
    of_folds = zip(context.folds(), fold_classifiers(context.schema, classifier, n_folds), strict=False)
    for number, (fold, fold_classifier) in enumerate(of_folds):
        in_fold, of_fold = fold_of_rows == number, ViewsOf(fold)
        for index, (settings, shipped) in enumerate(models):
            torch.manual_seed(settings.seed)
            model = _fused(context, fold_classifier, shipped.description)
            calib = of_fold.features(model, Split.VAL_CALIB)
            with torch.no_grad():
                single_view[in_fold] = fold_classifier.head(calib.features[:, 0])
            if model.description.pooling is not None:
                out_of_fold[index].append(calib)
                continue
            # Only a trained fusion has epochs to select. The gate compares on VAL_CALIB.
            select = of_fold.features(model, Split.VAL_SELECT) if isinstance(settings, CvfmTrainedConfig) else calib
            fits[index].append(_fit(of_fold, settings, model, select))
            logits[index, in_fold] = fused_logits(model, calib)
        seconds += of_fold.seconds
    candidates = []
    for index, (settings, model) in enumerate(models):
        torch.manual_seed(settings.seed)
        if model.description.pooling is not None:
            rows = rows_of_folds(context, Split.TRAIN, n_folds)
            candidates.append(
                _cross_fit_evidence(context, settings, model, out_of_fold[index], single_view, fold_of_rows, rows)
            )
            continue
        stop_after = round(median(fitted.best_epoch for fitted in fits[index]))
        fitted = _fit(of_run, settings, model, None, stop_after=stop_after)
        weights = tuple(fitted.best for fitted in fits[index])
        candidates.append(Candidate(settings, model, fitted, logits[index], weights))
    return candidates, single_view, seconds + of_run.seconds


def _cross_fit_evidence(
    context: Context,
    settings: FusionSettings,
    model: FusedClassifier,
    parts: Sequence[ViewFeatures],
    single_view: Tensor,
    fold_of_rows: Tensor,
    rows: Sequence[Row],
) -> Candidate:
    """Fit the evidence of each fold to the rows of the other folds, and that of `model` to all.

    The views of a row are by the model of its fold, since a fine-tuned backbone separates the images that it was
    trained on too well for anything to be learnt from their tiles.

    Args:
        context: Context of the phase.
        settings: Settings of the candidate.
        model: The fused classifier that ships; its fusion is fitted in place.
        parts: Views of the rows of each fold.
        single_view: (M, 2) out-of-fold logits.
        fold_of_rows: (M,) fold of each row.
        rows: The M rows.
    """
    order = torch.cat([(fold_of_rows == fold).nonzero()[:, 0] for fold in range(len(parts))]).argsort()
    views = ViewFeatures(*(torch.cat(part)[order] for part in zip(*parts, strict=True)))
    base = (single_view[:, 1] - single_view[:, 0]).double().numpy()
    groups = _groups(rows)
    logits, states = torch.empty_like(single_view), []
    try:
        for fold in range(len(parts)):
            test = fold_of_rows == fold
            others = [group for group, tested in zip(groups, test, strict=True) if not tested]
            states.append(_fit_evidence(context, model, views.select(~test), base[~test.numpy()], others).best)
            logits[test] = add_margin(single_view[test], _evidence_margins(model, views.select(test)))
        fitted = _fit_evidence(context, model, views, base, groups)
    except DataError as error:
        if settings.gate != "on":
            raise
        # A short budget leaves few folds, and so few groups. The run continues with the single view.
        untrained = FusedClassifier(model.classifier, model.description, chunk_size=model.chunk_size)
        state = cpu_state_dict(untrained.fusion)
        none = FusionFit(best=state, history=({"epoch": 0},), best_epoch=0)
        return Candidate(settings, untrained, none, single_view, (state,) * len(parts), error.message)
    return Candidate(settings, model, fitted, logits, tuple(states))


def _fit(
    views: ViewsOf,
    settings: FusionSettings,
    model: FusedClassifier,
    select: ViewFeatures | None,
    *,
    stop_after: int | None = None,
) -> FusionFit:
    """Fit a trained fusion of `model` to TRAIN, where `select` selects the epoch; other modes have no weights."""
    if isinstance(settings, CvfmTrainedConfig):
        train = views.features(model, Split.TRAIN)
        progress = views.context.progress
        return fit_fusion(model, train, select, config=settings, progress=progress, stop_after=stop_after)
    metrics = {} if select is None else evaluate_fusion(model, select)
    return FusionFit(best={}, history=({"epoch": 0, **metrics},), best_epoch=0)


def _cross_validated_margins(
    context: Context, model: FusedClassifier, views: ViewFeatures, groups: Sequence[str]
) -> FloatArray:
    """Return margins (N,) of a probe on single views, cross-validated on the same rows.

    The margins of the model itself would be too good on the rows that it was trained on.
    """
    description, labels, seed = model.classifier.description, views.labels.numpy(), context.settings(CvfmConfig).seed
    with _too_few_groups():
        probe = fit_probe(
            FeatureBank(views.features[:, 0].numpy(), description.pooling, description.layers),
            labels,
            groups,
            representations=[Representation(description.pooling, description.layers)],
            class_weights=lambda _: (1.0, 1.0),
            seed=seed,
            progress=context.progress,
            folds=grouped_folds(labels, groups, seed=seed),
        )
    assert probe.out_of_fold is not None
    return probe.out_of_fold


def _fit_evidence(
    context: Context, model: FusedClassifier, views: ViewFeatures, base: FloatArray, groups: Sequence[str]
) -> FusionFit:
    """Fit the evidence of tiles or patches to N views, on base margins (N,) of models that did not see the rows."""
    pooling = model.description.pooling
    assert pooling is not None
    with _too_few_groups():
        evidence = fit_evidence(
            *model.instances(views.embedded),
            views.labels.numpy(),
            base,
            groups,
            pooling=pooling,
            seed=context.settings(CvfmConfig).seed,
            progress=context.progress,
        )
    load_into(model.fusion, evidence.state, source="the fitted evidence")
    row: EpochRow = {
        "epoch": 0,
        "penalty": evidence.penalty,
        "cross_validated_nll": min(evidence.path),
        "base_nll": evidence.base_nll,
    }
    return FusionFit(best=evidence.state, history=(row,), best_epoch=0)


@torch.no_grad()
def _evidence_margins(model: FusedClassifier, views: ViewFeatures) -> Tensor:
    """Return what the evidence of cached views adds to the log-odds (N,)."""
    assert isinstance(model.fusion, EvidenceFusion)
    batches = (views.select(rows) for rows in torch.split(torch.arange(len(views.labels)), EVALUATION_BATCH))
    return torch.cat([model.fusion(*model.instances(batch.embedded)).margin for batch in batches])


@contextmanager
def _too_few_groups() -> Iterator[None]:
    """Give the error of a class with one group a hint that fits this phase."""
    try:
        yield
    except DataError as error:
        raise DataError(error.message, "add images of other places, or set phase4c=single_view") from error


def _groups(rows: Sequence[Row]) -> list[str]:
    return [row.group or row.sha256 for row in rows]


def _compared(
    config: FusingConfig, candidates: Sequence[Candidate], single_view: Tensor, rows: Sequence[Row]
) -> Compared:
    """The predictions of the candidates and of the single view, each after Platt's calibration."""
    names = [candidate.settings.mode for candidate in candidates]
    if config.gate == "off":
        return Compared(tuple(names))
    unfitted = next((candidate.problem for candidate in candidates if candidate.problem), None)
    if problem := unfitted or one_group_problem(rows):
        return Compared(tuple(names), problem=problem)
    calibrated = partial(calibrated_predictions, rows=rows, seed=config.seed)
    return Compared(tuple(names), tuple(calibrated(c.logits) for c in candidates), calibrated(single_view))
