"""The upload page in a browser: it shows the prediction for an image, and requests nothing from other servers."""

import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from streetvision import load_bundle
from streetvision.monitoring.monitor import Monitor
from streetvision.serving.server import ServingConfig, create_app


@contextmanager
def running(app):
    """The address of a server that runs the application."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(finished_run):
    """A running server with a key."""
    with running(create_app(load_bundle(finished_run / "export"), ServingConfig(api_key="secret"))) as address:
        yield address


def test_the_page_shows_the_prediction_for_a_file_and_reports_a_missing_key(browser, address, finished_run, scenes):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    logged, requested = [], []
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("console", lambda message: logged.append(message.text))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address, wait_until="networkidle")
    image = sorted((scenes / "images").iterdir())[0]
    page.set_input_files("#file", str(image))
    page.locator("#prediction.error").get_by_text("X-API-Key").wait_for()
    page.fill("#key", "secret")
    page.set_input_files("#file", [])
    page.set_input_files("#file", str(image))
    expected = load_bundle(finished_run / "export").predict(image)[0]
    page.get_by_text(f"Prediction: {expected.label}").wait_for()
    page.get_by_text(f"{100 * expected.probability:.1f} %").last.wait_for()
    assert page.eval_on_selector("#preview", "image => image.naturalWidth") > 0
    assert page.inner_text("#address") == address
    width, screen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= screen
    assert all(url.startswith((address, f"blob:{address}")) for url in requested if "favicon" not in url)
    assert [line for line in logged if "401" not in line and "favicon" not in line] == []
    page.close()


def test_the_page_shows_why_the_certificate_is_withdrawn(browser, finished_run, scenes, tmp_path):
    predictor, state = load_bundle(finished_run / "export"), tmp_path / "state"
    monitor = Monitor(predictor.bundle)
    monitor.state.write(state, monitor.status.model_copy(update={"withdrawn": "the risk is too high"}))
    with running(create_app(predictor, ServingConfig(monitor_state=state))) as address:
        page = browser.new_page()
        page.goto(address, wait_until="networkidle")
        page.set_input_files("#file", str(sorted((scenes / "images").iterdir())[0]))
        page.locator("#certificate").get_by_text("the risk is too high").wait_for()
        page.close()
