"""streetvision data check: print the findings and write a page with the images."""

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from streetvision.contracts.errors import ArtifactError, DataError
from streetvision.contracts.split_contracts import Index
from streetvision.data.config import DataConfig, GroupingConfig, LoaderConfig
from streetvision.data.grouping.geo import geo_keys, has_position
from streetvision.data.grouping.name_pattern import suggest_pattern
from streetvision.data.records import RejectedFile
from streetvision.data.scan import check_invalid_fraction
from streetvision.data.splitting.partition import make_folds
from streetvision.io.atomic import write_text_atomic
from streetvision.models.config import ModelConfig
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.data.findings import CONFOUNDED_AUC, Findings, find_problems
from streetvision.pipeline.data.page import render_findings
from streetvision.pipeline.settings import refuse_settings_of_options, warn_without_effect

MAX_LINES = 10
OF_TRAIN = {"protocol", "unlabeled"}
"""Settings of DataConfig that have no effect on a check."""


def check_data(
    root: str, overrides: Sequence[str], *, labels: bool, embeddings: bool, page: Path | None, console: Console
) -> None:
    """Check the data set in `root`, print the problems, and write an HTML page.

    The default of `page` is outputs/NAME_check.html, named after the data set.

    Raises:
        ConfigError: data.root is set as well.
        DataError: No image is usable, or more than data.max_invalid_fraction are not.
    """
    config = compose_config(overrides, base={"data": {"root": root}})
    refuse_settings_of_options(config, {"data.root": "the argument ROOT"})
    model = {ModelConfig} if labels or embeddings else set()
    data = {f"data.{name}" for name in DataConfig.model_fields.keys() - OF_TRAIN}
    warn_without_effect(config, {*data, LoaderConfig, *model}, "data check", console)
    zero, one = config.data.class_names
    console.line("classes", f"0 = {zero}, 1 = {one} (data.class_names)")
    with tempfile.TemporaryDirectory() as scratch:
        findings = find_problems(root, config, Path(scratch), labels=labels, embeddings=embeddings, progress=console)
        html = render_findings(findings, title=root, limits=config.loader.limits)
    scan, rows, names = findings.scan, findings.usable, findings.index.class_names
    counts = [sum(row.label == label for row in rows) for label in (0, 1)]
    groups = {row.group for row in rows if row.group is not None}
    console.line("images", f"{len(rows)}: {counts[0]} {names[0]}, {counts[1]} {names[1]}")
    grouped = sum(row.group is not None for row in rows)
    console.line("groups", f"{len(groups)}, of {grouped} images" if groups else "none: every image is split on its own")
    console.line("duplicates", f"{scan.duplicates} images have the content of another one; they stay in one split")
    _print_near_duplicates(findings, console)
    _print_embedding_duplicates(findings, console)
    damaged = {file.path for file in scan.damaged}
    _print_files("unusable", [file for file in scan.invalid if file.path not in damaged], console)
    if damaged:
        taken = "used" if config.data.damaged_images == "use" else "left out"
        _print_files("damaged", scan.damaged, console, note=f", {taken} (data.damaged_images=leave_out|use)")
    _print_files("left out", scan.skipped, console)
    _print_metadata(findings, console)
    if findings.suspicious_labels is not None:
        console.line("labels", f"{len(findings.suspicious_labels)} are suspicious, by an out-of-fold classifier")
        for found in findings.suspicious_labels[:MAX_LINES]:
            name, other = names[found.row.label], names[1 - found.row.label]
            console.line("", f"{found.row.path} is {name}; probability of {other} {found.other_class_probability:.2f}")
    if not findings.has_groups and len(groups) < len(rows) / 20:
        console.warn(
            "images of one ride or place may be in different splits: give groups by a column group in index.csv, or by "
            "data.group_pattern"
        )
    if not findings.has_groups:
        _print_group_suggestions(findings, config.data.grouping, console)
    path = page or config.root.with_name(f"{config.root.name}_check.html")
    try:
        write_text_atomic(path, html)
    except ArtifactError as error:
        raise ArtifactError(
            error.message, "free disk space, or set --page to a file in a folder with write permission"
        ) from error
    console.line("page", str(path))
    check_invalid_fraction(scan, max_invalid_fraction=config.data.max_invalid_fraction, report=path)
    _warn_of_few_groups(replace(findings.index, rows=rows), config.data, console)


