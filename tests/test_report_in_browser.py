"""The report in a browser, offline, on a desktop screen and on a phone screen."""

import pytest

from streetvision.contracts.artifact_schema import ArtifactSchema

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def visit(request, browser, finished_run):
    """The open page, its address, its log messages and its requests."""
    page = browser.new_page(viewport=request.param)
    messages, requests = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    address = ArtifactSchema(finished_run).report_html.as_uri()
    page.goto(address, wait_until="networkidle")
    yield page, address, messages, requests
    page.close()


def test_the_page_logs_nothing_and_requests_nothing(visit):
    _, address, messages, requests = visit
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [address]


def test_every_image_is_shown(visit):
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
    font_size = page.eval_on_selector(".lead", "e => parseFloat(getComputedStyle(e).fontSize)")
    assert font_size >= 14


def test_scripts_do_not_run_on_the_page(browser, finished_run, tmp_path):
    text = ArtifactSchema(finished_run).report_html.read_text(encoding="utf-8")
    hostile = tmp_path / "hostile.html"
    hostile.write_text(text.replace("</main>", "<script>document.title = 'owned'</script></main>"), encoding="utf-8")
    page = browser.new_page()
    page.goto(hostile.as_uri())
    assert page.title() != "owned"
    page.close()
