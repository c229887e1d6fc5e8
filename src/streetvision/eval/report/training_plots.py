"""Plots of a training run from its rows of metrics, as PNG bytes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from streetvision.eval.figures import BLUE, DASHED, GRAY, HEIGHT, ORANGE, legend_above, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_SPAN = 0.1
"""Smallest range of an axis of values, so that a small change is drawn small."""


def learning_curve(history: Sequence[Mapping[str, float | int]], *, selected: int) -> bytes:
    """Loss on TRAIN, and MCC and NLL on VAL_SELECT, by epoch; `selected` is the epoch of the checkpoint, from 1.

    Without a selection, only the loss.
    """
    epochs = [row["epoch"] for row in history]
    row = history[selected - 1]
    if "val_select_mcc" not in row:
        with new_figure(f"Loss on TRAIN after {len(history)} epochs: {row['train_loss']:.3f}") as (figure, png):
            axes = figure.subplots()
            axes.plot(epochs, [row["train_loss"] for row in history], color=GRAY, marker=".", label="loss on TRAIN")
            _finish((axes,))
        return png.getvalue()
    best = max(float(row["val_select_mcc"]), float(row.get("ema_val_select_mcc", -1.0)))
    with new_figure(f"Epoch {selected} of {len(history)} selected: VAL_SELECT MCC {best:.3f}") as (figure, png):
        above, below = figure.subplots(2, sharex=True)
        above.plot(epochs, [row["val_select_mcc"] for row in history], color=BLUE, marker=".", label="MCC")
        if "ema_val_select_mcc" in row:
            averaged = [row["ema_val_select_mcc"] for row in history]
            above.plot(epochs, averaged, color=ORANGE, marker=".", label="MCC of the averaged weights")
        below.plot(epochs, [row["train_loss"] for row in history], color=GRAY, marker=".", label="loss on TRAIN")
        below.plot(
            epochs, [row["val_select_nll"] for row in history], color=BLUE, marker=".", label="NLL on VAL_SELECT"
        )
        for axes in (above, below):
            axes.axvline(selected, color=GRAY, linewidth=1.2, linestyle=DASHED)
        _finish((above, below))
    return png.getvalue()


def adaptation_curve(history: Sequence[Mapping[str, float | int]], *, method: str) -> bytes:
    """Loss, alignment, uniformity and k-NN MCC of a self-supervised adaptation by epoch.

    The first row, epoch 0, is measured before training and has no training loss.
    """
    epochs = [row["epoch"] for row in history]
    before, after = history[0]["effective_rank"], history[-1]["effective_rank"]
    title = f"{method}: effective rank of the embeddings {before:.0f} -> {after:.0f}"
    with new_figure(title, HEIGHT + 1.2) as (figure, png):
        above, middle, below = figure.subplots(3, sharex=True)
        above.plot(epochs[1:], [row["train_loss"] for row in history[1:]], color=GRAY, marker=".", label="loss, TRAIN")
        above.plot(epochs, [row["select_loss"] for row in history], color=BLUE, marker=".", label="loss, VAL_SELECT")
        middle.plot(epochs, [row["alignment"] for row in history], color=BLUE, marker=".", label="alignment")
        middle.plot(epochs, [row["uniformity"] for row in history], color=ORANGE, marker=".", label="uniformity")
        below.plot(epochs, [row["knn_mcc"] for row in history], color=GRAY, marker=".", label="MCC of 10 neighbors")
        _finish((above, middle, below))
    return png.getvalue()


def _finish(panels: "Sequence[Axes]") -> None:
    """Legends, visible single points, integer epochs, and a range of values of at least MIN_SPAN."""
    for axes in panels:
        for line in axes.get_lines():
            if np.size(line.get_xdata()) == 1:
                line.set(marker="o", markersize=8)
        legend_above(axes)
        low, high = axes.get_ylim()
        missing = max(0.0, MIN_SPAN - (high - low))
        axes.set_ylim(low - missing / 2, high + missing / 2)
    panels[-1].locator_params(axis="x", integer=True, min_n_ticks=1)
    panels[-1].set_xlabel("epoch")
