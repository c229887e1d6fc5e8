"""The findings of a data check as one HTML page with thumbnails, readable offline."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from streetvision.contracts.split_contracts import Row
from streetvision.data.config import DecodeLimits
from streetvision.data.image_file import UndecodableImage
from streetvision.data.thumbnail import thumbnail
from streetvision.eval.report.html import environment, inline_image
from streetvision.pipeline.data.findings import SUSPICIOUS_FROM, Findings

MAX_CLUSTERS = 12
MAX_IMAGES_PER_CLUSTER = 4
MAX_LABELS = 24
MAX_FILES = 200


def render_findings(findings: Findings, *, title: str, limits: DecodeLimits) -> str:
    """Render the page. The template escapes every text; only the images on the page are read again."""
    usable, class_names = findings.usable, findings.index.class_names

    def image(row: Row) -> Markup:
        try:
            return inline_image(thumbnail(findings.index.root / row.path, limits), alt=row.path)
        except UndecodableImage:  # it changed after the scan
            return Markup("<p>can no longer be read</p>")

    classes = []
    for label, name in enumerate(class_names):
        of_class = [row for row in usable if row.label == label]
        share = len(of_class) / max(1, len(usable))
        metadata = np.array([(row.width, row.height, row.brightness) for row in of_class] or [(0, 0, 0)])
        width, height, brightness = np.median(metadata, axis=0)
        cells = (f"{len(of_class):,}", f"{share:.0%}", f"{width:.0f} x {height:.0f}", f"{brightness:.2f}")
        classes.append((name, cells))

    conflicts = set(findings.conflicts)
    copies = [cluster for cluster in findings.copies if cluster not in conflicts]
    template = environment("streetvision.pipeline.data").get_template("data_check.html.j2")
    return template.render(
        title=title,
        findings=findings,
        rows=findings.index.rows,
        n_usable=len(usable),
        n_groups=len({row.group for row in usable if row.group is not None}),
        class_names=class_names,
        classes=classes,
        copies=_largest_first(copies),
        similar_views=_largest_first(findings.similar_views),
        image=image,
        both_labels_first=_both_labels_first,
        max_clusters=MAX_CLUSTERS,
        max_images=MAX_IMAGES_PER_CLUSTER,
        max_labels=MAX_LABELS,
        max_files=MAX_FILES,
        suspicious_from=SUSPICIOUS_FROM,
    )


def _largest_first(clusters: Sequence[tuple[Row, ...]]) -> list[tuple[Row, ...]]:
    return sorted(clusters, key=lambda cluster: (-len(cluster), [row.path for row in cluster]))


def _both_labels_first(cluster: tuple[Row, ...]) -> list[Row]:
    """The rows with one of each label first, so that the images on the page show the conflict."""
    first = {row.label: row for row in reversed(cluster)}
    return [*first.values(), *(row for row in cluster if row not in first.values())]
