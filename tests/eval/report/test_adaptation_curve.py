import pytest
from matplotlib.figure import Figure

from streetvision.eval.report.adaptation_curve import adaptation_curve

FIRST = {"epoch": 0, "select_loss": 4.9, "alignment": 1.2, "uniformity": -1.0, "knn_mcc": 0.2, "effective_rank": 96.4}
ROWS = [FIRST, *(FIRST | {"epoch": n, "train_loss": 5.0 / n, "effective_rank": 90.0 / n} for n in (1, 2))]


@pytest.fixture
def drawn(monkeypatch):
    """The title and the lines (label -> points) of the last picture that is drawn."""
    found = {}
    save = Figure.savefig

    def watch(figure, *arguments, **options):
        lines = [line for axes in figure.axes for line in axes.get_lines()]
        found.update({line.get_label(): line.get_xydata().tolist() for line in lines}, title=figure.get_suptitle())
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", watch)
    return found


def test_it_shows_every_row_and_the_loss_of_training_from_the_first_epoch_on(drawn):
    assert adaptation_curve(ROWS, method="simclr").startswith(b"\x89PNG")
    assert drawn["loss, TRAIN"] == [[1, 5.0], [2, 2.5]]
    assert drawn["loss, VAL_SELECT"] == [[0, 4.9], [1, 4.9], [2, 4.9]]
    assert {"alignment", "uniformity", "MCC of 10 neighbours"} < set(drawn)
    assert " ".join(drawn["title"].split()) == "simclr: effective rank of the embeddings 96, then 45"


def test_the_picture_is_the_same_bytes_twice():
    assert adaptation_curve(ROWS, method="byol") == adaptation_curve(ROWS, method="byol")
