"""How a step opens the scores of a split: through the gate that its phase was granted."""

from streetvision.contracts.errors import ArtifactError
from streetvision.contracts.phase import Context
from streetvision.contracts.split_contracts import Split, check_may_open
from streetvision.io.scores import Scores, load_scores, rows_digest

SCORES = ("val_calib_logits", "val_calib_labels", "val_calib_scores", "splits")
MAC_CAL_SCORES = ("mac_cal_logits", "mac_cal_labels", "mac_cal_scores", "splits")


def open_scores(context: Context, split: Split, artifacts: tuple[str, ...] = SCORES) -> Scores:
    """Scores, phase 1's or others, known to be of `split`; raises LeakageError when the phase may not open it."""
    check_may_open(context.phase, split)
    logits, labels, record = (context.schema.path(name) for name in artifacts[:3])
    scores = load_scores(logits=logits, labels=labels, record=record)
    if scores.split is not split:
        raise ArtifactError(f"{str(record)!r} holds scores of {scores.split}, not of {split}")
    return scores


def groups_of(context: Context, scores: Scores) -> list[str | None]:
    """The group of each row scored; raises ArtifactError when splits.json has other rows by now."""
    rows = context.rows(scores.split)
    if rows_digest(rows) != scores.rows_sha256:
        raise ArtifactError(
            f"the scores of phase1 belong to other rows than splits.json has for {scores.split.value}",
            f"run phase1 again: pipeline.phases=[phase1,{context.phase}]",
        )
    return [row.group for row in rows]
