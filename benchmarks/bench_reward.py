"""`streetvision dev bench reward`: the subnet reward of 1,000 streams of 1,000 predictions, and drawing them."""

import numpy as np

from benchmarks.figures import Figure, interleaved_median
from streetvision.contracts.progress import Progress
from streetvision.subnet.reward import Challenges, final_score

STREAMS, STEPS = 1000, 1000


def bench_reward(_: Progress) -> list[Figure]:
    """Seconds for reward and score of every stream at every step."""
    labels = np.repeat([0, 1], 500)

    def draw() -> Challenges:
        return Challenges.draw(labels, streams=STREAMS, steps=STEPS, seed=0)

    challenges = draw()
    ours, floor = interleaved_median(lambda: final_score(challenges.rewards(labels)), draw)
    return [Figure(f"reward and score of {STREAMS:,} streams x {STEPS:,} challenges", ours, "drawing them", floor)]
