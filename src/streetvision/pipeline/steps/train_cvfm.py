"""phase4c_cvfm: fuse several views of each image as phase4c.mode defines, and score VAL_CALIB with the fusion.

Backbone and head are those of phase 1 and do not change. The evidence of mil is fitted on TRAIN. A trained fusion is
fitted on TRAIN, and VAL_SELECT selects its epoch.
"""

from collections.abc import Sequence
from itertools import islice
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from streetvision.calibration.crossfit import CalibrationSet, crossfit
from streetvision.calibration.parametric import PlattCalibrator
from streetvision.contracts.errors import DataError
from streetvision.contracts.phase import Context, Metrics, Outcome
from streetvision.contracts.policies import FusionRef, Gate
from streetvision.contracts.split_contracts import Row, Split
from streetvision.data.config import LoaderConfig
from streetvision.eval.predictions import Predictions
from streetvision.io.atomic import sha256_file, write_json_atomic, write_text_atomic
from streetvision.io.scores import ScoresRecord
from streetvision.io.tensors import load_into, save_tensors
from streetvision.io.validators import validate_json
from streetvision.models.fused import FusedClassifier, load_fused
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import CVFM_SCORES
from streetvision.pipeline.fold_models import fold_classifiers, save_out_of_fold
from streetvision.pipeline.gates import decide
from streetvision.pipeline.scores import cached_features, open_classifier, rows_of_folds, save_val_calib
from streetvision.pipeline.training_outputs import metrics_csv
from streetvision.training.config import (
    CvfmConfig,
    CvfmInferenceConfig,
    CvfmTrainedConfig,
    MilConfig,
    MultiViewFusionConfig,
)
from streetvision.training.evidence import fit_evidence
from streetvision.training.features import ViewCache, ViewFeatures
from streetvision.training.fusion import FusionFit, argmax_mcc, evaluate_fusion, fit_fusion, fused_logits
from streetvision.training.lightning_module import EpochRow
from streetvision.training.probe import FeatureBank, Representation, fit_probe, grouped_folds

CALIBRATION_FOLDS = 5
"""Folds of the calibration with which the gate compares fusion and single view."""


def run(context: Context) -> Outcome:
    """Fit the fusion if its mode is trained, and score VAL_CALIB with the saved weights."""
    schema, config = context.schema, context.settings(CvfmConfig)
    assert isinstance(config, MultiViewFusionConfig)
    chunk_size = context.settings(LoaderConfig).batch_size
    torch.manual_seed(config.seed)
    classifier = open_classifier(context, schema.phase1_checkpoint)
    model = FusedClassifier(classifier, config.description, chunk_size=chunk_size)
    out_of_fold, n_folds = None, 0
    if context.n_folds > 0:
        n_folds = len(validate_json(schema.val_calib_scores_json, ScoresRecord).reference.fold_models)
        fitted, out_of_fold, single_view = _cross_fit(model, context, config, n_folds)
        fused, rows = out_of_fold, rows_of_folds(context, Split.TRAIN, n_folds)
    else:
        fitted = _fit(model, context, config)
        fused, rows = (
            fused_logits(model, _view_features(model, context, Split.VAL_SELECT)),
            context.rows(Split.VAL_SELECT),
        )
        # Phase 1 as it would be exported without this phase.
        features, _ = cached_features(context, classifier, Split.VAL_SELECT)
        with torch.no_grad():
            single_view = classifier.head(features)
    labels = torch.tensor([row.label for row in rows])
    mcc, single_view_mcc = argmax_mcc(fused, labels), argmax_mcc(single_view, labels)
    gate = _gate(context, config, fused, single_view, rows)

    schema.cvfm_weights.unlink(missing_ok=True)  # of an earlier run in another mode
    weights = None
    if config.description.has_weights:
        weights = schema.cvfm_weights
        save_tensors(weights, fitted.best)
    write_json_atomic(schema.cvfm_config_json, config.description.model_dump(mode="json"))
    write_text_atomic(schema.cvfm_metrics_csv, metrics_csv(fitted.history))
    reference = FusionRef(
        description_sha256=sha256_file(schema.cvfm_config_json),
        weights_sha256=sha256_file(weights) if weights else None,
    )
    if out_of_fold is None:
        classifier = open_classifier(context, schema.phase1_checkpoint)
        saved = load_fused(classifier, config.description, weights, chunk_size=chunk_size)
        save_val_calib(context, saved, schema.phase1_checkpoint, artifacts=CVFM_SCORES, fusion=reference)
    else:
        save_out_of_fold(context, out_of_fold, CVFM_SCORES, classifier, n_folds=n_folds, fusion=reference)

    where = "VAL_SELECT" if out_of_fold is None else "out-of-fold"
    by = f" by {config.inference.mode}" if isinstance(config, CvfmInferenceConfig) else ""
    summary = (
        f"{config.mode}{by}, {config.views.count} views; {where} MCC {mcc:.3f} (single view {single_view_mcc:.3f})"
    )
    if isinstance(config, CvfmTrainedConfig):
        summary += f"; epoch {fitted.best_epoch} of {config.epochs}"
    if isinstance(config, MilConfig):
        summary += f"; penalty {fitted.best_row['penalty']:g}"
    summary += f"; {'the fusion' if gate.ships else 'the single view'} ships ({gate.reason})"
    metrics: Metrics = {
        **fitted.best_row,
        **gate.metrics,
        "val_select_mcc": mcc,
        "single_view_val_select_mcc": single_view_mcc,
    }
    extra = [weights] if weights else []
    extra += [fold.schema.cvfm_weights for fold in islice(context.folds(), n_folds) if weights]
    return Outcome(summary, metrics, extra_outputs=tuple(extra))


