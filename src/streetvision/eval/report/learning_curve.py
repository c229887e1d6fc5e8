"""The picture of a training run: what was minimised on TRAIN, and what VAL_SELECT said of it."""

from collections.abc import Mapping, Sequence

from streetvision.eval.report.plots import BLUE, GREY, ORANGE, picture


def learning_curve(history: Sequence[Mapping[str, float | int]], *, chosen: int) -> bytes:
    """PNG of the rows of all epochs, in order; `chosen` is the epoch that ships, counted from 1."""
    epochs = [row["epoch"] for row in history]
    best = history[chosen - 1]
    found = max(float(best["val_select_mcc"]), float(best.get("ema_val_select_mcc", -1.0)))
    with picture(f"VAL_SELECT prefers epoch {chosen} of {len(history)}, with MCC {found:.3f}") as (figure, png):
        above, below = figure.subplots(2, sharex=True)
        above.plot(epochs, [row["val_select_mcc"] for row in history], color=BLUE, marker=".", label="MCC")
        if "ema_val_select_mcc" in best:
            averaged = [row["ema_val_select_mcc"] for row in history]
            above.plot(epochs, averaged, color=ORANGE, marker=".", label="MCC of the averaged weights")
        below.plot(epochs, [row["train_loss"] for row in history], color=GREY, marker=".", label="loss on TRAIN")
        below.plot(
            epochs, [row["val_select_nll"] for row in history], color=BLUE, marker=".", label="NLL on VAL_SELECT"
        )
        for axes in (above, below):
            axes.axvline(chosen, color=GREY, linewidth=1.2, linestyle=(0, (4, 4)))
            axes.legend()
        below.set_xlabel("epoch")
    return png.getvalue()
