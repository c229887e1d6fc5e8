"""The page's requests: nothing is lost or stored twice, and other web pages cannot send any."""

import io
import re
import signal
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from streetvision.labeling.queue import Queue
from streetvision.labeling.server import create_app
from streetvision.labeling.session import LEASE_SECONDS
from streetvision.serving.launch import open_listener, run_app
from tests.labeling.conftest import NAMES


@pytest.fixture
def client(open_session):
    def open_(**options):
        session = open_session(**options.pop("session", {}))
        return TestClient(create_app(session, class_names=NAMES, **options)), session

    return open_


def decide(client, image, label=1, event=1, **fields):
    return client.post("/decide", json={"event": f"{event:032x}", "sha256": image.sha256, "label": label, **fields})


def shown(client, tab="a"):
    return [image["sha256"] for image in client.get("/next", params={"tab": tab}).json()["images"]]


def test_a_decision_is_stored_with_who_when_why_and_how_long(client, queue):
    page, session = client()
    response = decide(page, queue.images[0], seconds=1.5)
    assert response.status_code == 200
    assert response.json() == {"probability": 0.25, "decided": 1, "total": 10, "at_random": 0, "worthwhile": 6}
    (event,) = session.store.events
    assert (event.label, event.labeler, event.queue, event.model, event.seconds) == (
        1,
        "ann",
        "uncertain",
        "f" * 64,
        1.5,
    )
    assert decide(page, queue.images[4], event=2).json()["at_random"] == 1


def test_only_the_same_session_finds_the_decisions_that_a_tab_keeps(client):
    def session_id(labeler, names=NAMES):
        session = client(session={"labeler": labeler})[1]
        page = TestClient(create_app(session, class_names=names)).get("/").text
        return re.search(r'const session = "(\w+)"', page)[1]

    assert session_id("ann") == session_id("ann")
    assert len({session_id("ann"), session_id("bob"), session_id("ann", ("None", "Sign"))}) == 3


def test_the_same_decision_sent_again_is_stored_once_and_a_second_one_is_refused(client, queue):
    page, session = client()
    assert [decide(page, queue.images[0]).status_code for _ in range(2)] == [200, 200]
    assert decide(page, queue.images[0], label=0, event=2).status_code == 409
    assert len(session.store.events) == 1
    again, _ = client()
    assert decide(again, queue.images[0]).status_code == 200
    assert queue.images[0].sha256 not in shown(again)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.01)


def test_the_queue_is_planned_again_and_keeps_what_a_tab_has_received(client, queue, monkeypatch):
    monkeypatch.setattr("streetvision.labeling.session.REPLANNED_AFTER", 2)
    first, new = queue.images[0], replace(queue.images[0], sha256="a" * 64)
    planned = []

    def replan(events, count):
        planned.append(([event.sha256 for event in events], count))
        return Queue((first, new), 3)

    page, session = client(session={"replan": replan})
    received = shown(page)
    decide(page, queue.images[0])
    assert not planned
    decide(page, queue.images[1], event=2)
    wait_until(lambda: session.queue.worthwhile == 3)
    assert planned == [(received[:2], 10)]
    assert [image.sha256 for image in session.queue.images] == [*received, new.sha256]
    assert shown(page) == [*received[2:], new.sha256]
    progress = decide(page, new, event=3).json()
    assert (progress["decided"], progress["total"], progress["worthwhile"]) == (3, len(received) + 1, 2)


def test_a_plan_that_fails_leaves_the_queue(client, queue, monkeypatch, caplog):
    monkeypatch.setattr("streetvision.labeling.session.REPLANNED_AFTER", 1)

    def replan(events, count):
        raise ValueError("no plan")

    page, session = client(session={"replan": replan})
    assert decide(page, queue.images[0]).status_code == 200
    wait_until(lambda: "no plan" in caplog.text)
    assert session.queue == queue


def test_two_tabs_receive_different_images_until_a_lease_ends(client, queue):
    now = [0.0]
    page, _ = client(session={"clock": lambda: now[0]})
    first, second = shown(page, "a"), shown(page, "b")
    assert len(first) == len(second) == 4
    assert not set(first) & set(second)
    assert shown(page, "a") == first
    now[0] = LEASE_SECONDS + 1
    assert shown(page, "c")[0] == first[0]


def test_a_failed_write_is_reported_and_the_decision_may_be_sent_again(client, queue, tmp_path):
    page, session = client()
    (tmp_path / "labels").write_text("a file in place of the folder")
    response = decide(page, queue.images[0])
    assert response.status_code == 507
    assert str(session.store.path) in response.json()["detail"]
    (tmp_path / "labels").unlink()
    assert decide(page, queue.images[0]).status_code == 200
    (tmp_path / "labels").rename(tmp_path / "moved")
    (tmp_path / "labels").write_text("")
    assert page.post("/undo", json={"event": f"{2:032x}", "undoes": f"{1:032x}"}).status_code == 507
    assert [event.action for event in session.store.events] == ["label"]


