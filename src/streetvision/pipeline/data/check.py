"""streetvision data check: what the findings are in a terminal, and where the page with the pictures lies."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streetvision.data.records import BadFile
from streetvision.io.atomic import write_text_atomic
from streetvision.pipeline.config import compose_config
from streetvision.pipeline.console import Console
from streetvision.pipeline.data.findings import Findings, find_faults
from streetvision.pipeline.data.page import render_findings

SHOWN = 10


def check_data(
    root: str, overrides: Sequence[str], *, labels: bool, embeddings: bool, page: Path | None, console: Console
) -> None:
    """Look at every image of `root`, print what is wrong with the data set, and write a page with the pictures.

    Without `page` it lies in outputs/, named after the data set.
    """
    config = compose_config(overrides, base={"data": {"root": root}})
    findings = find_faults(root, config, labels=labels, embeddings=embeddings, progress=console)
    _show(findings, console)
    path = page or config.root.with_name(f"{config.root.name}_check.html")
    write_text_atomic(path, render_findings(findings, title=root, limits=config.loader.limits))
    console.line("page", str(path))


def _show(findings: Findings, console: Console) -> None:
    scan, rows, names = findings.scan, findings.index.rows, findings.index.class_names
    counts = [sum(row.label == label for row in rows) for label in (0, 1)]
    groups = {row.group for row in rows if row.group is not None}
    console.line("images", f"{len(rows)}: {counts[0]} {names[0]}, {counts[1]} {names[1]}")
    console.line("groups", f"{len(groups)}" if groups else "none: every image is dealt on its own")
    console.line("copies", f"{scan.duplicates} repeat the content of another image; they stay in one split")
    _show_near(findings, console)
    _show_opinion(findings, console)
    _show_files("unusable", scan.bad, console)
    _show_files("left out", scan.left_out, console)
    _show_metadata(findings, console)
    if findings.doubts is not None:
        console.line("labels", f"{len(findings.doubts)} are doubted by a classifier that never saw their image")
        for doubt in findings.doubts[:SHOWN]:
            console.line("", f"{doubt.row.path} is {names[doubt.row.label]}; against it {doubt.against:.2f}")
    if len(groups) < len(rows) / 20:
        console.warn("frames of one ride or place leak between splits unless a group column names them (CSV index)")


def _show_near(findings: Findings, console: Console) -> None:
    found = findings.near_duplicates
    if found is None:
        console.line("near copies", "not looked for: data.grouping.by does not name near_duplicates")
        return
    images = sum(len(cluster) for cluster in found.clusters)
    console.line("near copies", f"{images} images in {len(found.clusters)} clusters ({found.pairs} pairs)")
    largest = max((len(cluster) for cluster in found.clusters), default=0)
    if largest > len(findings.index.rows) / 10:
        console.warn(
            f"one cluster holds {largest} images: where these differ, raise data.grouping.correlation "
            f"(now {found.correlation:g}), as for tight crops of one kind of object"
        )
    if findings.conflicts:
        console.warn(f"{len(findings.conflicts)} clusters of near copies have both labels; the page shows them")


def _show_opinion(findings: Findings, console: Console) -> None:
    found, rows = findings.opinion, findings.index.rows
    if found is None:
        return
    console.line(
        "embeddings",
        f"cosine {found.within:.2f} among near copies, {found.between:.2f} to the most alike other image (medians)",
    )
    for pairs, what in (
        (found.apart, "alike, and not among the near copies"),
        (found.together, "among them, and not alike"),
    ):
        console.line("", f"{len(pairs)} pairs {what}")
        for one, other, cosine in pairs[:SHOWN]:
            console.line("", f"{rows[one].path} and {rows[other].path}: {cosine:.2f}")


def _show_files(label: str, files: Sequence[BadFile], console: Console) -> None:
    console.line(label, str(len(files)))
    for file in files[:SHOWN]:
        console.line("", f"{file.path} {file.reason}")
    if len(files) > SHOWN:
        console.line("", f"and {len(files) - SHOWN} more")


def _show_metadata(findings: Findings, console: Console) -> None:
    for label, name in enumerate(findings.index.class_names):
        facts = [(row.width, row.height, row.brightness) for row in findings.index.rows if row.label == label]
        if facts:
            width, height, brightness = np.median(facts, axis=0)
            console.line("", f"{name}: median {width:.0f} x {height:.0f} pixels, brightness {brightness:.2f}")
    if findings.metadata_auc is None:
        console.line("confounds", "too few groups to tell")
        return
    auc = findings.metadata_auc
    console.line(
        "confounds", f"size and brightness alone rank the classes with ROC-AUC {auc:.2f} (0.50 or less says nothing)"
    )
    if findings.confounded:
        console.warn("size or brightness gives the label away: take both classes from the same cameras and hours")