def _gate(
    context: Context, config: MultiViewFusionConfig, fused: Tensor, single_view: Tensor, rows: Sequence[Row]
) -> Gate:
    """Compare the logits (M, 2) of the fusion with those of the single view, both after Platt's calibration."""
    labels, groups = np.array([row.label for row in rows]), [row.group or row.sha256 for row in rows]
    folds, predictions, problem = min(CALIBRATION_FOLDS, len(set(groups))), [], None
    if config.gate != "off" and folds < 2:
        problem = "there is one group only"
    elif config.gate != "off":
        for logits in (fused, single_view):
            p = crossfit(
                lambda part: PlattCalibrator().fit(part.logits, part.labels),
                CalibrationSet(logits.numpy(), labels, groups),
                folds=folds,
                seed=config.seed,
            )
            predictions.append(Predictions(labels, p, groups))
    return decide(
        config.gate,
        *(predictions or (None, None)),
        problem=problem,
        stage="the fusion",
        section="phase4c",
        path=context.schema.fusion_gate_json,
        progress=context.progress,
    )


def _fit(model: FusedClassifier, context: Context, config: MultiViewFusionConfig) -> FusionFit:
    """Fit the fusion of `model` to TRAIN if its mode is trained; VAL_SELECT selects the epoch."""
    if isinstance(config, MilConfig):
        # In a fold the gate compares on VAL_CALIB, so that VAL_SELECT is free.
        return _fit_evidence(
            model, context, (Split.TRAIN,) if context.fold is None else (Split.TRAIN, Split.VAL_SELECT)
        )
    select = _view_features(model, context, Split.VAL_SELECT)
    if isinstance(config, CvfmTrainedConfig):
        train = _view_features(model, context, Split.TRAIN)
        return fit_fusion(model, train, select, config=config, progress=context.progress)
    return FusionFit(best={}, history=({"epoch": 0, **evaluate_fusion(model, select)},), best_epoch=0)


