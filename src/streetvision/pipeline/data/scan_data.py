"""The scan of data.root, with its report."""

from dataclasses import dataclass, replace
from itertools import compress

from streetvision.contracts.artifact_schema import ArtifactSchema
from streetvision.contracts.phase import Context
from streetvision.contracts.progress import Progress
from streetvision.contracts.split_contracts import Index, NearDuplicateClusters, Partition
from streetvision.data.config import DataConfig, GroupingConfig, LoaderConfig
from streetvision.data.file_search import RUN_FOLDER
from streetvision.data.grouping.group_rows import copy_conflicts, group_rows
from streetvision.data.image_file import MISSING_FILE
from streetvision.data.labels.listing import Labels
from streetvision.data.records import ImageListing
from streetvision.data.scan import Scan, check_invalid_fraction, scan_images
from streetvision.data.sources.discovery import class_names_warning
from streetvision.io.atomic import write_json_atomic
from streetvision.pipeline.artifacts import list_data
from streetvision.pipeline.settings import RunConfig

MAX_NAMED = 3
"""Left-out files that the warning names; data_report.json names all."""


@dataclass(frozen=True)
class GroupedScan:
    """The scan of data.root, and its rows with their groups."""

    scan: Scan
    index: Index
    near_duplicates: NearDuplicateClusters | None
    """None if they were not searched."""

    @classmethod
    def of(cls, scan: Scan, config: GroupingConfig, progress: Progress) -> "GroupedScan":
        """Group the rows of a scan."""
        return cls(scan, *group_rows(scan.index, scan.hashes, config, progress=progress))


def scan_without_splits(config: RunConfig, schema: ArtifactSchema, progress: Progress) -> GroupedScan:
    """scan_data for a command that has no run; the report is written to `schema`."""

    def no_partition() -> Partition:
        raise AssertionError("a scan opens no split")

    schema.ensure_output_dir()
    return scan_data(Context("data", schema, progress, config.sections(), no_partition))


def scan_data(
    context: Context,
    *,
    with_hashes: bool = False,
    one_class: bool = False,
    labels: Labels | None = None,
) -> GroupedScan:
    """Read every image of data.root once, and group the rows.

    Images that cannot be used, and copies of one photograph with both labels, are left out and listed in
    data_report.json.

    Args:
        context: The phase that reads the data.
        with_hashes: Compute perceptual hashes whether the grouping needs them or not.
        one_class: Accept images of one class alone.
        labels: Labels that people gave; their images are added.

    Raises:
        DataError: More than data.max_invalid_fraction of the images cannot be used.
    """
    config, schema = context.settings(DataConfig), context.schema
    listing = list_data(context, one_class=one_class, labels=labels)
    names_warning = class_names_warning(listing, config.class_names)
    if names_warning and listing.root.absolute() != schema.scenes_dir.absolute():
        context.progress.warn(names_warning)
    scan = scan_images(
        listing,
        class_names=config.class_names,
        limits=context.settings(LoaderConfig).limits,
        damaged_images=config.damaged_images,
        with_hashes=with_hashes or "near_duplicates" in config.grouping.by or bool(config.unlabeled),
        labels=None if labels is None else labels.by_sha256,
        progress=context.progress,
    )
    own = schema.output_dir.absolute()  # without splits.json, it is not known as a run
    skipped = tuple(
        replace(file, reason=RUN_FOLDER) if (listing.root / file.path).absolute() == own else file
        for file in scan.skipped
    )
    scan = replace(scan, skipped=skipped)
    if labels is not None:
        scan = _without_repeated(_without_moved(scan, listing, labels), listing)
    grouped = GroupedScan.of(scan, config.grouping, context.progress)
    if conflicts := copy_conflicts(grouped.index, grouped.near_duplicates):
        scan = scan.without(conflicts)
        grouped = GroupedScan.of(scan, config.grouping, context.progress)
    write_json_atomic(schema.data_report_json, scan.report())
    check_invalid_fraction(scan, max_invalid_fraction=config.max_invalid_fraction, report=schema.data_report_json)
    for warning in left_out_warnings(scan, config):
        context.progress.warn(f"{warning}; see {schema.data_report_json}")
    return grouped


def _without_moved(scan: Scan, listing: ImageListing, labels: Labels) -> Scan:
    """The scan without the missing files of data.labels whose bytes another row has: data.root was moved since."""
    found = {row.sha256 for row in scan.index.rows}
    added = {image.path for image in listing.images if image.queue is not None}
    moved = added - {image.path for sha256, image in labels.images.items() if sha256 not in found}
    invalid = (file for file in scan.invalid if file.path not in moved or not file.reason.startswith(MISSING_FILE))
    return replace(scan, invalid=tuple(invalid))


def _without_repeated(scan: Scan, listing: ImageListing) -> Scan:
    """The scan without the rows of data.labels whose bytes a row of data.root has: that row has the label."""
    added = {image.path for image in listing.images if image.queue is not None}
    rows = scan.index.rows
    own = {row.sha256 for row in rows if row.path not in added}
    kept = [row.path not in added or row.sha256 not in own for row in rows]
    return replace(
        scan,
        index=replace(scan.index, rows=tuple(compress(rows, kept))),
        duplicates=scan.duplicates - kept.count(False),
        hashes=scan.hashes and scan.hashes.where(kept),
    )


def left_out_warnings(scan: Scan, config: DataConfig) -> list[str]:
    """Return what a scan left out or found damaged, with the first files and their reasons.

    Folders of runs are left out without a warning.
    """
    warnings = []
    skipped = [file for file in scan.skipped if file.reason != RUN_FOLDER]
    if scan.invalid or skipped:
        first = [f"{file.path} {file.reason}" for file in (*scan.invalid, *skipped)][:MAX_NAMED]
        warnings.append(
            f"{len(scan.invalid)} unusable images and {len(skipped)} other files are left out: {'; '.join(first)}"
        )
    if scan.damaged:
        damaged = [f"{file.path} {file.reason}" for file in scan.damaged[:MAX_NAMED]]
        taken = "used" if config.damaged_images == "use" else "left out"
        warnings.append(
            f"{len(scan.damaged)} images with damaged data are {taken} (data.damaged_images): {'; '.join(damaged)}"
        )
    return warnings
