import pytest
from jinja2 import UndefinedError

from streetvision.contracts.errors import DataError
from streetvision.eval.report.html import environment, inline_image

PAGE = '{% extends "base.html.j2" %}{% block title %}{{ title }}{% endblock %}{% block main %}{{ main }}{% endblock %}'


def test_pages_escape_values_and_contain_their_style_and_policy():
    page = environment().from_string(PAGE).render(title="<b>", main="<script>")
    assert "<title>&lt;b&gt;</title>" in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert ".verdict {" in page


def test_undefined_variables_are_errors():
    with pytest.raises(UndefinedError):
        environment().from_string(PAGE).render(title="only")


@pytest.mark.parametrize(
    ("content", "media"), [(b"\x89PNG.", "image/png"), (b"\xff\xd8\xff.", "image/jpeg"), (b"RIFF.", "image/webp")]
)
def test_images_are_data_urls_with_an_escaped_description(content, media):
    image = inline_image(content, alt='"><script>')
    assert f'src="data:{media};base64,' in image
    assert "<script" not in image
    assert environment().from_string("{{ image }}").render(image=image) == image


def test_other_image_formats_are_errors():
    with pytest.raises(DataError, match="PNG, JPEG or WebP"):
        inline_image(b"GIF89a", alt="x")