def _warn_of_few_groups(index: Index, config: DataConfig, console: Console) -> None:
    """Warn if the rows cannot be divided for a training."""
    try:  # cross_fit needs the fewest groups
        make_folds(index, fractions=config.fractions, folds=config.folds, seed=config.seed)
    except DataError as error:
        console.warn(f"train would stop: {error.message}")


def _print_group_suggestions(findings: Findings, grouping: GroupingConfig, console: Console) -> None:
    """Settings that would give groups, by names and by positions."""
    rows = findings.index.rows
    if suggestion := suggest_pattern([row.path for row in rows]):
        pattern, n_groups = suggestion
        setting = shlex.quote(f"data.group_pattern={pattern}")
        console.line("suggestion", f"the names run in sequences: {setting} gives {n_groups} groups")
    located = [row for row in rows if has_position(row)]
    if located and "place" not in grouping.by:
        try:
            n_places = len(set(geo_keys(located, metres=grouping.metres, hours=grouping.hours)))
        except DataError as error:
            console.warn(f"no groups by place are suggested: {error.message}")
            return
        setting = shlex.quote(f"data.grouping.by=[{','.join((*grouping.by, 'place'))}]")
        console.line("suggestion", f"{len(located)} images have positions: {setting} gives {n_places} places")


def _print_near_duplicates(findings: Findings, console: Console) -> None:
    near = findings.near_duplicates
    if near is None:
        console.line("copies", "not checked: near_duplicates is not in data.grouping.by")
        return
    for label, clusters, meaning in (
        ("copies", findings.copies, "the same photograph"),
        ("similar", findings.similar_views, "similar views, such as neighboring frames; they stay in one split"),
    ):
        found = f"{sum(map(len, clusters))} images in {len(clusters)} clusters" if clusters else "none"
        console.line(label, f"{found} ({meaning})")
    largest = max(map(len, near.clusters), default=0)
    if largest > len(findings.index.rows) / 10:
        console.warn(
            f"one cluster has {largest} images; if they are different, as tight crops of similar objects are, raise "
            f"data.grouping.correlation (now {near.correlation:g})"
        )
    if findings.conflicts:
        console.warn(f"{len(findings.conflicts)} clusters of copies have both labels, so some are wrong; see the page")


def _print_embedding_duplicates(findings: Findings, console: Console) -> None:
    found, rows = findings.embedding_duplicates, findings.index.rows
    if found is None:
        return
    console.line(
        "embeddings",
        f"median cosine {found.within:.2f} among near-duplicates, {found.between:.2f} to the most similar other image",
    )
    for pairs, description in (
        (found.missed, "similar, but not near-duplicates"),
        (found.doubtful, "near-duplicates, but not similar"),
    ):
        console.line("", f"{len(pairs)} pairs are {description}")
        for first, second, cosine in pairs[:MAX_LINES]:
            console.line("", f"{rows[first].path} and {rows[second].path}: {cosine:.2f}")


def _print_files(label: str, files: Sequence[RejectedFile], console: Console, *, note: str = "") -> None:
    console.line(label, f"{len(files)}{note}")
    for file in files[:MAX_LINES]:
        console.line("", f"{file.path} {file.reason}")
    if len(files) > MAX_LINES:
        console.line("", f"and {len(files) - MAX_LINES} more")


def _print_metadata(findings: Findings, console: Console) -> None:
    for label, name in enumerate(findings.index.class_names):
        metadata = [(row.width, row.height, row.brightness) for row in findings.index.rows if row.label == label]
        if metadata:
            width, height, brightness = np.median(metadata, axis=0)
            console.line("", f"{name}: median {width:.0f} x {height:.0f} pixels, brightness {brightness:.2f}")
    auc = findings.metadata_auc
    if auc is None:
        console.line("metadata", "too few groups to check whether size and brightness reveal the label")
        return
    meaning = f"0.5 is chance; above {CONFOUNDED_AUC:g} they reveal the label"
    console.line("metadata", f"size and brightness alone: ROC-AUC {auc:.2f} ({meaning})")
    if findings.confounded:
        console.warn("size or brightness reveals the label: use the same cameras and hours for both classes")