def _fit_evidence(model: FusedClassifier, context: Context, splits: Sequence[Split]) -> FusionFit:
    """Fit the evidence of tiles to `splits`, on base margins of a probe that are cross-validated on the same rows.

    The margins of the model itself would be too good on the rows that it was trained on, and leave nothing to learn.
    """
    config, progress = context.settings(CvfmConfig), context.progress
    parts = [_view_features(model, context, split) for split in splits]
    features = layer_norm(torch.cat([part.features for part in parts]), parts[0].features.shape[-1:]).numpy()
    mask, labels = (torch.cat([getattr(part, name) for part in parts]).numpy() for name in ("mask", "labels"))
    groups = [row.group or row.sha256 for split in splits for row in context.rows(split)]
    description = model.classifier.description
    try:
        probe = fit_probe(
            FeatureBank(features[:, 0], description.pooling, description.layers),
            labels,
            groups,
            representations=[Representation(description.pooling, description.layers)],
            class_weights=lambda _: (1.0, 1.0),
            seed=config.seed,
            progress=progress,
            folds=grouped_folds(labels, groups, seed=config.seed),
        )
    except DataError as error:
        raise DataError(error.message, "add images of other places, or set phase4c=single_view") from error
    assert probe.out_of_fold is not None
    evidence = fit_evidence(
        features[:, 1:], mask[:, 1:], labels, probe.out_of_fold, groups, seed=config.seed, progress=progress
    )
    state = {"weight": torch.from_numpy(evidence.weight).float(), "bias": torch.tensor(evidence.bias).float()}
    load_into(model.fusion, state, source="the fitted evidence")
    row: EpochRow = {
        "epoch": 0,
        "penalty": evidence.penalty,
        "cross_validated_nll": min(evidence.path),
        "base_nll": evidence.base_nll,
    }
    return FusionFit(best=state, history=(row,), best_epoch=0)


def _cross_fit(
    model: FusedClassifier, context: Context, config: MultiViewFusionConfig, n_folds: int
) -> tuple[FusionFit, Tensor, Tensor]:
    """Fit the fusion in each of the first folds, on the classifier of this fold, and then on the images of all folds.

    Returns:
        The fusion that ships, and the out-of-fold logits (M, 2) of the fusions and of the single view.
    """
    assert isinstance(model.classifier, Classifier)
    classifiers = fold_classifiers(context.schema, model.classifier, n_folds)
    fold_of_rows, epochs = torch.tensor([fold for fold in context.fold_of_rows if fold < n_folds]), []
    fused, single_view = torch.empty(len(fold_of_rows), 2), torch.empty(len(fold_of_rows), 2)
    for number, (fold, classifier) in enumerate(zip(context.folds(), classifiers, strict=False)):
        torch.manual_seed(config.seed)
        of_fold = FusedClassifier(classifier, config.description, chunk_size=context.settings(LoaderConfig).batch_size)
        fitted = _fit(of_fold, fold, config)
        if config.description.has_weights:
            save_tensors(fold.schema.cvfm_weights, fitted.best)
        epochs.append(fitted.best_epoch)
        in_fold = fold_of_rows == number
        fused[in_fold] = fused_logits(of_fold, _view_features(of_fold, fold, Split.VAL_CALIB))
        features, _ = cached_features(fold, classifier, Split.VAL_CALIB)
        with torch.no_grad():
            single_view[in_fold] = classifier.head(features)
    if isinstance(config, MilConfig):
        return _fit_evidence(model, context, (Split.TRAIN,)), fused, single_view
    if not isinstance(config, CvfmTrainedConfig):
        return FusionFit(best={}, history=({"epoch": 0},), best_epoch=0), fused, single_view
    torch.manual_seed(config.seed)
    fitted = fit_fusion(
        model,
        _view_features(model, context, Split.TRAIN),
        None,
        config=config,
        progress=context.progress,
        stop_after=round(median(epochs)),
    )
    return fitted, fused, single_view


def _view_features(model: FusedClassifier, context: Context, split: Split) -> ViewFeatures:
    loader = context.settings(LoaderConfig)
    cache = ViewCache(context.schema.feature_cache_dir, model, loader=loader, progress=context.progress)
    return cache.features(context.rows(split), root=context.data_root, name=split.value)
