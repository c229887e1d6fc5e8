"""Banned words and their replacements: `python -m tests.lexicon PATH...` lists every hit.

A word is a hit unless it is part of a longer run of letters, so the parts of identifiers are hits too.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("README.md", "docs", "benchmarks", "examples", "scripts", "src/streetvision")
SUFFIXES = {".py", ".md", ".html", ".css", ".j2", ".yaml", ".svg"}

INSTEAD = {
    r"judg(?:e|es|ed|ing|ement|ements|ment)": "evaluate, compare",
    r"tell|tells|told|telling": "report, print, show",
    r"say|says|said|saying": "report, print, state",
    r"mend|mends|mended|remedy|remedies": "fix, hint",
    r"anew|afresh": "again",
    r"go on|goes on|went on|gone on|going on": "resume, continue",
    r"beside|besides": "next to, compared with, also",
    r"kin": "group ids, similar",
    r"look|looks|looked|looking": "access, view, check, appear",
    r"ledger": "access log",
    r"deal|deals|dealt|dealing": "assign, split",
    r"lookalike|lookalikes|alike|doubled": "near-duplicate, duplicate, similar",
    r"seal|seals|sealed|sealing": "digest, checksummed",
    r"stranger|strangers": "untrusted client, unexpected file",
    r"hand over|hands over|handed over|handing over": "abstain, defer",
    r"answer|answers|answered|answering": "prediction, response, return",
    r"cut off|cuts off": "threshold, truncated",
    r"floors": "layers",
    r"not read by": "has no effect when",
    r"nobody|somebody|anybody|whoever": "user, reader, no one named",
    r"lie|lies": "is",
    r"stand|stands|stood": "is, be",
    r"wherever|whichever|whatever": "where, which, any",
    r"believe|believes|believed": "calibrated, reliable",
    r"want|wants|wanted": "request, target",
}
"""Pattern -> what to write instead."""

ALLOWED = (
    "stands for",  # an abbreviation
    "look up",
    "lookup",
    "study.tell",  # Optuna
)
"""Phrases in which a banned word is the usual term."""

PATTERN = re.compile(rf"(?<![a-z])(?:{'|'.join(INSTEAD)})(?![a-z])", re.IGNORECASE)


def hits(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, word, line) of every banned word in a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        plain = line
        for phrase in ALLOWED:
            plain = re.sub(rf"\b{re.escape(phrase)}\b", "", plain, flags=re.IGNORECASE)
        for match in PATTERN.finditer(plain):
            yield number, match[0], line.strip()


def files(places: list[Path]) -> list[Path]:
    """The text files at and below `places`."""
    paths = (file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*"))))
    return [file for file in paths if file.is_file() and file.suffix in SUFFIXES]


if __name__ == "__main__":
    results = [(path, hit) for path in files([Path(argument) for argument in sys.argv[1:]]) for hit in hits(path)]
    for path, (number, word, line) in results:
        print(f"{path}:{number}: {word}: {line[:110]}")  # noqa: T201
    sys.exit(f"{len(results)} hits" if results else 0)
