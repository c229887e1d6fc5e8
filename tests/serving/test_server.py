"""The server: the predictor's answers, its limits, and what the malformed get."""

import asyncio
import base64
import io
import socket
import threading

import httpx
import pytest
from PIL import Image

from streetvision import load_bundle
from streetvision.contracts.errors import ConfigError
from streetvision.serving.launch import is_loopback, serving_config
from streetvision.serving.server import ServingConfig, create_app


@pytest.fixture
def predictor(finished_run):
    return load_bundle(finished_run / "export")


@pytest.fixture(scope="module")
def files(scenes):
    return [path.read_bytes() for path in sorted((scenes / "images").iterdir())[:16]]


def talk(app, conversation):
    """Run a coroutine function with a client of the application."""

    async def run():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await conversation(client)

    return asyncio.run(run())


def as_form(data):
    return {"files": {"image": ("a.jpg", data, "image/jpeg")}}


def as_json(data):
    return {"json": {"image": base64.b64encode(data).decode()}}


def ask(app, **request):
    return talk(app, lambda client: client.post("/predict", **request))


@pytest.mark.parametrize("form", [as_form, as_json])
def test_an_answer_is_the_predictors(predictor, files, form):
    expected = predictor.predict(files[0])[0]
    reply = ask(create_app(predictor, ServingConfig()), **form(files[0]))
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert found.pop("probability") == pytest.approx(expected.probability, abs=1e-6)
    assert found == {"label": expected.label, "decision": expected.decision, "certified": expected.certified}


