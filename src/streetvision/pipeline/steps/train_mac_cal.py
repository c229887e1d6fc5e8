"""phase5_maccal: retrain phase 1's head with MaC-Cal on cached features, and score VAL_CALIB with the new model.

The retrained model has a checkpoint and scores of its own, which phase5.method=mac_cal reads.
"""

import torch

from streetvision.contracts.errors import ConfigError
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.split_contracts import Split
from streetvision.io.atomic import write_text_atomic
from streetvision.io.tensors import save_tensors
from streetvision.models.module import make_head
from streetvision.pipeline.artifacts import MAC_CAL_SCORES
from streetvision.pipeline.scores import cached_features, make_scores, open_classifier
from streetvision.pipeline.training_outputs import metrics_csv
from streetvision.training.callbacks import cpu_state_dict
from streetvision.training.config import MacCalConfig
from streetvision.training.mac_cal import fit_mac_cal


def run(context: Context) -> Outcome:
    """Fit on TRAIN, select an epoch on VAL_SELECT, and score VAL_CALIB with the saved checkpoint."""
    schema, config = context.schema, context.settings(MacCalConfig)
    if context.n_folds > 0:
        raise ConfigError(
            "phase5_maccal needs VAL_CALIB, which data.protocol=cross_fit does not set aside",
            "set data.protocol=split, or leave out phase5_maccal and phase5.method=mac_cal",
        )
    classifier = open_classifier(context.schema, schema.phase1_checkpoint)
    train, select = (cached_features(context, classifier, split) for split in (Split.TRAIN, Split.VAL_SELECT))
    torch.manual_seed(config.seed)
    description = classifier.description
    head = make_head(description.head, classifier.width)
    fitted = fit_mac_cal(head, train, select, config=config, progress=context.progress)

    head_state = {f"head.{name}": value for name, value in fitted.best.items()}
    save_tensors(schema.mac_cal_checkpoint, {**cpu_state_dict(classifier), **head_state})
    write_text_atomic(schema.mac_cal_metrics_csv, metrics_csv(fitted.history))
    make_scores(context, schema.mac_cal_checkpoint, MAC_CAL_SCORES)
    best = fitted.best_row
    return Outcome(
        f"epoch {fitted.best_epoch} of {len(fitted.history)}, {best['retention']:.0%} of the weights kept; "
        f"VAL_SELECT NLL {best['val_select_nll']:.3f}",
        dict(best),
    )
