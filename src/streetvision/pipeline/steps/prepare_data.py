"""data: read every image once, group related images, and assign each group to a split or a fold."""

from collections import Counter

from streetvision.calibration.config import AUTO, RiskConfig
from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.split_contracts import RANDOM_QUEUE, Partition, Protocol, Split
from streetvision.data.config import DataConfig, LoaderConfig
from streetvision.data.grouping.seen_images import record_images
from streetvision.data.labels.listing import read_labels
from streetvision.data.sources.unlabeled import scan_unlabeled, select_unlabeled
from streetvision.data.splitting.partition import split_conflicts
from streetvision.data.splitting.splits_json import partition_from_json, partition_to_json
from streetvision.io.atomic import read_json, write_bytes_atomic, write_json_atomic
from streetvision.pipeline.data.partition_data import existing_folds, existing_roles, partition_rows
from streetvision.pipeline.data.scan_data import GroupedScan, scan_data


def run(context: Context) -> Outcome:
    """Write splits.json and data_report.json, and unlabeled.json for data.unlabeled."""
    config, schema = context.settings(DataConfig), context.schema
    earlier = _earlier_partition(context)
    # An earlier choice of auto holds when images are added.
    protocol: str = config.protocol if earlier is None or config.protocol != AUTO else earlier.protocol.value
    roles, folds = existing_roles(earlier), existing_folds(earlier, config.folds)
    labels = None if config.labels is None else read_labels(config.labels, config.class_names).usable(roles)
    grouped = scan_data(context, labels=labels)
    # A new image must not join groups that are already in different splits.
    existing = folds if protocol == Protocol.CROSS_FIT else roles
    if conflicting := split_conflicts(grouped.index.rows, existing):
        grouped = GroupedScan.of(grouped.scan.without(conflicting), config.grouping, context.progress)
        write_json_atomic(schema.data_report_json, grouped.scan.report())
        context.progress.warn(
            f"{len(conflicting)} new images are related to images of two splits"
            + ("" if labels is None else ", or were chosen for their label and are related to an evaluation split,")
            + f" and are left out; see {schema.data_report_json}"
        )
    scan, clusters = grouped.scan, grouped.near_duplicates
    partition = partition_rows(
        grouped.index,
        grouped.near_duplicates,
        config,
        context.settings(RiskConfig),
        protocol=protocol,
        roles=roles,
        folds=folds,
        progress=context.progress,
        keep_test=earlier is not None and _has_test_of_one_class(earlier),
    )
    write_json_atomic(schema.splits_json, partition_to_json(partition))
    schema.seen_images.unlink(missing_ok=True)
    outputs = []
    if scan.hashes is not None:
        write_bytes_atomic(schema.seen_images, record_images(scan.hashes, partition.roles).to_bytes())
        outputs.append(schema.seen_images)

    rows = partition.index.rows
    counts = dict(Counter(partition.roles))
    groups = {row.group for row in rows if row.group is not None}
    positives = sum(row.label for row in rows)
    by = f"by {len(groups)} groups" if 0 < len(groups) < len(rows) else "by image"
    near = (
        "near-duplicates not checked" if clusters is None else f"{clusters.pairs} near-duplicate pairs, 0 across splits"
    )
    if partition.folds is None:
        divided = f"{'/'.join(str(counts[split]) for split in Split)} in {len(counts)} splits"
    else:
        test = counts[Split.VAL_TEST]
        divided = f"{len(rows) - test} in {partition.n_folds} folds of cross_fit, {test} in VAL_TEST"
        if chosen := sum(row.train_only for row in rows):
            divided += f" ({chosen} that were chosen for their label are trained on, and evaluated in no fold)"
    summary = (
        f"{len(rows)} images, {positives} {partition.index.class_names[1]}; "
        f"{divided} {by}; "
        f"{scan.duplicates} duplicates, {near}"
    )
    metrics = {
        "images": len(rows),
        "positives": positives,
        "invalid": len(scan.invalid),
        "protocol": partition.protocol.value,
        **{split.value: counts[split] for split in Split if split in counts},
    }
    if labels is not None:
        # An image may have several rows, such as one of data.root and one of data.labels.
        labelled = {row.sha256 for row in rows if row.sha256 in labels.images}
        at_random = len({row.sha256 for row in rows if row.queue == RANDOM_QUEUE} & labelled)
        summary += f"; {len(labelled)} labels of data.labels, {at_random} of them drawn at random"
        metrics |= {"labels": len(labelled), "labels_at_random": at_random}
        metrics["evaluated"] = len(partition.rows(Split.VAL_CALIB))
    if not config.unlabeled:
        return Outcome(summary, dict(metrics), extra_outputs=tuple(outputs))

    limits = context.settings(LoaderConfig).limits
    unlabeled_scan = scan_unlabeled(
        config.unlabeled,
        limits=limits,
        group_pattern=config.group_pattern,
        damaged_images=config.damaged_images,
        progress=context.progress,
    )
    unlabeled = select_unlabeled(unlabeled_scan, scan, partition.roles, config.grouping)
    write_json_atomic(schema.unlabeled_json, unlabeled.model_dump(mode="json"))
    return Outcome(
        f"{summary}; {len(unlabeled.rows)} unlabeled images, {len(unlabeled.excluded)} left out "
        f"(see {schema.unlabeled_json.name})",
        {**metrics, "unlabeled": len(unlabeled.rows), "unlabeled_left_out": len(unlabeled.excluded)},
        extra_outputs=(*outputs, schema.unlabeled_json),
    )


def _has_test_of_one_class(earlier: Partition) -> bool:
    """Whether VAL_TEST was chosen by `cross-validate`: an outer fold may have one class, such as a source."""
    return len({row.label for row in earlier.rows(Split.VAL_TEST)}) == 1


def _earlier_partition(context: Context) -> Partition | None:
    """The splits of an earlier run of this phase with the same seed and fractions.

    Its images keep their split: VAL_TEST may have been accessed, so none of it may move to TRAIN when images are added
    or the classes get other names.
    """
    config, path = context.settings(DataConfig), context.schema.splits_json
    if not path.exists():
        return None
    try:
        earlier = partition_from_json(read_json(path), path)
    except StreetVisionError as error:
        context.progress.warn(
            f"{error.message}: splits are made again, and earlier evaluations of this run are invalid"
        )
        return None
    return earlier if (earlier.seed, earlier.fractions) == (config.seed, config.fractions) else None
