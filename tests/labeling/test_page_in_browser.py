"""The page in a browser: every decision by keyboard is stored once, across a killed server, a reload and two tabs."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest

from streetvision.data.labels.store import read_events
from tests.labeling.conftest import NAMES, photo

SERVER = """
import sys
from pathlib import Path
import uvicorn
from streetvision.data.config import DEFAULT_LIMITS
from streetvision.data.labels.store import LabelStore
from streetvision.labeling.queue import Queue, QueuedImage
from streetvision.labeling.server import create_app
from streetvision.labeling.session import Session
folder, port = Path(sys.argv[1]), int(sys.argv[2])
lines = (folder / "queue").read_text().splitlines()
images = [QueuedImage(*line.split(), None, "uncertain", "a reason") for line in lines]
store = LabelStore(folder / "labels.parquet", ("None", "Roadwork"))
session = Session(Queue(tuple(images), None), store, labeler="ann", limits=DEFAULT_LIMITS)
uvicorn.run(create_app(session, class_names=("None", "Roadwork")), port=port, log_level="error")
"""

CONFIRMED = "() => storage('pending').length === 0"


@pytest.fixture
def server(tmp_path):
    """Start the server; it can be killed and started again at the same address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = []
    for number in range(24):
        path = tmp_path / f"{number}.jpg"
        lines.append(f"{photo(path, number)} {path}")
    (tmp_path / "queue").write_text("\n".join(lines))
    running = []

    def start():
        running.append(subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path), str(port)]))
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return running[-1]
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server does not start")

    yield start, f"http://127.0.0.1:{port}/", tmp_path / "labels.parquet"
    for process in running:
        process.kill()
        process.wait()


def shown(page):
    return page.get_attribute("#image", "data-sha256")


def press(page, key):
    """Decide on the image that is shown, and wait for the next one."""
    before = shown(page)
    page.keyboard.press(key)
    changed = "before => image.hidden || image.dataset.sha256 !== before"  # `image` is the element with this id
    page.wait_for_function(changed, arg=before)
    return before


def test_every_decision_is_stored_once(browser, server):
    start, address, path = server
    process = start()
    logged, requested = [], []
    context = browser.new_context(viewport={"width": 820, "height": 1180})
    pages = [context.new_page() for _ in range(2)]
    for page in pages:
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        page.wait_for_selector("#image:not([hidden])")
    made = Counter()
    for number in range(12):
        page = pages[number % 2]
        made[press(page, "yn"[number // 2 % 2])] += 1
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for page in pages:
        made[press(page, "y")] += 1
        page.get_by_text("kept in this tab").wait_for()
    start()
    pages[1].wait_for_function(CONFIRMED)  # without a reload
    pages[0].reload()
    pages[0].wait_for_selector("#image:not([hidden])")
    undone = press(pages[0], "n")
    pages[0].keyboard.press("u")
    pages[0].wait_for_function("sha256 => document.getElementById('image').dataset.sha256 === sha256", arg=undone)
    while not pages[0].is_visible("#empty"):
        made[press(pages[0], "y")] += 1
        if len(made) > 24:
            break
    pages[0].wait_for_function(CONFIRMED)
    events = read_events(path, NAMES)
    labels = Counter(event.sha256 for event in events if event.action == "label")
    undos = [event.sha256 for event in events if event.action == "undo"]
    assert undos == [undone]
    assert labels - Counter(undos) == made
    assert set(made.values()) == {1}
    width, screen = pages[0].evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= screen
    assert all(url.startswith((address, f"blob:{address}")) for url in requested)
    assert logged == []


def test_a_failed_write_is_shown_and_the_decision_is_sent_again(browser, server):
    """The image was shown for two days, which is more than the server accepts."""
    start, address, path = server
    start()
    page = browser.new_context().new_page()
    page.goto(address)
    page.wait_for_selector("#image:not([hidden])")
    page.evaluate("() => { performance.now = () => 2 * 86400e3 }")
    path.mkdir()  # the file cannot replace it
    made = press(page, "y")
    page.get_by_text(f"cannot write '{path}'").wait_for()
    path.rmdir()
    page.wait_for_function(CONFIRMED)
    assert [event.sha256 for event in read_events(path, NAMES)] == [made]


def test_images_are_requested_again_after_a_failure_and_none_are_left_only_if_the_server_says_so(browser, server):
    start, address, _ = server
    process = start()
    page = browser.new_context().new_page()
    page.goto(address)
    page.wait_for_selector("#image:not([hidden])")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    page.evaluate("start()")
    page.get_by_text("The server cannot be reached.").wait_for()
    assert not page.is_visible("#empty")
    start()
    page.wait_for_selector("#image:not([hidden])")
    assert not page.is_visible("#empty")
    press(page, "y")
