"""`streetvision dev bench reward`: the subnet reward of 1,000 streams of 1,000 predictions, and published means."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, interleaved_median
from streetvision.contracts.progress import Progress
from streetvision.subnet.reward import Challenges, final_score

STREAMS, STEPS = 1000, 1000
PUBLISHED = {
    (0.98, 0.98, 0.0): 0.917,
    (0.95, 0.95, 0.0): 0.794,
    (0.95, 0.95, 0.05): 0.751,
    (0.92, 0.98, 0.0): 0.803,
    (0.90, 0.90, 0.0): 0.620,
    (0.85, 0.99, 0.0): 0.680,
    (0.80, 0.80, 0.0): 0.314,
    (0.50, 0.50, 0.0): 0.018,
}
"""(TPR, TNR, share of late predictions) -> mean reward, as the subnet's own logic was replayed; without an error."""


def bench_reward(_: Progress) -> list[Figure]:
    """Seconds for reward and score of every stream at every step, and our means next to the published ones."""
    labels = np.repeat([0, 1], 500)

    def draw() -> Challenges:
        return Challenges.draw(labels, streams=STREAMS, steps=STEPS, seed=0)

    challenges = draw()
    ours, floor = interleaved_median(lambda: final_score(challenges.rewards(labels)), draw)
    figures = [Figure(f"reward and score of {STREAMS:,} streams x {STEPS:,} challenges", ours, "drawing them", floor)]
    for (tpr, tnr, late), published in PUBLISHED.items():
        means = means_of_streams(tpr, tnr, late=late)
        name = f"mean reward at TPR {tpr:.2f}, TNR {tnr:.2f}{f', {late:.0%} late' if late else ''}"
        name = f"{name}; standard deviation of a stream {means.std():.3f}"
        figures.append(Figure(name, float(means.mean()), "published", published, ""))
    return figures


def means_of_streams(tpr: float, tnr: float, *, late: float, n: int = 1000) -> NDArray[np.float64]:
    """The mean reward of each of 300 streams of 1,000 challenges, of a miner with these rates."""
    labels = np.repeat([0, 1], n)
    decisions = np.concatenate([np.arange(n) >= tnr * n, np.arange(n) < tpr * n])
    challenges = Challenges.draw(labels, streams=300, steps=1000, seed=0)
    means: NDArray[np.float64] = challenges.rewards(decisions, timeout_fraction=late).mean(axis=1)
    return means
