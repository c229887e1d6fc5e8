"""phase4c_cvfm: fuse several views of each image as phase4c.mode defines, and score VAL_CALIB with the fusion.

Backbone and head are those of phase 1 and do not change. A trained fusion is fitted on TRAIN, and VAL_SELECT selects
its epoch.
"""

import torch

from streetvision.contracts.phase import Context, Metrics, Outcome
from streetvision.contracts.policies import FusionRef
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.io.atomic import sha256_file, write_json_atomic, write_text_atomic
from streetvision.io.tensors import save_tensors
from streetvision.models.fused import FusedClassifier, load_fused
from streetvision.pipeline.artifacts import CVFM_SCORES
from streetvision.pipeline.scores import cached_features, open_classifier, save_val_calib
from streetvision.pipeline.training_outputs import metrics_csv
from streetvision.training.config import CvfmConfig, CvfmInferenceConfig, CvfmTrainedConfig, MultiViewFusionConfig
from streetvision.training.features import ViewCache, ViewFeatures
from streetvision.training.fusion import FusionFit, argmax_mcc, evaluate_fusion, fit_fusion


def run(context: Context) -> Outcome:
    """Fit the fusion if its mode is trained, and score VAL_CALIB with the saved weights."""
    schema, config = context.schema, context.settings(CvfmConfig)
    assert isinstance(config, MultiViewFusionConfig)
    chunk_size = context.settings(LoaderConfig).batch_size
    torch.manual_seed(config.seed)
    classifier = open_classifier(context, schema.phase1_checkpoint)
    model = FusedClassifier(classifier, config.description, chunk_size=chunk_size)
    select = _view_features(model, context, Split.VAL_SELECT)
    if isinstance(config, CvfmTrainedConfig):
        train = _view_features(model, context, Split.TRAIN)
        fitted = fit_fusion(model, train, select, config=config, progress=context.progress)
    else:
        fitted = FusionFit(best={}, history=({"epoch": 0, **evaluate_fusion(model, select)},), best_epoch=0)
    # Phase 1 as it would be exported without this phase.
    features, labels = cached_features(context, classifier, Split.VAL_SELECT)
    with torch.no_grad():
        single_view_mcc = argmax_mcc(classifier.head(features), labels)

    schema.cvfm_weights.unlink(missing_ok=True)  # of an earlier run in another mode
    weights = None
    if isinstance(config, CvfmTrainedConfig):
        weights = schema.cvfm_weights
        save_tensors(weights, fitted.best)
    write_json_atomic(schema.cvfm_config_json, config.description.model_dump(mode="json"))
    write_text_atomic(schema.cvfm_metrics_csv, metrics_csv(fitted.history))
    reference = FusionRef(
        description_sha256=sha256_file(schema.cvfm_config_json),
        weights_sha256=sha256_file(weights) if weights else None,
    )
    classifier = open_classifier(context, schema.phase1_checkpoint)
    saved = load_fused(classifier, config.description, weights, chunk_size=chunk_size)
    save_val_calib(context, saved, schema.phase1_checkpoint, artifacts=CVFM_SCORES, fusion=reference)

    mcc = float(fitted.best_row["val_select_mcc"])
    if mcc < single_view_mcc:
        context.progress.warn(
            f"the fusion has MCC {mcc:.3f} on VAL_SELECT, the single view {single_view_mcc:.3f}: "
            "leave out phase4c_cvfm, or try other phase4c.views or another phase4c.mode"
        )
    by = f" by {config.inference.mode}" if isinstance(config, CvfmInferenceConfig) else ""
    summary = (
        f"{config.mode}{by}, {config.views.count} views; VAL_SELECT MCC {mcc:.3f} (single view {single_view_mcc:.3f})"
    )
    if isinstance(config, CvfmTrainedConfig):
        gain = mcc - fitted.history[0]["val_select_mcc"]
        summary += f", {gain:+.3f} over the mean of views; epoch {fitted.best_epoch} of {config.epochs}"
    metrics: Metrics = {**fitted.best_row, "single_view_val_select_mcc": single_view_mcc}
    return Outcome(summary, metrics, extra_outputs=(weights,) if weights else ())


def _view_features(model: FusedClassifier, context: Context, split: Split) -> ViewFeatures:
    loader = context.settings(LoaderConfig)
    cache = ViewCache(context.schema.feature_cache_dir, model, loader=loader, progress=context.progress)
    return cache.features(context.rows(split), root=context.data_root, name=split.value)
