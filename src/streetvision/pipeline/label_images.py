"""streetvision label: read the images, plan the queue, and serve the page; exchange labels with other tools."""

import getpass
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from itertools import compress
from pathlib import Path
from uuid import uuid4

import numpy as np
from pydantic import TypeAdapter, ValidationError

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.errors import ConfigError, DataError, unknown_name
from streetvision.contracts.split_contracts import RANDOM_QUEUE, Index, Row, Split
from streetvision.data.config import DataConfig
from streetvision.data.grouping.group_rows import group_rows
from streetvision.data.grouping.name_pattern import groups_by_name
from streetvision.data.grouping.perceptual_hash import PerceptualHashes, join_hashes
from streetvision.data.labels.decisions import decide, valid_events
from streetvision.data.labels.listing import labels_path
from streetvision.data.labels.store import (
    IMPORTED,
    SECOND_OPINION,
    Labeler,
    LabelEvent,
    LabelStore,
    label_event,
)
from streetvision.data.records import ImageListing, ImageRecord
from streetvision.data.scan import scan_images
from streetvision.data.sources.discovery import UNLABELED, list_images, list_unlabeled
from streetvision.data.sources.parquet_index import LABELS
from streetvision.data.splitting.splits_json import partition_from_json
from streetvision.io.atomic import cannot_write, read_json, sha256_file
from streetvision.io.lock import run_lock
from streetvision.labeling.abstained import abstained_images
from streetvision.labeling.agreement import agreements
from streetvision.labeling.exchange import READERS, WRITERS, exchange_format, match_names
from streetvision.labeling.queue import MIXED, STRATEGIES, Candidate, Queue, QueuedImage, plan_queue
from streetvision.labeling.rounds import read_rounds
from streetvision.labeling.session import Session
from streetvision.labeling.strategies import FloatArray, reduce_features
from streetvision.pipeline.artifacts import apply_group_pattern
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.data.scan_data import left_out_warnings
from streetvision.pipeline.settings import RunConfig

DEFAULT_FOLDER = Path("outputs") / "labels"
WITHOUT_FEATURES = ("random", "abstained")
"""Queues that need no backbone."""
REPLANNED = (MIXED, "uncertain")
"""Queues that are planned again during a session, because they depend on the labels."""
MAX_NAMED = 3


@dataclass(frozen=True)
class LabelOptions:
    """Options of the command."""

    images: tuple[Path, ...] = ()
    """Folders and CSVs of images to label."""
    predictions: Path | None = None
    strategy: str = MIXED
    count: int = 200
    labeler: str | None = None
    second_opinion: bool = False
    show_model: bool = False
    seed: int = 0


def _store(config: RunConfig) -> LabelStore:
    path = labels_path(config.data.labels or DEFAULT_FOLDER / LABELS).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from error
    return LabelStore(path, config.data.class_names)


def serve_labels(overrides: Sequence[str], options: LabelOptions, *, host: str, port: int, console: Console) -> None:
    """Serve the page until interrupted.

    Raises:
        ConfigError: An option is invalid, or there is nothing to label.
    """
    from streetvision.labeling.server import create_app
    from streetvision.serving.launch import check_host, key_from_environment, open_listener, run_app, url_host

    config, labeler = _config(overrides, options), _labeler(options)
    key = key_from_environment()
    check_host(host, key)
    store = _store(config)
    with run_lock(store.path.parent / ".lock", option="data.labels=..."), open_listener(host, port) as listener:
        store = LabelStore(store.path, config.data.class_names)  # no other process adds labels from here on
        replan = None
        if options.second_opinion:
            queue = second_opinions(store, labeler, options.count, options.seed)
        else:
            plan = partial(read_pool(config, options, store, console).plan, options=options)
            queue = plan(store.events, options.count)
            replan = plan if options.strategy in REPLANNED else None
        if not queue.images:
            raise DataError("no image is left to label in this queue", "give more --images, or another --queue")
        counts = {name: sum(image.queue == name for image in queue.images) for name in STRATEGIES}
        parts = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "second opinions"
        console.line("queue", f"{len(queue.images)} images: {parts}")
        for pair in agreements(store.events):
            kappa = "undefined" if pair.kappa is None else f"{pair.kappa:.2f}"
            console.line("agreement", f"{' and '.join(pair.labelers)}: {pair.agreed} of {pair.images}, kappa {kappa}")
        session = Session(queue, store, labeler=labeler, limits=config.loader.limits, replan=replan)
        app = create_app(
            session,
            class_names=config.data.class_names,
            show_model=options.show_model,
            api_key=key,
            hosts=("127.0.0.1", "localhost", "[::1]", url_host(host)),
            rounds=read_rounds(store.path.parent),
        )
        console.line("labels", str(store.path))
        console.line("page", f"http://{url_host(host)}:{listener.getsockname()[1]}/  (y, n, s: skip, u: undo, z: zoom)")
        run_app(app, listener)
    if not store.path.exists():
        console.line("labels", "none: no image was labeled")
        return
    others = [override for override in overrides if not override.startswith("data.labels=")]
    console.next_command("streetvision", "train", f"data.labels={store.path}", *others)


