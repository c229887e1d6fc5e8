"""The report as a person meets it: in a browser, offline, on a desk and on a phone."""

import pytest

from streetvision.contracts.artifact_schema import ArtifactSchema

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(params=[DESK, PHONE], ids=["desk", "phone"])
def visit(request, browser, finished_run):
    """The open page, and what it logged and asked for."""
    page = browser.new_page(viewport=request.param)
    logged, asked = [], []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    address = ArtifactSchema(finished_run).report_html.as_uri()
    page.goto(address, wait_until="networkidle")
    yield page, address, logged, asked
    page.close()


def test_nothing_is_logged_and_nothing_is_asked_of_the_world(visit):
    _, address, logged, asked = visit
    assert logged == []
    assert [url for url in asked if not url.startswith("data:")] == [address]


def test_every_picture_is_there(visit):
    page, *_ = visit
    sizes = page.eval_on_selector_all("img", "images => images.map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert len(sizes) >= 5
    assert all(complete and natural > 0 and shown > 0 for complete, natural, shown in sizes)


def test_the_page_is_no_wider_than_the_screen_and_starts_with_the_verdict(visit):
    page, *_ = visit
    width, screen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= screen
    box = page.locator(".verdict").bounding_box()
    assert box["y"] + box["height"] < page.viewport_size["height"] / 2
    letters = page.eval_on_selector(".lead", "e => parseFloat(getComputedStyle(e).fontSize)")
    assert letters >= 14


def test_scripts_are_forbidden_on_the_page(browser, finished_run, tmp_path):
    text = ArtifactSchema(finished_run).report_html.read_text(encoding="utf-8")
    hostile = tmp_path / "hostile.html"
    hostile.write_text(text.replace("</main>", "<script>document.title = 'owned'</script></main>"), encoding="utf-8")
    page = browser.new_page()
    page.goto(hostile.as_uri())
    assert page.title() != "owned"
    page.close()
