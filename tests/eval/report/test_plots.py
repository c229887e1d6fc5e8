import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import expit

from streetvision.eval import figures
from streetvision.eval.counts import Counts, confusion_counts
from streetvision.eval.predictions import Predictions
from streetvision.eval.reliability import ece_band
from streetvision.eval.report import plots
from streetvision.eval.resampling import Resampling
from streetvision.eval.stability import mcc_band
from streetvision.eval.thresholds import decide, plot_mcc_curve, select_threshold_max_mcc

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1], [82, 78])
MARGINS = RNG.normal(size=160) + 3 * (LABELS - 0.5)
P = expit(2 * MARGINS)
LOGITS = np.stack([-MARGINS, MARGINS], axis=1)
PREDICTIONS = Predictions(LABELS, P)
THRESHOLD, MCC, METRICS = select_threshold_max_mcc(LOGITS, LABELS, n_thresholds=200, return_curve=True)

BAND = mcc_band(PREDICTIONS, np.unique([*np.linspace(0, 1, 21), THRESHOLD]), Resampling(n_resamples=100))
PLOTS = {
    "roc": lambda: plots.roc_curve(PREDICTIONS, threshold=0.4, positive="roadwork"),
    "pr": lambda: plots.pr_curve(PREDICTIONS, threshold=0.4, positive="roadwork"),
    "confusion": lambda: plots.confusion_matrix(
        confusion_counts(LABELS, decide(P, 0.4)), class_names=("none", "roadwork")
    ),
    "reliability": lambda: plots.reliability_diagram(PREDICTIONS, positive="roadwork"),
    "before and after": lambda: plots.reliability_diagram(PREDICTIONS, before=P**2, positive="roadwork"),
    "mcc": lambda: plot_mcc_curve(METRICS, threshold=THRESHOLD),
    "mcc with band": lambda: plot_mcc_curve(METRICS, threshold=THRESHOLD, band=BAND, threshold_interval=(0.3, 0.6)),
    "threshold": lambda: plots.threshold_curve(BAND, threshold=THRESHOLD),
}


@pytest.fixture
def titles(monkeypatch):
    """The titles that are drawn, on one line each."""
    drawn = []
    original = Figure.suptitle
    monkeypatch.setattr(
        Figure,
        "suptitle",
        lambda self, text, **options: drawn.append(text.replace("\n", " ")) or original(self, text, **options),
    )
    return drawn


@pytest.mark.usefixtures("figures_as_drawn")
@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_the_same_bytes_for_any_user_style(name):
    first = PLOTS[name]()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "savefig.dpi": 20}):
        assert PLOTS[name]() == first
    picture = Image.open(io.BytesIO(first))
    assert (picture.format, picture.width) == ("PNG", 1200)
    assert "Software" not in picture.info
    assert len(first) < 200_000
    assert np.unique(np.asarray(picture.convert("L"))).size > 20


def test_titles_state_the_result(titles):
    counts = Counts(tp=75, tn=79, fp=3, fn=3)
    plots.confusion_matrix(counts, class_names=("none", "roadwork"))
    assert titles.pop() == '3 of 78 "roadwork" images missed, 3 of 82 others are false alarms'
    predictions = Predictions([0, 0, 0, 0, 1, 1, 1, 1], [0.1, 0.2, 0.3, 0.8, 0.2, 0.7, 0.8, 0.9])
    plots.roc_curve(predictions, threshold=0.5, positive="roadwork")
    assert titles.pop() == '75% of the "roadwork" images found, with 25.0% false alarms'
    plots.pr_curve(predictions, threshold=0.5, positive="roadwork")
    assert titles.pop() == '75% of the alarms are correct, with 75% of the "roadwork" images found'


def test_the_reliability_title_compares_the_error_with_chance(titles):
    p = np.random.default_rng(1).random(2000)
    labels = np.random.default_rng(2).random(2000) < p
    plots.reliability_diagram(Predictions(labels, p))
    plots.reliability_diagram(Predictions(labels, p**3))
    assert ", within the range" in titles[0]
    assert ", above the range" in titles[1]