def _config(overrides: Sequence[str], options: LabelOptions) -> RunConfig:
    if options.strategy not in STRATEGIES:
        raise unknown_name("queue", options.strategy, STRATEGIES)
    return compose_config(overrides)


def _labeler(options: LabelOptions) -> str:
    try:
        name = getpass.getuser() if options.labeler is None else options.labeler
    except (KeyError, OSError) as error:
        raise ConfigError("there is no labeler: this account has no name", "set --labeler NAME") from error
    try:
        return TypeAdapter(Labeler).validate_python(name)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ConfigError(f"--labeler {name!r}: {message}", "give a name of 1 to 100 characters") from error


def second_opinions(store: LabelStore, labeler: str, count: int, seed: int) -> Queue:
    """Return images that others have labeled and this person has not, in random order."""
    mine = {sha256 for sha256, who in valid_events(store.events) if who == labeler}
    others: dict[str, LabelEvent] = {}
    for (digest, who), event in valid_events(store.events).items():
        if who != labeler and event.action == "label" and digest not in mine:
            others.setdefault(digest, event)
    order = sorted(others, key=lambda digest: sha256(f"{seed} {digest}".encode()).digest())[:count]
    return Queue(
        tuple(
            QueuedImage(digest, others[digest].path, others[digest].group, SECOND_OPINION, "a second opinion")
            for digest in order
        ),
        None,
    )


@dataclass(frozen=True)
class Pool:
    """The images that may be shown, each once."""

    rows: tuple[Row, ...]
    """N images; those on which a model abstained come first, the most uncertain before the others."""
    features: FloatArray | None
    """(N, P); None: the queue needs none."""
    abstained: frozenset[str]
    """Paths."""
    in_conflict: frozenset[str]
    """Paths of images with a copy that has the other label."""
    protected: frozenset[str]
    """sha256 of images in an evaluation split."""

    def plan(self, events: Sequence[LabelEvent], count: int, options: LabelOptions) -> Queue:
        """Return the next `count` images after these decisions."""
        decisions = decide(events)
        by_people = {image.sha256: image for image in decisions.images}
        undecided = decisions.skipped | {event.sha256 for event in decisions.disputed}
        candidates = [
            Candidate(
                row.sha256,
                row.path,
                row.group,
                label=by_people[row.sha256].label
                if row.sha256 in by_people
                else (None if row.label == UNLABELED else row.label),
                queue=by_people[row.sha256].queue if row.sha256 in by_people else None,
                skipped=row.sha256 in undecided,
                protected=row.sha256 in self.protected,
                abstained=row.path in self.abstained,
                in_conflict=row.path in self.in_conflict,
            )
            for row in self.rows
        ]
        return plan_queue(candidates, self.features, strategy=options.strategy, count=count, seed=options.seed)


def read_pool(config: RunConfig, options: LabelOptions, store: LabelStore, console: Console) -> Pool:
    """Read every image once."""
    rows, in_conflict, abstained = _read_images(config, options, store, console)
    features = None
    if options.strategy not in WITHOUT_FEATURES:
        features = _features(config, rows, store.path.parent, console)
    # Images with equal bytes are one image to a person.
    position = {row.sha256: number for number, row in reversed(list(enumerate(rows)))}
    rank = {path: number for number, path in enumerate(abstained)}
    order = sorted(position.values(), key=lambda i: (rank.get(rows[i].path, len(rows)), i))
    return Pool(
        tuple(rows[i] for i in order),
        None if features is None else features[order],
        frozenset(abstained),
        frozenset(in_conflict),
        frozenset(_evaluated_images(config, store)),
    )


