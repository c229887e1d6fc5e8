import pytest
from matplotlib.figure import Figure

from streetvision.eval.report.training_plots import MIN_SPAN, adaptation_curve, learning_curve

FIRST = {"epoch": 0, "select_loss": 4.9, "alignment": 1.2, "uniformity": -1.0, "knn_mcc": 0.2, "effective_rank": 96.4}
ADAPTATION = [FIRST, *(FIRST | {"epoch": n, "train_loss": 5.0 / n, "effective_rank": 90.0 / n} for n in (1, 2))]
TRAINING = [
    {"epoch": n, "train_loss": 1.0 / n, "val_select_mcc": 0.2 * n, "val_select_nll": 0.9 / n, "ema_val_select_mcc": 0.1}
    for n in (1, 2, 3)
]


@pytest.fixture
def drawn(monkeypatch):
    """The title and the lines (label -> points) of the last plot."""
    drawn_lines = {}
    save = Figure.savefig

    def record(figure, *arguments, **options):
        lines = [line for axes in figure.axes for line in axes.get_lines()]
        drawn_lines.update(
            {line.get_label(): line.get_xydata().tolist() for line in lines}, title=figure.get_suptitle()
        )
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return drawn_lines


def test_the_adaptation_curve_shows_every_row_and_the_loss_of_training_from_the_first_epoch_on(drawn):
    assert adaptation_curve(ADAPTATION, method="simclr").startswith(b"\x89PNG")
    assert drawn["loss, TRAIN"] == [[1, 5.0], [2, 2.5]]
    assert drawn["loss, VAL_SELECT"] == [[0, 4.9], [1, 4.9], [2, 4.9]]
    assert {"alignment", "uniformity", "MCC of 10 neighbors"} < set(drawn)
    assert " ".join(drawn["title"].split()) == "simclr: effective rank of the embeddings 96 -> 45"


def test_epochs_are_integers_and_a_small_change_is_drawn_small(monkeypatch):
    panels = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: panels.extend(figure.axes))
    learning_curve(TRAINING[:1], selected=1)
    adaptation_curve(ADAPTATION[:2], method="simclr")
    assert all(tick == round(tick) for axes in panels for tick in axes.get_xticks())
    assert all(high - low >= MIN_SPAN - 1e-9 for low, high in (axes.get_ylim() for axes in panels))


@pytest.mark.usefixtures("figures_as_drawn")
def test_the_adaptation_curve_is_the_same_bytes_twice():
    assert adaptation_curve(ADAPTATION, method="byol") == adaptation_curve(ADAPTATION, method="byol")


@pytest.mark.usefixtures("figures_as_drawn")
@pytest.mark.slow
def test_the_learning_curve_is_the_same_bytes_twice_and_moves_with_the_rows():
    plain = [{k: v for k, v in row.items() if not k.startswith("ema")} for row in TRAINING]
    pictures = [
        learning_curve(TRAINING, selected=3),
        learning_curve(plain, selected=3),
        learning_curve(plain, selected=2),
    ]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == 3
    assert learning_curve(TRAINING, selected=3) == pictures[0]
