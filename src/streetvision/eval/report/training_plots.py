"""Plots of a training run from its rows of metrics, as PNG bytes."""

from collections.abc import Mapping, Sequence

from streetvision.eval.figures import BLUE, DASHED, GREY, ORANGE, new_figure


def learning_curve(history: Sequence[Mapping[str, float | int]], *, selected: int) -> bytes:
    """Loss on TRAIN, and MCC and NLL on VAL_SELECT, by epoch; `selected` is the epoch of the checkpoint, from 1."""
    epochs = [row["epoch"] for row in history]
    row = history[selected - 1]
    best = max(float(row["val_select_mcc"]), float(row.get("ema_val_select_mcc", -1.0)))
    with new_figure(f"Epoch {selected} of {len(history)} selected: VAL_SELECT MCC {best:.3f}") as (figure, png):
        above, below = figure.subplots(2, sharex=True)
        above.plot(epochs, [row["val_select_mcc"] for row in history], color=BLUE, marker=".", label="MCC")
        if "ema_val_select_mcc" in row:
            averaged = [row["ema_val_select_mcc"] for row in history]
            above.plot(epochs, averaged, color=ORANGE, marker=".", label="MCC of the averaged weights")
        below.plot(epochs, [row["train_loss"] for row in history], color=GREY, marker=".", label="loss on TRAIN")
        below.plot(
            epochs, [row["val_select_nll"] for row in history], color=BLUE, marker=".", label="NLL on VAL_SELECT"
        )
        for axes in (above, below):
            axes.axvline(selected, color=GREY, linewidth=1.2, linestyle=DASHED)
            axes.legend()
        below.set_xlabel("epoch")
    return png.getvalue()


def adaptation_curve(history: Sequence[Mapping[str, float | int]], *, method: str) -> bytes:
    """Loss, alignment, uniformity and k-NN MCC of a self-supervised adaptation by epoch.

    The first row, epoch 0, is measured before training and has no training loss.
    """
    epochs = [row["epoch"] for row in history]
    before, after = history[0]["effective_rank"], history[-1]["effective_rank"]
    with new_figure(f"{method}: effective rank of the embeddings {before:.0f} -> {after:.0f}") as (figure, png):
        above, middle, below = figure.subplots(3, sharex=True)
        above.plot(epochs[1:], [row["train_loss"] for row in history[1:]], color=GREY, marker=".", label="loss, TRAIN")
        above.plot(epochs, [row["select_loss"] for row in history], color=BLUE, marker=".", label="loss, VAL_SELECT")
        middle.plot(epochs, [row["alignment"] for row in history], color=BLUE, marker=".", label="alignment")
        middle.plot(epochs, [row["uniformity"] for row in history], color=ORANGE, marker=".", label="uniformity")
        below.plot(epochs, [row["knn_mcc"] for row in history], color=GREY, marker=".", label="MCC of 10 neighbors")
        for axes in (above, middle, below):
            axes.legend()
        below.set_xlabel("epoch")
    return png.getvalue()
