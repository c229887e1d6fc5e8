"""The label of each image, from the decisions about it."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from streetvision.contracts.split_contracts import RANDOM_QUEUE
from streetvision.data.labels.store import IMPORTED, SECOND_OPINION, LabelEvent


@dataclass(frozen=True)
class LabeledImage:
    """An image with the label that most people gave it."""

    sha256: str
    path: str
    label: int
    group: str | None
    queue: str
    """How the image was first chosen. A later decision does not change it, as it decides on the split.

    An image that was imported is at random if a later import states that."""

    @property
    def train_only(self) -> bool:
        """Whether a model or a person chose the image, so that it may be in TRAIN only."""
        return self.queue != RANDOM_QUEUE


@dataclass(frozen=True)
class Decisions:
    """What the decisions amount to."""

    images: tuple[LabeledImage, ...]
    """With a label, in the order of their first decision."""
    disputed: tuple[LabelEvent, ...]
    """The last decision on each image with a tie between the classes."""
    skipped: frozenset[str]
    """sha256 of images that were skipped, and have no label."""


def valid_events(events: Iterable[LabelEvent]) -> dict[tuple[str, str], LabelEvent]:
    """Return (sha256, labeler) -> the last label or skip of this person that was not undone."""
    events = list(events)
    undone = {event.undoes for event in events}
    return {
        (event.sha256, event.labeler): event for event in events if event.action != "undo" and event.event not in undone
    }


def decide(events: Iterable[LabelEvent]) -> Decisions:
    """Return the label of each image: the class that most people gave it."""
    events = list(events)
    first_queue: dict[str, str] = {}
    for event in events:
        if event.action == "label" and event.queue != SECOND_OPINION:
            first = first_queue.setdefault(event.sha256, event.queue)
            if first == IMPORTED and event.queue == RANDOM_QUEUE:
                first_queue[event.sha256] = RANDOM_QUEUE
    by_image: dict[str, list[LabelEvent]] = defaultdict(list)
    for (sha256, _), event in valid_events(events).items():
        by_image[sha256].append(event)
    images, disputed, skipped = [], [], set()
    for sha256, decisions in by_image.items():
        labels = [event for event in decisions if event.action == "label"]
        votes = Counter(event.label for event in labels)
        if not labels:
            skipped.add(sha256)
        elif votes[0] == votes[1]:
            disputed.append(labels[-1])
        else:
            last = labels[-1]
            queue = first_queue.get(sha256, SECOND_OPINION)
            images.append(LabeledImage(sha256, last.path, int(votes[1] > votes[0]), last.group, queue))
    return Decisions(tuple(images), tuple(disputed), frozenset(skipped))
