"""Groups of images from their names: a regular expression, and a suggestion of one."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from streetvision.contracts.errors import DataError
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


def group_by_name(listing: ImageListing, pattern: str | None) -> ImageListing:
    """Return the listing with groups by `groups_by_name`, for images without a group of their index.

    Raises:
        DataError: The pattern matches no name.
    """
    if pattern is None:
        return listing
    names = [image.path for image in listing.images]
    groups = groups_by_name(names, pattern)
    if names and not any(groups):
        raise DataError(
            f"data.group_pattern {pattern!r} matches no name, for example not {names[0]!r}",
            "the pattern is a regular expression; the group is what its first parentheses match",
        )
    images = (replace(image, group=image.group or group) for image, group in zip(listing.images, groups, strict=True))
    return replace(listing, images=tuple(images))
