"""A session of labeling: the queue, the decisions of one person, and images that are made ready in advance."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.split_contracts import RANDOM_QUEUE
from streetvision.data.config import DecodeLimits
from streetvision.data.image_file import UndecodableImage, read_pixels
from streetvision.data.labels.decisions import valid_events
from streetvision.data.labels.store import LabelEvent, LabelStore, label_event
from streetvision.data.thumbnail import encode_jpeg, shrink, smaller_jpeg
from streetvision.labeling.queue import Queue, QueuedImage

logger = logging.getLogger(__name__)

DISPLAY_PIXELS = 1600
"""Longer side of an image as it is shown first."""
AHEAD, KEPT = 24, 96
"""Images that are made ready before they are shown, and images in memory."""
REPLANNED_AFTER = 10
"""Decisions after which the queue is planned again."""
LEASE_SECONDS = 600
"""Time after which an image that one browser tab has received may be sent to another one."""


Replan = Callable[[Sequence[LabelEvent], int], Queue]


class DecisionError(StreetVisionError):
    """A decision that contradicts an earlier one, and is not stored."""

    code = "label_conflict"


class DisplayImages:
    """JPEGs of the images as they are shown, made by threads in advance, the most recent ones in memory."""

    def __init__(self, limits: DecodeLimits, workers: int = 2) -> None:
        self._limits, self._pool = limits, ThreadPoolExecutor(workers)
        self._made: OrderedDict[str, Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, images: Iterable[QueuedImage]) -> None:
        """Start to make images that are not ready."""
        for image in images:
            self._future(image)

    def get(self, image: QueuedImage) -> bytes:
        """Return the JPEG; raises UndecodableImage if the file cannot be decoded any more."""
        return self._future(image).result()

    def full(self, image: QueuedImage) -> bytes:
        """Return a JPEG with all pixels of the image, for a closer view."""
        pixels = read_pixels(Path(image.path), limits=self._limits)
        return encode_jpeg(shrink(pixels, max(pixels.shape)))

    def _future(self, image: QueuedImage) -> "Future[bytes]":
        with self._lock:
            future = self._made.get(image.sha256)
            if future is None:
                future = self._made[image.sha256] = self._pool.submit(self._make, image.path)
            self._made.move_to_end(image.sha256)
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
            return future

    def _make(self, path: str) -> bytes:
        return smaller_jpeg(Path(path), DISPLAY_PIXELS, self._limits)


@dataclass(frozen=True)
class Progress:
    """How far a session is."""

    decided: int
    total: int
    at_random: int
    """Labels of images that were drawn at random, of all decided ones."""
    worthwhile: int | None
    """Images on which the models disagree, and that have no label yet; None: no models yet."""


def _decided_image(event: LabelEvent) -> QueuedImage:
    return QueuedImage(event.sha256, event.path, event.group, event.queue, "its decision was undone", None, event.model)


class Session:
    """The decisions of one person on a queue. Any number of browser tabs may use it at the same time.

    Args:
        queue: The images to show.
        store: Where decisions are written.
        labeler: Who decides.
        limits: Largest accepted image.
        replan: Plans that many images after these decisions, in a thread; None: the queue stays as it is.
        clock: Seconds, for leases.
    """

    def __init__(
        self,
        queue: Queue,
        store: LabelStore,
        *,
        labeler: str,
        limits: DecodeLimits,
        replan: "Replan | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue, self.store, self.labeler, self._clock = queue, store, labeler, clock
        self._replan, self._planner = replan, ThreadPoolExecutor(1)
        self._since_plan, self._labeled_at_plan = 0, 0
        self.display = DisplayImages(limits)
        self._by_sha256 = {image.sha256: image for image in queue.images}
        self._unreadable: set[str] = set()
        self._decided = {sha256: event for (sha256, who), event in valid_events(store.events).items() if who == labeler}
        self._leases: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def image(self, sha256: str) -> QueuedImage | None:
        """The image with this digest, if it is in the queue or this person has decided on it."""
        decided = self._decided.get(sha256)
        return self._by_sha256.get(sha256) or (None if decided is None else _decided_image(decided))

    def next_images(self, tab: str, count: int) -> list[QueuedImage]:
        """Return the next images for a tab, and start to make those after them ready."""
        now, mine, ahead = self._clock(), list[QueuedImage](), list[QueuedImage]()
        with self._lock:
            for image in self.queue.images:
                if image.sha256 in self._decided or image.sha256 in self._unreadable:
                    continue
                holder, since = self._leases.get(image.sha256, (tab, now))
                if holder != tab and now - since < LEASE_SECONDS:
                    continue
                if len(mine) < count:
                    self._leases[image.sha256] = (tab, now)
                    mine.append(image)
                ahead.append(image)
                if len(ahead) >= AHEAD:
                    break
        self.display.prepare(ahead)
        return mine

    def jpeg(self, image: QueuedImage, *, full: bool) -> bytes:
        """The image as it is shown; an image that can no longer be decoded leaves the queue."""
        try:
            return self.display.full(image) if full else self.display.get(image)
        except UndecodableImage:
            self._unreadable.add(image.sha256)
            raise

    def decide(self, *, event: str, sha256: str, label: int | None, seconds: float | None) -> None:
        """Store a label, or a skip if the label is None. The same event again changes nothing.

        Raises:
            DecisionError: The image is not in the queue, or has a decision of this person that was not undone.
        """
        image = self._by_sha256.get(sha256)
        with self._lock:
            if self.store.knows(event):
                return
            if image is None:
                raise DecisionError("the image is not in the queue of this session", "reload the page")
            if sha256 in self._decided:
                raise DecisionError("the image has a decision already", "undo it first")
            decision = label_event(
                event=event,
                action="skip" if label is None else "label",
                sha256=sha256,
                path=image.path,
                label=label,
                labeler=self.labeler,
                time=datetime.now(UTC),
                queue=image.queue,
                group=image.group,
                model=image.model,
                seconds=seconds,
            )
            self.store.append([decision])
            self._decided[sha256] = decision
            self._since_plan += 1
            if self._replan is not None and self._since_plan >= REPLANNED_AFTER:
                self._since_plan = 0
                self._planner.submit(self._plan_again, self._replan, list(self.store.events), self._labeled())

    def _plan_again(self, replan: Replan, events: Sequence[LabelEvent], labeled: int) -> None:
        """Replace the images that no tab has received."""
        total = len(self.queue.images)
        try:
            planned = replan(events, total)
        except Exception:
            logger.exception("the queue was not planned again and stays as it is")
            return
        with self._lock:
            kept = [i for i in self._by_sha256.values() if i.sha256 in self._decided or i.sha256 in self._leases]
            taken = {image.sha256 for image in kept}
            new = [image for image in planned.images if image.sha256 not in taken]
            self.queue = Queue((*kept, *new[: max(total - len(kept), 0)]), planned.worthwhile)
            self._labeled_at_plan = labeled
            # An image that leaves the queue may still be decided on.
            self._by_sha256 |= {image.sha256: image for image in new}

    def _labeled(self) -> int:
        return sum(self._decided[digest].action == "label" for digest in self._by_sha256.keys() & self._decided.keys())

    def undo(self, *, event: str, undoes: str) -> None:
        """Withdraw a decision of this person; both stay in the file. The same event again changes nothing.

        Raises:
            DecisionError: There is no such decision, or it was undone.
        """
        with self._lock:
            if self.store.knows(event):
                return
            earlier = next((made for made in self._decided.values() if made.event == undoes), None)
            if earlier is None:
                raise DecisionError("there is no such decision to undo", "reload the page")
            withdrawn = earlier.model_copy(
                update={
                    "event": event,
                    "action": "undo",
                    "label": None,
                    "seconds": None,
                    "time": datetime.now(UTC),
                    "undoes": undoes,
                }
            )
            self.store.append([LabelEvent.model_validate(withdrawn.model_dump())])
            del self._decided[earlier.sha256]
            if earlier.sha256 not in self._by_sha256:  # an earlier session has shown it
                image = self._by_sha256[earlier.sha256] = _decided_image(earlier)
                self.queue = Queue((image, *self.queue.images), self.queue.worthwhile)

    def progress(self) -> Progress:
        """How many images of the queue are decided."""
        with self._lock:
            decided = [self._decided[sha256] for sha256 in self._by_sha256.keys() & self._decided.keys()]
            since_plan = self._labeled() - self._labeled_at_plan
            worthwhile, total = self.queue.worthwhile, len(self.queue.images)
        return Progress(
            len(decided),
            total,
            sum(event.queue == RANDOM_QUEUE for event in decided),
            None if worthwhile is None else max(worthwhile - since_plan, 0),
        )