def _read_images(
    config: RunConfig, options: LabelOptions, store: LabelStore, console: Console
) -> tuple[tuple[Row, ...], set[str], list[str]]:
    """All images, by absolute path and with groups; copies with both labels; images on which a model abstained."""
    data, limits = config.data, config.loader.limits
    listed = list_unlabeled((*options.images, *data.unlabeled), group_pattern=data.group_pattern)
    pool = {image.path: image for image in listed.images}
    abstained: list[str] = []
    if options.predictions is not None:
        found, missing = abstained_images(options.predictions)
        abstained = [str(path) for path in found]
        others = [path for path in abstained if path not in pool]
        groups = groups_by_name(others, data.group_pattern) if data.group_pattern else [None] * len(others)
        pool |= {path: ImageRecord(path, UNLABELED, group=group) for path, group in zip(others, groups, strict=True)}
        if missing:
            console.warn(
                f"{missing:,} images of {options.predictions} are left out: they are not files of this machine, or "
                "their names are not UTF-8"
            )
    elif options.strategy == "abstained":
        raise ConfigError("--queue abstained needs --predictions", "give the folder of `streetvision predict --out`")
    for image in decide(store.events).images:
        if image.path not in pool and Path(image.path).is_file():
            pool[image.path] = ImageRecord(image.path, UNLABELED, group=image.group)
    _report_unmatched(tuple(pool.values()), data, console)
    if not pool and data.root is None:
        raise ConfigError(
            "there are no images to label", "give --images FOLDER, --predictions FOLDER or data.root=FOLDER"
        )

    hashed = "near_duplicates" in data.grouping.by
    listings: list[ImageListing] = []
    if data.root is not None:
        of_root = list_images(
            data.root,
            class_names=data.class_names,
            import_to=store.path.parent / "imported",
            hf_split=data.hf_split,
            group_column=data.group_column,
            source_column=data.source_column,
            coco=data.coco,
            one_class=True,
            other_folders=True,  # they may be images to label
        )
        listings.append(apply_group_pattern(of_root, pool.values(), data))
    if pool:
        listings.append(ImageListing(Path("/"), tuple(pool.values()), listed.skipped))
    rows: list[Row] = []
    labels_of: dict[str, set[int]] = defaultdict(set)  # sha256 -> labels of data.root
    hashes: PerceptualHashes | None = None
    warnings: list[str] = []
    for listing in listings:
        labels_at: dict[str, set[int]] = defaultdict(set)  # path -> listed labels
        for record in listing.images:
            labels_at[record.path].add(record.label)
        scan = scan_images(
            # Without labels, so that equal bytes with both labels are not left out.
            replace(listing, images=tuple(replace(record, label=UNLABELED) for record in listing.images)),
            class_names=data.class_names,
            limits=limits,
            damaged_images=data.damaged_images,
            with_hashes=hashed,
            progress=console,
        )
        known = {row.sha256 for row in rows}
        new = [row.sha256 not in known for row in scan.index.rows]
        for row in compress(scan.index.rows, new):
            labels_of[row.sha256] |= labels_at[row.path]
            rows.append(replace(row, path=str(scan.index.root / row.path), label=min(labels_at[row.path])))
        if scan.hashes is not None:
            kept = scan.hashes.where(new)
            hashes = kept if hashes is None else join_hashes(hashes, kept)
        warnings += left_out_warnings(scan, data)
    for warning in warnings:
        console.warn(warning)
    if not rows:
        raise DataError("none of the images can be decoded", "check the files with `streetvision data check`")
    index, near_duplicates = group_rows(
        Index(Path("/"), data.class_names, tuple(rows)), hashes, data.grouping, progress=console
    )
    given = {image.sha256: image.label for image in decide(store.events).images}
    label = {row.path: given.get(row.sha256, row.label) for row in index.rows}
    in_conflict = {
        path
        for cluster in (near_duplicates.copies if near_duplicates else ())
        if {label[path] for path in cluster} >= {0, 1}
        for path in cluster
    }
    in_conflict |= {row.path for row in index.rows if len(labels_of[row.sha256]) > 1 and row.sha256 not in given}
    return index.rows, in_conflict, abstained


def _report_unmatched(pool: Sequence[ImageRecord], data: DataConfig, console: Console) -> None:
    """Warn if data.group_pattern matches no image to label; without data.root, which it may match, raise DataError."""
    if data.group_pattern is None or not pool or any(image.group for image in pool):
        return
    message = (
        f"data.group_pattern {data.group_pattern!r} matches no image to label, for example not {pool[0].path!r}: "
        "it is compared with the path below the folder of --images"
    )
    if data.root is None:
        raise DataError(message, "change data.group_pattern, or leave it out")
    console.warn(message)


def _features(config: RunConfig, rows: Sequence[Row], folder: Path, console: Console) -> FloatArray:
    """(N, P) principal components of the frozen features; the features are kept in `folder`."""
    from streetvision.models.module import load_classifier
    from streetvision.pipeline.input_size import input_size
    from streetvision.pipeline.probe_head import FeatureReader
    from streetvision.training.features import FeatureCache

    loaded = load_classifier(config.model, input_size(config.model, rows))
    reader = FeatureReader.of(loaded.backbone, config.model).classifier.eval()
    cache = FeatureCache(folder / "features", reader, loader=config.loader, progress=console)
    features, _ = cache.features(tuple(rows), root=Path("/"), name="to label")
    return reduce_features(features.numpy().astype(np.float32))


