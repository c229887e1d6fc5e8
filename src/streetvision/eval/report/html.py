"""Self-contained HTML pages from Jinja2 templates: autoescaped, readable offline, without scripts or remote content."""

from base64 import b64encode
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from streetvision.contracts.errors import DataError

PACKAGE = "streetvision.eval.report"
"""Holds the shared templates: `base.html.j2`, which pages extend, and `report.css`."""
MEDIA_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
"""First bytes of an image -> its media type."""


@cache
def environment(package: str = PACKAGE) -> Environment:
    """The Jinja2 environment of the templates in `package`/templates, which may extend the shared ones.

    Every value is escaped, except in Markdown templates (`*.md.j2`). An undefined variable raises an error.
    """
    packages = dict.fromkeys((package, PACKAGE))
    return Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=select_autoescape(disabled_extensions=("md.j2",), default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def inline_image(content: bytes, *, alt: str) -> Markup:
    """An <img> element that contains the image itself.

    Raises:
        DataError: `content` is not PNG, JPEG or WebP.
    """
    media = next((media for start, media in MEDIA_TYPES.items() if content.startswith(start)), None)
    if media is None:
        raise DataError(f"the image {alt!r} is not PNG, JPEG or WebP", "encode it as PNG")
    return Markup('<img alt="{}" src="data:{};base64,{}">').format(alt, media, b64encode(content).decode())
