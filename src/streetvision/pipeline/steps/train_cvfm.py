"""phase4c_cvfm: look at each image in many views, fuse them as phase4c.mode says, and score VAL_CALIB with the result.

Backbone and head are phase 1's and stay as they are. A fusion that is trained learns from TRAIN, and VAL_SELECT chooses
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
from streetvision.models.module import Classifier
from streetvision.pipeline.artifacts import CVFM_SCORES
from streetvision.pipeline.scores import open_classifier, save_val_calib
from streetvision.pipeline.steps.train_baseline import as_csv
from streetvision.training.config import CvfmConfig, CvfmInferenceConfig, CvfmTrainedConfig, MultiViewFusionConfig
from streetvision.training.features import FeatureCache, ViewCache, ViewFeatures
from streetvision.training.fusion import FusionFit, argmax_mcc, evaluate_fusion, fit_fusion


def run(context: Context) -> Outcome:
    """Fit where the mode learns, save, and score VAL_CALIB with the fusion as it lies on disk."""
    schema, config = context.schema, context.settings(CvfmConfig)
    assert isinstance(config, MultiViewFusionConfig)
    chunk_size = context.settings(LoaderConfig).batch_size
    torch.manual_seed(config.seed)
    model = FusedClassifier(
        open_classifier(context, schema.phase1_checkpoint), config.description, chunk_size=chunk_size
    )
    fitted, alone = _fit(model, context), _without_views(model, context)
    learns = config.mode == "cvfm_trained"
    schema.cvfm_weights.unlink(missing_ok=True)
    if learns:
        save_tensors(schema.cvfm_weights, fitted.best)
    write_json_atomic(schema.cvfm_config_json, config.description.model_dump(mode="json"))
    write_text_atomic(schema.cvfm_metrics_csv, as_csv(fitted.history))
    weights = schema.cvfm_weights if learns else None
    reference = FusionRef(
        description_sha256=sha256_file(schema.cvfm_config_json),
        weights_sha256=sha256_file(weights) if weights else None,
    )
    classifier = open_classifier(context, schema.phase1_checkpoint)
    saved = load_fused(classifier, config.description, weights, chunk_size=chunk_size)
    save_val_calib(context, saved, schema.phase1_checkpoint, artifacts=CVFM_SCORES, fusion=reference)
    if (found := float(fitted.best_row["val_select_mcc"])) < alone:
        context.progress.warn(
            f"fused views reach MCC {found:.3f} on VAL_SELECT, and the single view {alone:.3f}: "
            "leave out phase4c_cvfm, or try other phase4c.views or another phase4c.mode"
        )
    metrics: Metrics = {**fitted.best_row, "single_view_val_select_mcc": alone}
    return Outcome(_summary(config, fitted, alone), metrics, extra_outputs=(weights,) if weights else ())


def _without_views(model: FusedClassifier, context: Context) -> float:
    """VAL_SELECT's MCC of phase 1 as it would ship without this phase."""
    assert isinstance(model.classifier, Classifier)
    loader = context.settings(LoaderConfig)
    cache = FeatureCache(context.schema.feature_cache_dir, model.classifier, loader=loader, progress=context.progress)
    rows = context.rows(Split.VAL_SELECT)
    features, labels = cache.features(rows, root=context.data_root, name=Split.VAL_SELECT.value)
    with torch.no_grad():
        return argmax_mcc(model.classifier.head(features), labels)


def _fit(model: FusedClassifier, context: Context) -> FusionFit:
    config = context.settings(CvfmConfig)
    select = _seen(model, context, Split.VAL_SELECT)
    if isinstance(config, CvfmTrainedConfig):
        train = _seen(model, context, Split.TRAIN)
        return fit_fusion(model, train, select, config=config, progress=context.progress)
    return FusionFit(best={}, history=({"epoch": 0, **evaluate_fusion(model, select)},), best_epoch=0)


def _seen(model: FusedClassifier, context: Context, split: Split) -> ViewFeatures:
    loader = context.settings(LoaderConfig)
    cache = ViewCache(context.schema.feature_cache_dir, model, loader=loader, progress=context.progress)
    return cache.features(context.rows(split), root=context.data_root, name=split.value)


def _summary(config: MultiViewFusionConfig, fitted: FusionFit, alone: float) -> str:
    best, mode = fitted.best_row, config.mode
    how = f" by {config.inference.mode}" if isinstance(config, CvfmInferenceConfig) else ""
    beside = f"{alone:.3f} by the single view"
    found = f"{mode}{how}, {config.views.count} views an image; VAL_SELECT MCC {best['val_select_mcc']:.3f} ({beside})"
    if not isinstance(config, CvfmTrainedConfig):
        return found
    gain = best["val_select_mcc"] - fitted.history[0]["val_select_mcc"]
    return f"{found}, {gain:+.3f} over the mean of views, epoch {fitted.best_epoch} of {config.epochs} chosen"
