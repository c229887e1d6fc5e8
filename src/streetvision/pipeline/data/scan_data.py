"""The scan of data.root, with its report."""

from streetvision.contracts.phase import Context
from streetvision.data.config import DataConfig, LoaderConfig
from streetvision.data.scan import Scan, check_invalid_fraction, scan_images
from streetvision.data.sources.discovery import class_names_warning
from streetvision.io.atomic import write_json_atomic
from streetvision.pipeline.artifacts import list_data

MAX_NAMED = 3
"""Left-out files that the warning names; data_report.json names all."""


def scan_data(context: Context) -> Scan:
    """Read every image of data.root once and write data_report.json, which lists the files that cannot be used.

    Raises:
        DataError: More than data.max_invalid_fraction of the images cannot be used.
    """
    config, schema = context.settings(DataConfig), context.schema
    listing = list_data(context)
    warning = class_names_warning(listing, config.class_names)
    if warning and listing.root.absolute() != schema.scenes_dir.absolute():
        context.progress.warn(warning)
    scan = scan_images(
        listing,
        class_names=config.class_names,
        limits=context.settings(LoaderConfig).limits,
        damaged_images=config.damaged_images,
        with_hashes="near_duplicates" in config.grouping.by or bool(config.unlabeled),
        progress=context.progress,
    )
    write_json_atomic(schema.data_report_json, scan.report())
    check_invalid_fraction(scan, max_invalid_fraction=config.max_invalid_fraction, report=schema.data_report_json)
    if scan.invalid or scan.skipped:
        first = [f"{file.path} {file.reason}" for file in (*scan.invalid, *scan.skipped)][:MAX_NAMED]
        context.progress.warn(
            f"{len(scan.invalid)} unusable images and {len(scan.skipped)} other files are left out: "
            f"{'; '.join(first)}; see {schema.data_report_json}"
        )
    if scan.damaged:
        damaged = [f"{file.path} {file.reason}" for file in scan.damaged[:MAX_NAMED]]
        taken = "used" if config.damaged_images == "use" else "left out"
        context.progress.warn(
            f"{len(scan.damaged)} images with damaged data are {taken} (data.damaged_images): "
            f"{'; '.join(damaged)}; see {schema.data_report_json}"
        )
    return scan