def test_the_range_of_the_reliability_title_is_that_of_the_resampling(titles):
    p = np.random.default_rng(1).random(2000)
    predictions = Predictions(np.random.default_rng(2).random(2000) < p, p)
    resampling = Resampling(500, 0.5, 3)
    plots.reliability_diagram(predictions, resampling=resampling)
    assert f"(up to {ece_band(predictions, resampling)[1]:.1%})" in titles[0]


def test_the_mcc_curve_takes_the_metrics_or_the_curve(titles):
    plot_mcc_curve(METRICS, threshold=THRESHOLD)
    plot_mcc_curve(METRICS["curve"])
    assert titles == [
        f"Maximum MCC {MCC:.3f} at threshold {THRESHOLD:.4g}",
        f"Maximum MCC {METRICS['grid_mcc']:.3f} at threshold {METRICS['grid_threshold']:.4g}",
    ]
    assert plot_mcc_curve(METRICS["curve"], threshold=0.0).startswith(b"\x89PNG")


def test_the_band_gives_the_optimum_its_interval(titles):
    plot_mcc_curve(METRICS, threshold=THRESHOLD, band=BAND)
    (here,) = np.flatnonzero(BAND.thresholds == THRESHOLD)
    assert f"{MCC:.3f} [{BAND.low[here]:.3f}, {BAND.high[here]:.3f}]" in titles[0]


def test_the_threshold_title_compares_with_the_best_threshold(titles):
    plots.threshold_curve(BAND, threshold=THRESHOLD)
    best = f"{BAND.mcc.max():.3f}"
    assert titles[0].startswith(f"Threshold {THRESHOLD:.4g} has MCC {MCC:.3f};")
    assert titles[0].endswith(best)


def test_long_titles_have_lines_of_similar_length():
    lines = figures.wrapped("word " * 23).split("\n")
    assert max(map(len, lines)) <= figures.TITLE_CHARACTERS
    assert len(lines[-1]) > len(lines[0]) / 2


@pytest.mark.usefixtures("figures_as_drawn")
def test_one_class_can_be_drawn():
    negatives = Predictions(np.zeros(10), np.linspace(0, 1, 10))
    plots.reliability_diagram(negatives)
    plots.roc_curve(negatives, threshold=0.5)
    plots.pr_curve(Predictions(np.zeros(10), np.linspace(0, 0.4, 10)), threshold=0.5)
    plots.confusion_matrix(Counts(tp=0, tn=10, fp=0, fn=0))


def test_the_mcc_curve_has_two_panels_and_is_written_to_a_path(tmp_path, monkeypatch):
    lines, save = [], Figure.savefig

    def record(figure, *arguments, **options):
        lines.extend({line.get_label(): line.get_ydata() for line in axes.get_lines()} for axes in figure.axes)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    png = plot_mcc_curve(METRICS, tmp_path / "mcc_curve.png", threshold=THRESHOLD)
    assert (tmp_path / "mcc_curve.png").read_bytes() == png
    above, below = lines
    assert above["grid of 200"].tolist() == METRICS["curve"]["mcc"].tolist()
    for name in ("tp", "tn", "fp", "fn"):
        assert below[name.upper()].tolist() == METRICS["curve"][name].tolist()


@pytest.mark.slow
def test_pyplot_and_heavy_packages_stay_out():
    code = (
        "import sys; from streetvision.eval import bootstrap, predictions, reliability, thresholds;"
        "from streetvision.eval.report import contents, plots;"
        "heavy = {'torch', 'lightning', 'hydra', 'matplotlib', 'pandas'} & set(sys.modules); assert not heavy, heavy;"
        "plots.roc_curve(predictions.Predictions([0, 1], [0.1, 0.9]), threshold=0.5);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
