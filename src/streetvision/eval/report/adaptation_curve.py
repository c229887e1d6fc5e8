"""The picture of an adaptation without labels: the loss, and whether the embeddings still tell images apart."""

from collections.abc import Mapping, Sequence

from streetvision.eval.report.plots import BLUE, GREY, ORANGE, picture


def adaptation_curve(history: Sequence[Mapping[str, float | int]], *, method: str) -> bytes:
    """PNG of the rows of all epochs, in order, the first one (epoch 0) before training."""
    epochs = [row["epoch"] for row in history]
    before, after = history[0]["effective_rank"], history[-1]["effective_rank"]
    with picture(f"{method}: effective rank of the embeddings {before:.0f}, then {after:.0f}") as (figure, png):
        above, middle, below = figure.subplots(3, sharex=True)
        above.plot(epochs[1:], [row["train_loss"] for row in history[1:]], color=GREY, marker=".", label="loss, TRAIN")
        above.plot(epochs, [row["select_loss"] for row in history], color=BLUE, marker=".", label="loss, VAL_SELECT")
        middle.plot(epochs, [row["alignment"] for row in history], color=BLUE, marker=".", label="alignment")
        middle.plot(epochs, [row["uniformity"] for row in history], color=ORANGE, marker=".", label="uniformity")
        below.plot(epochs, [row["knn_mcc"] for row in history], color=GREY, marker=".", label="MCC of 10 neighbours")
        for axes in (above, middle, below):
            axes.legend()
        below.set_xlabel("epoch")
    return png.getvalue()
