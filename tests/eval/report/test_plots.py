import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import expit

from streetvision.contracts.errors import DataError
from streetvision.eval.counts import Counts, confusion_counts
from streetvision.eval.report import plots
from streetvision.eval.resampling import Resampling
from streetvision.eval.stability import mcc_band
from streetvision.eval.thresholds import decide, select_threshold_max_mcc

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1], [82, 78])
MARGINS = RNG.normal(size=160) + 3 * (LABELS - 0.5)
P = expit(2 * MARGINS)
LOGITS = np.stack([-MARGINS, MARGINS], axis=1)
THRESHOLD, MCC, FIGURES = select_threshold_max_mcc(LOGITS, LABELS, n_thresholds=200, return_curve=True)

BAND = mcc_band(LABELS, P, np.unique([*np.linspace(0, 1, 21), THRESHOLD]), Resampling(n_resamples=100))
PICTURES = {
    "roc": lambda: plots.roc_curve(LABELS, P, threshold=0.4, positive="roadwork"),
    "pr": lambda: plots.pr_curve(LABELS, P, threshold=0.4, positive="roadwork"),
    "confusion": lambda: plots.confusion_matrix(
        confusion_counts(LABELS, decide(P, 0.4)), class_names=("none", "roadwork")
    ),
    "reliability": lambda: plots.reliability_diagram(LABELS, P, positive="roadwork"),
    "before and after": lambda: plots.reliability_diagram(LABELS, P, before=P**2, positive="roadwork"),
    "mcc": lambda: plots.plot_mcc_curve(FIGURES, threshold=THRESHOLD),
    "mcc with band": lambda: plots.plot_mcc_curve(FIGURES, threshold=THRESHOLD, band=BAND, moves=(0.3, 0.6)),
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


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_the_same_bytes_whatever_the_users_style(name):
    first = PICTURES[name]()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "savefig.dpi": 20}):
        assert PICTURES[name]() == first
    picture = Image.open(io.BytesIO(first))
    assert (picture.format, picture.width) == ("PNG", 1200)
    assert "Software" not in picture.info
    assert len(first) < 200_000
    assert np.unique(np.asarray(picture.convert("L"))).size > 20


def test_titles_say_what_is_seen(titles):
    counts = Counts(tp=75, tn=79, fp=3, fn=3)
    plots.confusion_matrix(counts, class_names=("none", "roadwork"))
    assert titles.pop() == "At this threshold 3 of 78 roadwork images are missed and 3 of 82 others raise a false alarm"
    labels, p = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0.1, 0.2, 0.3, 0.8, 0.2, 0.7, 0.8, 0.9])
    plots.roc_curve(labels, p, threshold=0.5, positive="roadwork")
    assert titles.pop() == "Finding 75% of the roadwork images costs 25.0% false alarms"
    plots.pr_curve(labels, p, threshold=0.5, positive="roadwork")
    assert titles.pop() == "75% of the alarms are right when 75% of roadwork is found"


def test_reliability_title_tells_chance_from_error(titles):
    p = np.random.default_rng(1).random(2000)
    labels = np.random.default_rng(2).random(2000) < p
    plots.reliability_diagram(labels, p)
    plots.reliability_diagram(labels, p**3)
    assert "no more than chance explains" in titles[0]
    assert ", more than chance explains" in titles[1]


def test_mcc_curve_takes_the_figures_or_the_curve(titles):
    plots.plot_mcc_curve(FIGURES, threshold=THRESHOLD)
    plots.plot_mcc_curve(FIGURES["curve"])
    assert titles[0] == f"MCC is highest, {MCC:.3f}, with a threshold of {THRESHOLD:.4g}"
    assert (
        titles[1] == f"MCC is highest, {FIGURES['grid_mcc']:.3f}, with a threshold of {FIGURES['grid_threshold']:.4g}"
    )
    assert plots.plot_mcc_curve(FIGURES["curve"], threshold=0.0).startswith(b"\x89PNG")


def test_the_band_gives_the_optimum_its_interval(titles):
    plots.plot_mcc_curve(FIGURES, threshold=THRESHOLD, band=BAND)
    (here,) = np.flatnonzero(BAND.thresholds == THRESHOLD)
    assert f"{MCC:.3f} [{BAND.low[here]:.3f}, {BAND.high[here]:.3f}]" in titles[0]


def test_hindsight_is_named_as_such(titles):
    plots.threshold_curve(BAND, threshold=THRESHOLD)
    best = f"{BAND.mcc.max():.3f}"
    assert titles[0] == f"The threshold {THRESHOLD:.4g} gives MCC {MCC:.3f}; in hindsight the best of all gives {best}"


def test_long_titles_have_no_lonely_last_word():
    lines = plots._wrapped("word " * 23).split("\n")
    assert max(map(len, lines)) <= plots.TITLE_LETTERS
    assert len(lines[-1]) > len(lines[0]) / 2


def test_one_class_and_untouched_classes_can_be_drawn():
    zeros = np.zeros(10)
    plots.reliability_diagram(zeros, np.linspace(0, 1, 10))
    plots.roc_curve(zeros, np.linspace(0, 1, 10), threshold=0.5)
    plots.pr_curve(zeros, np.linspace(0, 0.4, 10), threshold=0.5)
    plots.confusion_matrix(Counts(tp=0, tn=10, fp=0, fn=0))


def test_unusable_arrays_are_errors():
    with pytest.raises(DataError, match="probabilities"):
        plots.roc_curve([0, 1], [0.2, 1.2], threshold=0.5)


def test_pyplot_and_heavy_packages_stay_out():
    code = (
        "import sys; from streetvision.eval import bootstrap, reliability, thresholds;"
        "from streetvision.eval.report import contents, plots;"
        "heavy = {'torch', 'lightning', 'hydra', 'matplotlib', 'pandas'} & set(sys.modules); assert not heavy, heavy;"
        "import numpy; plots.roc_curve(numpy.array([0, 1]), numpy.array([0.1, 0.9]), threshold=0.5);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