def _evaluated_images(config: RunConfig, store: LabelStore) -> set[str]:
    """sha256 of the images in an evaluation split of the run that trains with these labels, if there is one."""
    data = config.data.model_copy(update={"labels": store.path})
    path = ArtifactSchema(config.model_copy(update={"data": data}).root).splits_json
    if not path.is_file():
        return set()
    partition = partition_from_json(read_json(path), path)
    return {row.sha256 for row, role in zip(partition.index.rows, partition.roles, strict=True) if role != Split.TRAIN}


def import_labels(overrides: Sequence[str], options: LabelOptions, source: Path, *, console: Console) -> None:
    """Add the labels of a file of Label Studio or CVAT to the store, where they differ from those of the same person.

    The images are those of --images and data.unlabeled. Without --queue random, they are in TRAIN only, because the
    file does not record how its images were chosen. Another import with --queue random records it.

    Raises:
        ConfigError: An option is invalid.
        DataError: The file is malformed, or gives an image both classes by one person.
    """
    config, labeler, suffix = _config(overrides, options), _labeler(options), exchange_format(source)
    if options.strategy not in (MIXED, RANDOM_QUEUE):
        raise ConfigError(f"--import has no --queue {options.strategy}", "leave it out, or set --queue random")
    sources = (*options.images, *config.data.unlabeled)
    if not sources:
        raise ConfigError("--import needs the images of the labels", "give --images FOLDER")
    found = READERS[suffix](source, config.data.class_names)
    listed = list_unlabeled(sources, group_pattern=config.data.group_pattern)
    _report_unmatched(listed.images, config.data, console)
    images = {image.path: image for image in listed.images}
    names = [label.name for label in found]
    matched = match_names(names, list(images))
    events = []
    labels: dict[tuple[str, str], int] = {}
    for label in found:
        if label.name not in matched:
            continue
        path = matched[label.name]
        digest, who = sha256_file(Path(path)), label.labeler or labeler
        if labels.setdefault((digest, who), label.label) != label.label:
            raise DataError(
                f"{str(source)!r} has both classes for {path!r} by {who!r}, and one label is allowed",
                "remove one of the two labels",
            )
        events.append(
            label_event(
                event=uuid4().hex,
                action="label",
                sha256=digest,
                path=path,
                label=label.label,
                labeler=who,
                time=datetime.now(UTC),
                queue=RANDOM_QUEUE if options.strategy == RANDOM_QUEUE else IMPORTED,
                group=images[path].group,
            )
        )
    store = _store(config)
    with run_lock(store.path.parent / ".lock", option="data.labels=..."):
        store = LabelStore(store.path, config.data.class_names)
        present = {key: (event.label, event.queue) for key, event in valid_events(store.events).items()}

        def is_new(event: LabelEvent) -> bool:
            label, queue = present.get((event.sha256, event.labeler), (None, None))
            return label != event.label or (queue == IMPORTED and event.queue == RANDOM_QUEUE)

        added = store.append(filter(is_new, events))
    console.line(
        "import",
        f"{added} labels of {len(found)}, {len(events) - added} already there, {len(found) - len(events)} without a "
        "matching image",
    )
    console.line("labels", str(store.path))
    if listed.skipped:
        first = "; ".join(f"{file.path} {file.reason}" for file in listed.skipped[:MAX_NAMED])
        console.warn(f"{len(listed.skipped):,} files of the images are left out: {first}")
    if unmatched := sorted(set(names) - matched.keys()):
        named = ", ".join(unmatched[:MAX_NAMED])
        console.warn(f"{len(unmatched):,} names are left out, which do not match one image each: {named}")


def export_labels(overrides: Sequence[str], target: Path, *, console: Console) -> None:
    """Write the labels to a file of Label Studio or CVAT."""
    config, suffix = compose_config(overrides), exchange_format(target)
    path = labels_path(config.data.labels or DEFAULT_FOLDER / LABELS)
    if not path.is_file():
        raise ConfigError(f"there are no labels at {str(path)!r}", "set data.labels=...")
    decisions = decide(LabelStore(path, config.data.class_names).events)
    WRITERS[suffix](target, decisions.images, config.data.class_names)
    console.line("export", f"{target}: {len(decisions.images)} labels; {len(decisions.disputed)} disputed left out")
