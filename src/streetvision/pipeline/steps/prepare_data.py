"""data: list, read and check every image once, and give each its role."""

from collections.abc import Mapping

from streetvision.contracts.errors import StreetVisionError
from streetvision.contracts.phase import Context, Outcome
from streetvision.contracts.split_contracts import Partition, Split
from streetvision.data.config import DataConfig, LoaderConfig
from streetvision.data.grouping.group_rows import group_rows
from streetvision.data.scan import Scan, check_bad_share, scan_images
from streetvision.data.sources.unlabeled import keep_apart, scan_unlabeled
from streetvision.data.splitting.partition import NOTHING_KEPT, bridges, make_partition
from streetvision.data.splitting.splits_json import partition_from_json, partition_to_json
from streetvision.io.atomic import read_json, write_json_atomic
from streetvision.pipeline.artifacts import list_data


def run(context: Context) -> Outcome:
    """Index what can be used, name what cannot, and write the partition."""
    config, kept = context.settings(DataConfig), _kept(context)
    scan = scan_data(context)
    index, near_duplicates = group_rows(scan, config.grouping)
    if torn := bridges(index.rows, kept):
        scan = scan.without(torn)
        index, near_duplicates = group_rows(scan, config.grouping)
        write_json_atomic(context.schema.data_report_json, scan.report())
        context.progress.warn(f"{len(torn)} new images resemble images of two splits and are left out: see the report")
    partition = make_partition(
        index, fractions=config.fractions, seed=config.seed, kept=kept, near_duplicates=near_duplicates
    )
    write_json_atomic(context.schema.splits_json, partition_to_json(partition))
    outcome = _outcome(scan, partition)
    return _with_unlabeled(outcome, scan, partition, context) if config.unlabeled else outcome


def scan_data(context: Context) -> Scan:
    """Read every image of data.root; what cannot be used is named in data_report.json."""
    config, schema = context.settings(DataConfig), context.schema
    scan = scan_images(
        list_data(context),
        class_names=config.class_names,
        limits=context.settings(LoaderConfig).limits,
        looking="near_duplicates" in config.grouping.by or bool(config.unlabeled),
        progress=context.progress,
    )
    write_json_atomic(schema.data_report_json, scan.report())
    check_bad_share(scan, max_invalid_fraction=config.max_invalid_fraction, report=schema.data_report_json)
    if scan.bad or scan.left_out:
        files = f"{len(scan.bad)} unusable images and {len(scan.left_out)} other files"
        context.progress.warn(f"{files} are left out; each is named in {schema.data_report_json}")
    return scan


def _with_unlabeled(outcome: Outcome, scan: Scan, partition: Partition, context: Context) -> Outcome:
    """Read data.unlabeled as well, and write down what phase 4a may see of it."""
    config, path = context.settings(DataConfig), context.schema.unlabeled_json
    further = scan_unlabeled(config.unlabeled, limits=context.settings(LoaderConfig).limits, progress=context.progress)
    found = keep_apart(further, scan, partition.roles, config.grouping)
    write_json_atomic(path, found.model_dump(mode="json"))
    counts = f"{len(found.rows)} unlabelled beside them, {len(found.left_out)} more left out: see {path.name}"
    metrics = {**outcome.metrics, "unlabeled": len(found.rows), "unlabeled_left_out": len(found.left_out)}
    return Outcome(f"{outcome.summary}; {counts}", metrics, extra_outputs=(path,))


def _kept(context: Context) -> Mapping[str, Split]:
    """sha256 -> split, of the rows that this run dealt before by the same seed, fractions and names: there they stay.

    VAL_TEST may have been looked at, so nothing that stood there may move into TRAIN because images were added.
    """
    config, path = context.settings(DataConfig), context.schema.splits_json
    if not path.exists():
        return NOTHING_KEPT
    try:
        before = partition_from_json(read_json(path), path)
    except StreetVisionError as error:
        context.progress.warn(f"{error.message}: the rows are dealt anew, and what was judged before no longer counts")
        return NOTHING_KEPT
    asked = (config.seed, config.fractions, config.class_names)
    if (before.seed, before.fractions, before.index.class_names) != asked:
        return NOTHING_KEPT
    return {row.sha256: role for row, role in zip(before.index.rows, before.roles, strict=True)}


def _outcome(scan: Scan, partition: Partition) -> Outcome:
    rows = partition.index.rows
    counts = {split: len(partition.rows(split)) for split in Split}
    groups = {row.group for row in rows if row.group is not None}
    by = f"by {len(groups)} groups" if 0 < len(groups) < len(rows) else "image by image"
    positives = sum(row.label for row in rows)
    return Outcome(
        f"{len(rows)} images, {positives} {partition.index.class_names[1]}; "
        f"split {by} into {'/'.join(str(n) for n in counts.values())}; {_kept_together(scan, partition)}",
        {"images": len(rows), "positives": positives, "bad": len(scan.bad), **{s.value: n for s, n in counts.items()}},
    )


def _kept_together(scan: Scan, partition: Partition) -> str:
    found = partition.near_duplicates
    near = "near-duplicates not looked for" if found is None else f"{found.pairs} near-duplicate pairs, none crosses"
    return f"{scan.duplicates} copies, {near}"