def bomb():
    written = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(written, "PNG")
    return written.getvalue()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (lambda jpeg: as_form(jpeg[: len(jpeg) // 2]), 422),
        (lambda jpeg: as_form(b"GIF89a, or so"), 422),
        (lambda jpeg: as_form(bomb()), 422),
        (lambda jpeg: as_form(jpeg + bytes(2_000_000)), 413),
        (lambda jpeg: as_json(jpeg + bytes(2_000_000)), 413),
        (lambda jpeg: {"files": {"other": ("a.jpg", jpeg, "image/jpeg")}}, 422),
        (lambda jpeg: {"json": {"image": "no base64!"}}, 422),
        (lambda jpeg: {"json": ["image"]}, 422),
        (lambda jpeg: {"json": {"image": base64.b64encode(jpeg).decode(), "more": [[] for _ in range(99)]}}, 422),
        (lambda jpeg: {"content": b"{", "headers": {"Content-Type": "application/json"}}, 422),
        (lambda jpeg: {"content": jpeg, "headers": {"Content-Type": "image/jpeg"}}, 422),
        (lambda jpeg: {"content": b"--x\r\ncut", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 422),
        (lambda jpeg: {"content": b"cut", "headers": {"Content-Type": "multipart/form-data"}}, 422),
        (lambda jpeg: {}, 422),
    ],
)
def test_what_is_malformed_is_its_senders_error(predictor, files, request_, status):
    app = create_app(predictor, ServingConfig(max_megabytes=1))
    reply = ask(app, **request_(files[0]))
    assert reply.status_code == status
    assert reply.json()["detail"]
    assert app.state.service.in_flight == 0


def test_many_at_once_are_answered_or_told_to_wait_and_none_gets_anothers_answer(predictor, files):
    """A fifth is malformed; places are fewer than clients; who is sent away asks again as it was told."""
    expected = [answer.probability for answer in predictor.predict(files)]
    app = create_app(predictor, ServingConfig(max_in_flight=12, max_batch=4))

    async def one(client, number):
        data = files[number % len(files)]
        statuses = []
        while True:
            reply = await client.post("/predict", **as_form(data[:50] if number % 5 == 0 else data))
            statuses.append(reply.status_code)
            if reply.status_code != 503:
                return number, reply, statuses
            assert int(reply.headers["Retry-After"]) >= 1
            await asyncio.sleep(0.02)

    async def everyone(client):
        return await asyncio.gather(*(one(client, number) for number in range(60)))

    found = talk(app, everyone)
    assert {status for _, _, statuses in found for status in statuses} == {200, 422, 503}
    for number, reply, _ in found:
        if number % 5:
            assert reply.json()["probability"] == pytest.approx(expected[number % len(files)], abs=1e-6)
        else:
            assert reply.status_code == 422
    assert app.state.service.in_flight == 0
    assert 48 / 4 <= app.state.service.batcher.batches < 48


def test_a_place_is_taken_before_the_body_is_read(predictor, files):
    app = create_app(predictor, ServingConfig(max_in_flight=1, timeout_seconds=5))

    async def conversation(client):
        go_on = asyncio.Event()

        async def slowly():
            yield b'{"image": "'
            await go_on.wait()
            yield base64.b64encode(files[0]) + b'"}'

        headers = {"Content-Type": "application/json"}
        first = asyncio.create_task(client.post("/predict", content=slowly(), headers=headers))
        while not app.state.service.in_flight:
            await asyncio.sleep(0.01)
        second = await client.post("/predict", **as_form(files[0]))
        go_on.set()
        return (await first).status_code, second.status_code

    assert talk(app, conversation) == (200, 503)


def test_a_body_that_does_not_come_is_given_up(predictor):
    app = create_app(predictor, ServingConfig(timeout_seconds=0.05))

    async def conversation(client):
        async def never():
            yield b"{"
            await asyncio.sleep(0.5)

        return await client.post("/predict", content=never(), headers={"Content-Type": "application/json"})

    assert talk(app, conversation).status_code == 408
    assert app.state.service.in_flight == 0


def test_a_model_that_takes_too_long_keeps_the_place_until_it_is_through(predictor, files, monkeypatch):
    go_on = threading.Event()
    answer = predictor.predict_prepared
    monkeypatch.setattr(predictor, "predict_prepared", lambda images: go_on.wait(10) and answer(images))
    app = create_app(predictor, ServingConfig(timeout_seconds=0.2, max_in_flight=1))

    async def conversation(client):
        late = await client.post("/predict", **as_form(files[0]))
        meanwhile = await client.post("/predict", **as_form(files[0]))
        held = app.state.service.in_flight
        go_on.set()
        while app.state.service.in_flight:
            await asyncio.sleep(0.01)
        return late, meanwhile.status_code, held

    late, meanwhile, held = talk(app, conversation)
    assert (late.status_code, meanwhile, held) == (503, 503, 1)
    assert "Retry-After" in late.headers


def test_health_metrics_and_the_description_of_the_interface(predictor, files):
    app = create_app(predictor, ServingConfig())

    async def conversation(client):
        await client.post("/predict", **as_form(files[0]))
        await client.post("/predict", **as_form(b"none"))
        return [await client.get(path) for path in ("/healthz", "/metrics", "/openapi.json", "/docs")]

    health, metrics, description, docs = talk(app, conversation)
    assert health.json() == {"status": "ok", "bundle": predictor.manifest.digest}
    assert metrics.headers["content-type"].startswith("text/plain")
    lines = metrics.text.splitlines()
    assert 'streetvision_requests_total{status="200"} 1' in lines
    assert 'streetvision_requests_total{status="422"} 1' in lines
    assert "streetvision_in_flight 0" in lines
    post = description.json()["paths"]["/predict"]["post"]
    assert post["requestBody"]["content"].keys() == {"multipart/form-data", "application/json"}
    assert {"200", "401", "413", "422", "503"} <= post["responses"].keys()
    assert docs.status_code == 404


def test_the_key_is_asked_for_where_there_is_one(predictor, files):
    app = create_app(predictor, ServingConfig(api_key="secret"))
    assert ask(app, **as_form(files[0])).status_code == 401
    assert ask(app, **as_form(files[0]), headers={"X-API-Key": "wrong"}).status_code == 401
    assert ask(app, **as_form(files[0]), headers={"X-API-Key": "secret"}).status_code == 200


def test_an_address_that_others_reach_needs_a_key(command, finished_run, monkeypatch):
    monkeypatch.delenv("STREETVISION_API_KEY", raising=False)
    code, _, err = command("serve", "--bundle", finished_run / "export", "--host", "0.0.0.0")  # noqa: S104
    assert code == 2
    assert "STREETVISION_API_KEY" in err
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "10.0.0.1", "::", "example")] == [
        *(True, True, True),
        *(False, False, False),
    ]


def test_limits_are_settings_and_the_key_is_none_of_them():
    assert serving_config(["max_in_flight=7", "max_megapixels=1.5"], api_key="k") == ServingConfig(
        max_in_flight=7, max_megapixels=1.5, api_key="k"
    )
    with pytest.raises(ConfigError, match="max_flight"):
        serving_config(["max_flight=7"], api_key=None)
    with pytest.raises(ConfigError, match="environment"):
        serving_config(["api_key=secret"], api_key=None)


def test_a_port_that_is_taken_is_told_in_a_line(command, finished_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = command("serve", "--bundle", finished_run / "export", "--port", port)
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in err
