"""The findings of a data check as one HTML page with thumbnails: it opens offline, like the report."""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from streetvision.contracts.split_contracts import Row
from streetvision.data.config import DecodeLimits
from streetvision.data.decode import UndecodableImage
from streetvision.data.records import BadFile
from streetvision.data.thumbnail import thumbnail
from streetvision.eval.report.html import inline_image
from streetvision.eval.report.page import html_page
from streetvision.pipeline.data.findings import DOUBTED, Findings

CLUSTERS_SHOWN = 12
A_CLUSTER_SHOWS = 4
DOUBTS_SHOWN = 24
FILES_SHOWN = 200


def render_findings(findings: Findings, *, title: str, limits: DecodeLimits) -> str:
    """The page. Texts from the data set are escaped; pictures are read anew, small, and only those that are shown."""
    shown = _Pictures(findings, limits)
    conflicting = set(findings.conflicts)
    clusters = [c for c in _clusters(findings) if c not in conflicting]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{escape(_verdict(findings))}</p>',
        *(f'<p class="note">{escape(note)}</p>' for note in _notes(findings)),
        _classes(findings),
        _gallery("Near copies with both labels", findings.conflicts, shown),
        _gallery("Near copies, the largest clusters", clusters, shown),
        *_opinions(findings, shown),
        _doubts(findings, shown),
        _files("Images that cannot be used", findings.scan.bad),
        _files("Files that were left out", findings.scan.left_out),
    ]
    return html_page(f"Data check of {title}", "\n".join(part for part in parts if part))


class _Pictures:
    """Figures of single images, with what is known of each."""

    def __init__(self, findings: Findings, limits: DecodeLimits) -> None:
        self.root, self.names, self.limits = findings.index.root, findings.index.class_names, limits

    def figure(self, row: Row, note: str = "") -> str:
        """One image with its label, its name and a note."""
        try:
            picture: str = inline_image(thumbnail(self.root / row.path, self.limits), alt=row.path)
        except UndecodableImage:
            picture = "<p>cannot be read any more</p>"
        label = escape(f"{self.names[row.label]}{note}")
        return (
            f'<figure class="card">{picture}<figcaption>{label}'
            f'<span class="name">{escape(row.path)}</span></figcaption></figure>'
        )


def _verdict(findings: Findings) -> str:
    scan, found = findings.scan, findings.near_duplicates
    near = f", {sum(map(len, found.clusters)):,} with near copies" if found else ""
    return f"{len(findings.index.rows):,} usable images{near}; {len(scan.bad):,} cannot be used."


def _notes(findings: Findings) -> Iterable[str]:
    if findings.confounded:
        yield (
            f"Size and brightness alone rank the classes with ROC-AUC {findings.metadata_auc:.2f}: a model may learn "
            "these instead of what the pictures show."
        )
    if findings.conflicts:
        yield f"{len(findings.conflicts):,} clusters of near copies have both labels: at least one label is wrong."


def _classes(findings: Findings) -> str:
    rows = []
    for label, name in enumerate(findings.index.class_names):
        of_class = [row for row in findings.index.rows if row.label == label]
        share = len(of_class) / max(1, len(findings.index.rows))
        facts = np.array([(row.width, row.height, row.brightness) for row in of_class] or [(0, 0, 0)])
        width, height, brightness = np.median(facts, axis=0)
        cells = (f"{len(of_class):,}", f"{share:.0%}", f"{width:.0f} x {height:.0f}", f"{brightness:.2f}")
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(f'<td class=number>{cell}</td>' for cell in cells)}</tr>")
    heads = ("class", "images", "share", "median size", "median brightness")
    head = "".join(f"<th>{text}</th>" for text in heads)
    auc = findings.metadata_auc
    told = "Too few groups to tell whether size and brightness give the label away."
    if auc is not None:
        told = f"Size and brightness alone rank the classes with ROC-AUC {auc:.2f}; 0.50 says nothing."
    table = (
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
    return f'<h2>Do the classes differ in more than they should?</h2>{table}<p class="after">{told}</p>'


def _clusters(findings: Findings) -> list[tuple[Row, ...]]:
    """The clusters of near-duplicates, the largest first."""
    by_path = {row.path: row for row in findings.index.rows}
    found = findings.near_duplicates.clusters if findings.near_duplicates else ()
    return [tuple(by_path[path] for path in paths) for paths in sorted(found, key=lambda paths: (-len(paths), paths))]


def _gallery(heading: str, clusters: Sequence[tuple[Row, ...]], shown: _Pictures) -> str:
    if not clusters:
        return ""
    parts = [f"<h2>{heading}</h2>"]
    for cluster in clusters[:CLUSTERS_SHOWN]:
        figures = "".join(shown.figure(row) for row in _both_labels_first(cluster)[:A_CLUSTER_SHOWS])
        parts.append(f'<h3>{len(cluster):,} images</h3><div class="gallery">{figures}</div>')
    if len(clusters) > CLUSTERS_SHOWN:
        parts.append(f'<p class="after">and {len(clusters) - CLUSTERS_SHOWN:,} clusters more</p>')
    return "".join(parts)


def _opinions(findings: Findings, shown: _Pictures) -> Iterable[str]:
    """Where the embeddings of a backbone disagree with the clusters."""
    found, rows = findings.opinion, findings.index.rows
    if found is None:
        return
    kinds = (
        ("Alike, and not among the near copies", found.apart),
        ("Among the near copies, and not alike", found.together),
    )
    told = (
        f"By the cosine of their embeddings, of which {found.limit:.2f} is half-way between near copies and others. "
        "It is an opinion, and changes no cluster."
    )
    for heading, pairs in kinds:
        figures = "".join(
            f"<h3>cosine {cosine:.2f}</h3>"
            f'<div class="gallery">{shown.figure(rows[one])}{shown.figure(rows[other])}</div>'
            for one, other, cosine in pairs[:CLUSTERS_SHOWN]
        )
        yield f'<h2>{heading}</h2>{figures}<p class="after">{told}</p>' if figures else ""


def _both_labels_first(cluster: tuple[Row, ...]) -> list[Row]:
    """The rows with one of each label in front, so that a few of them show what is at odds."""
    first = {row.label: row for row in reversed(cluster)}
    return [*first.values(), *(row for row in cluster if row not in first.values())]


def _doubts(findings: Findings, shown: _Pictures) -> str:
    if not findings.doubts:
        return ""
    figures = "".join(shown.figure(d.row, f", against it {d.against:.2f}") for d in findings.doubts[:DOUBTS_SHOWN])
    told = (
        f"{len(findings.doubts):,} labels are contradicted, with a probability of {DOUBTED} or more, by a classifier "
        "that was fitted on other groups. It may be wrong; look before you relabel."
    )
    return f'<h2>Labels in doubt</h2><div class="gallery">{figures}</div><p class="after">{told}</p>'


def _files(heading: str, files: Sequence[BadFile]) -> str:
    if not files:
        return ""
    lines = "".join(f"<dt>{escape(f.reason)}</dt><dd>{escape(f.path)}</dd>" for f in files[:FILES_SHOWN])
    more = f'<p class="after">and {len(files) - FILES_SHOWN:,} more</p>' if len(files) > FILES_SHOWN else ""
    return f'<h2>{heading}</h2><dl class="card">{lines}</dl>{more}'