def test_undo_returns_the_image_and_keeps_both_decisions(client, queue):
    page, session = client()
    decide(page, queue.images[0])
    undo = {"event": f"{2:032x}", "undoes": f"{1:032x}"}
    assert [page.post("/undo", json=undo).status_code for _ in range(2)] == [200, 200]
    assert shown(page)[0] == queue.images[0].sha256
    assert decide(page, queue.images[0], label=None, event=3).status_code == 200
    assert [event.action for event in session.store.events] == ["label", "undo", "skip"]
    assert page.post("/undo", json={"event": f"{4:032x}", "undoes": f"{9:032x}"}).status_code == 409


def test_undo_in_a_later_session_returns_the_image_to_its_queue(client, queue, open_session):
    page, _ = client()
    decide(page, queue.images[4])
    session = open_session()
    session.queue, session._by_sha256 = Queue(queue.images[5:], None), {i.sha256: i for i in queue.images[5:]}
    later, digest = TestClient(create_app(session, class_names=NAMES)), queue.images[4].sha256
    assert later.get(f"/images/{digest}").status_code == 200  # the page requests it before the undo is confirmed
    assert later.post("/undo", json={"event": f"{2:032x}", "undoes": f"{1:032x}"}).status_code == 200
    assert shown(later)[0] == digest
    assert decide(later, queue.images[4], label=0, event=3).json()["total"] == 6
    first, undo, last = session.store.events
    assert (undo.undoes, last.label) == (first.event, 0)
    assert (last.path, last.queue, last.model) == (first.path, first.queue, first.model)


def test_the_prediction_is_hidden_until_the_decision_unless_it_is_set(client, queue):
    hidden = client()[0].get("/next", params={"tab": "a"}).json()
    assert "probability" not in hidden["images"][0]
    assert hidden["images"][0] | {"sha256": ""} == {"sha256": "", "queue": "uncertain", "reason": "a reason"}
    visible = client(show_model=True)[0].get("/next", params={"tab": "a"}).json()
    assert visible["images"][0]["probability"] == 0.25


def test_images_are_reduced_and_a_file_that_is_gone_leaves_the_queue(client, queue, tmp_path):
    page, _ = client()
    response = page.get(f"/images/{queue.images[1].sha256}")
    assert Image.open(io.BytesIO(response.content)).size == (64, 48)
    (tmp_path / "0.jpg").unlink()
    assert page.get(f"/images/{queue.images[0].sha256}").status_code == 410
    assert queue.images[0].sha256 not in shown(page)
    assert page.get(f"/images/{'0' * 64}").status_code == 404
    assert page.get("/images/..%2Flabels").status_code == 404


@pytest.mark.parametrize(
    "change",
    [{"event": "x"}, {"sha256": "0"}, {"label": 2}, {"label": "1"}, {"seconds": -1}, {"seconds": 1e9}, {"more": 1}],
)
def test_malformed_decisions_are_refused(client, queue, change):
    page, session = client()
    body = {"event": f"{1:032x}", "sha256": queue.images[0].sha256, "label": 1} | change
    assert page.post("/decide", json=body).status_code == 422
    assert session.store.events == ()


def test_other_hosts_other_types_and_long_bodies_are_refused(client, queue):
    page, session = client()
    body = f'{{"event": "{1:032x}", "sha256": "{queue.images[0].sha256}", "label": 1}}'
    assert page.post("/decide", content=body, headers={"Content-Type": "text/plain"}).status_code == 415
    json_type = {"Content-Type": "application/json"}
    assert page.post("/decide", content=body + " " * 5000, headers=json_type).status_code == 413
    assert page.post("/decide", content=body, headers=json_type | {"Host": "evil.example"}).status_code == 400
    assert page.get("/next", params={"tab": "<script>"}).status_code == 422
    assert session.store.events == ()


def test_a_key_protects_everything_but_the_empty_page(client, queue):
    page, session = client(api_key="secret")
    assert page.get("/").status_code == 200
    paths = ("/next?tab=a", f"/images/{queue.images[0].sha256}", "/agreement")
    assert {page.get(path).status_code for path in paths} == {401}
    assert decide(page, queue.images[0]).status_code == 401
    assert page.get("/next?tab=a", headers={"X-API-Key": "secret"}).status_code == 200
    assert session.store.events == ()


def test_agreement_of_two_people_is_served(client, queue):
    for labeler, labels in (("ann", (1, 0, 1)), ("bob", (1, 0, 0))):
        page, _ = client(session={"labeler": labeler})
        for number, label in enumerate(labels):
            decide(page, queue.images[number], label, event=number + 100 * (labeler == "bob"))
    (pair,) = page.get("/agreement").json()
    assert (pair["images"], pair["agreed"], pair["kappa"]) == (3, 2, pytest.approx(0.4))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_continues_after_its_server_is_stopped(number):
    @asynccontextmanager
    async def interrupted(_):
        signal.raise_signal(number)
        yield

    before = signal.getsignal(signal.SIGTERM)
    with open_listener("127.0.0.1", 0) as listener:
        run_app(FastAPI(lifespan=interrupted), listener)
    assert signal.getsignal(signal.SIGTERM) is before
