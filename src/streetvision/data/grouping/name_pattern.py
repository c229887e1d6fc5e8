"""Groups and sources of images from their names: regular expressions, and a suggestion of one."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from streetvision.contracts.errors import DataError
from streetvision.data.config import DataConfig
from streetvision.data.records import ImageListing

SUGGESTIONS = (
    r"([^/]+)[_-]\d+\.\w+$",
    r"\d+[_-]([^/]+)[_-]\d+\.\w+$",
    r"([^/]*[^/\d])\d+\.\w+$",
    r"((?:19|20)\d\d[-_]?\d\d[-_]?\d\d)[^/]*$",
    r"([^/]+)/[^/]+$",
)
"""Patterns of names that run in sequences, the most specific first: a ride before a frame number, also behind another
number; a prefix before a number; a date; a folder."""
MIN_MATCHES = 0.9
"""Share of the names that a suggested pattern must match."""
MIN_GROUPS = 4
"""Fewer groups cannot be divided among four splits."""
MIN_GROUP_SIZE = 2.0
"""Mean number of images in a group from which a pattern is suggested."""
MAX_SHARE = 0.5
"""Share of the images in the largest group up to which a pattern is suggested."""


def groups_by_name(names: Sequence[str], pattern: str) -> list[str | None]:
    """Return the group of each name: what the first parentheses of the pattern match, or else the whole match.

    The pattern may match anywhere in the name. None: it does not match.
    """
    expression = re.compile(pattern)
    matches = map(expression.search, names)
    return [(match and (match[1] if expression.groups else match[0])) or None for match in matches]


def suggest_pattern(names: Sequence[str]) -> tuple[str, int] | None:
    """Return the pattern of SUGGESTIONS that gives useful groups, and their number; None if none does."""
    for pattern in SUGGESTIONS:
        groups = groups_by_name(names, pattern)
        sizes = Counter(group for group in groups if group is not None)
        matched = sizes.total()
        if (
            matched >= MIN_MATCHES * len(names)
            and len(sizes) >= MIN_GROUPS
            and matched >= MIN_GROUP_SIZE * len(sizes)
            and max(sizes.values()) <= MAX_SHARE * len(names)
        ):
            return pattern, len(sizes)
    return None


def apply_patterns(listing: ImageListing, config: DataConfig) -> ImageListing:
    """Return the listing with groups by data.group_pattern and sources by data.source_pattern, if these are set.

    A group of the index is kept. A source is found in the source of the index, or in the path if there is none.

    Raises:
        DataError: A pattern matches no image.
    """
    images = listing.images
    if config.group_pattern is not None:
        groups = _matched("group", config.group_pattern, [image.path for image in images])
        images = tuple(replace(image, group=image.group or group) for image, group in zip(images, groups, strict=True))
    if config.source_pattern is not None:
        sources = _matched("source", config.source_pattern, [image.source or image.path for image in images])
        images = tuple(replace(image, source=source) for image, source in zip(images, sources, strict=True))
    return replace(listing, images=images)


def _matched(field: str, pattern: str, names: Sequence[str]) -> list[str | None]:
    """The match of each name; raises DataError if there is none at all."""
    found = groups_by_name(names, pattern)
    if names and not any(found):
        raise DataError(
            f"data.{field}_pattern {pattern!r} matches no name, for example not {names[0]!r}",
            f"the pattern is a regular expression; the {field} is what its first parentheses match",
        )
    return found
