"""phase5_maccal: train phase 1's head anew on fixed features by MaC-Cal, and score VAL_CALIB with what comes out.

The new model is another model: it has a checkpoint and scores of its own, and phase5.method=mac_cal reads those.
"""

import torch

from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.split_contracts import Split
from streetvision.data.config import LoaderConfig
from streetvision.io.atomic import write_text_atomic
from streetvision.io.tensors import save_tensors
from streetvision.models.module import Classifier, make_head
from streetvision.models.pooling import pooled_dim
from streetvision.pipeline.artifacts import MAC_CAL_SCORES
from streetvision.pipeline.scores import make_scores, open_classifier
from streetvision.pipeline.steps.train_baseline import as_csv
from streetvision.training.callbacks import cpu_state_dict
from streetvision.training.config import MacCalConfig
from streetvision.training.features import FeatureCache
from streetvision.training.mac_cal import MacCalFit, fit_mac_cal


def run(context: Context) -> Outcome:
    """Fit on TRAIN, choose an epoch on VAL_SELECT, save, and score VAL_CALIB with the checkpoint as it lies on disk."""
    schema, classifier = context.schema, open_classifier(context, context.schema.phase1_checkpoint)
    fitted = _fit(classifier, context)
    head = {f"head.{name}": value for name, value in fitted.best.items()}
    save_tensors(schema.mac_cal_checkpoint, {**cpu_state_dict(classifier), **head})
    write_text_atomic(schema.mac_cal_metrics_csv, as_csv(fitted.history))
    make_scores(context, classifier.description, schema.mac_cal_checkpoint, MAC_CAL_SCORES)
    best = fitted.best_row
    return Outcome(
        f"epoch {fitted.best_epoch} of {len(fitted.history)} chosen, {best['retention']:.0%} of weights kept, "
        f"VAL_SELECT NLL {best['val_select_nll']:.3f}",
        dict(best),
    )


def _fit(classifier: Classifier, context: Context) -> MacCalFit:
    config, schema = context.settings(MacCalConfig), context.schema
    cache = FeatureCache(
        schema.feature_cache_dir, classifier, loader=context.settings(LoaderConfig), progress=context.progress
    )
    train, select = (
        cache.features(context.rows(split), root=context.data_root, name=split.value)
        for split in (Split.TRAIN, Split.VAL_SELECT)
    )
    torch.manual_seed(config.seed)
    head = make_head(classifier.description.head, pooled_dim(classifier.description.pooling, classifier.backbone.spec))
    return fit_mac_cal(head, train, select, config=config, progress=context.progress)
