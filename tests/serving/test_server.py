"""The server: predictions, limits, and responses to malformed requests."""

import asyncio
import base64
import errno
import hashlib
import io
import json
import re
import socket
import struct
import tempfile
import threading
import time
import tracemalloc
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image
from starlette.requests import Request

from streetvision import load_bundle
from streetvision.contracts.errors import ArtifactError, ConfigError, MachineError
from streetvision.serving import launch
from streetvision.serving.launch import is_loopback, key_from_environment, open_listener, serving_config
from streetvision.serving.prediction_log import PredictionLog
from streetvision.serving.server import ServingConfig, create_app, render_page
from streetvision.serving.upload import read_upload


@pytest.fixture
def predictor(finished_run):
    return load_bundle(finished_run / "export")


@pytest.fixture(scope="module")
def files(scenes):
    return [path.read_bytes() for path in sorted((scenes / "images").iterdir())[:16]]


def run_client(app, conversation):
    """Run a coroutine function that takes a client of the application."""

    async def run():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            return await conversation(client)

    return asyncio.run(run())


def as_form(data):
    return {"files": {"image": ("a.jpg", data, "image/jpeg")}}


def as_json(data):
    return {"json": {"image": base64.b64encode(data).decode()}}


def post(app, **request):
    return run_client(app, lambda client: client.post("/predict", **request))


FORMS = ["as_form", "as_json", "as_wrapped_base64", "as_data_url", "as_image_body", "as_bytes_body"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", ["/predict", "/predict/"])
def test_the_response_is_the_prediction_of_the_bundle(predictor, files, form, path):
    expected = predictor.predict(files[0])[0]
    request = globals()[form](files[0])
    response = run_client(create_app(predictor, ServingConfig()), lambda client: client.post(path, **request))
    assert response.status_code == 200, response.text
    body = response.json()
    assert body.pop("probability") == pytest.approx(expected.probability, abs=1e-6)
    assert body == {"label": expected.label, "decision": expected.decision, "certified": expected.certified}


def as_wrapped_base64(data):
    return {"json": {"image": base64.encodebytes(data).decode()}}


def as_data_url(data):
    return {"json": {"image": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}}


def as_image_body(data):
    return {"content": data, "headers": {"Content-Type": "image/jpeg"}}


def as_bytes_body(data):
    return {"content": data, "headers": {"Content-Type": "application/octet-stream"}}


def test_white_space_in_base64_takes_no_memory():
    body = json.dumps({"image": "AA AA\n" * 150_000}).encode()

    async def receive():
        return {"type": "http.request", "body": body}

    request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
    tracemalloc.start()
    assert asyncio.run(read_upload(request, max_megabytes=1)) == bytes(3 * 150_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(body)


def decompression_bomb():
    file = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (lambda jpeg: as_form(jpeg[: len(jpeg) // 2]), 422),
        (lambda jpeg: as_form(b"GIF89a, truncated"), 422),
        (lambda jpeg: as_form(decompression_bomb()), 422),
        (lambda jpeg: as_form(jpeg + bytes(2_000_000)), 413),
        (lambda jpeg: as_json(jpeg + bytes(2_000_000)), 413),
        (lambda jpeg: {"files": {"other": ("a.jpg", jpeg, "image/jpeg")}}, 422),
        (lambda jpeg: {"json": {"image": "not base64!"}}, 422),
        (lambda jpeg: {"json": ["image"]}, 422),
        (lambda jpeg: {"json": {"image": base64.b64encode(jpeg).decode(), "more": [[] for _ in range(99)]}}, 422),
        (lambda jpeg: {"content": b"{", "headers": {"Content-Type": "application/json"}}, 422),
        (lambda jpeg: {"content": jpeg + bytes(2_000_000), "headers": {"Content-Type": "image/jpeg"}}, 413),
        (lambda jpeg: {"content": jpeg[:50], "headers": {"Content-Type": "image/jpeg"}}, 422),
        (lambda jpeg: {"content": jpeg, "headers": {"Content-Type": "text/plain"}}, 422),
        (lambda jpeg: {"json": {"image": 7}}, 422),
        (lambda jpeg: {"json": {"image": "\u2028AAAA"}}, 422),
        (lambda jpeg: {"content": b"--x\r\ncut", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 422),
        (lambda jpeg: {"content": b"cut", "headers": {"Content-Type": "multipart/form-data"}}, 422),
        (lambda jpeg: {}, 422),
    ],
)
def test_a_malformed_request_gets_a_client_error(predictor, files, request_, status):
    app = create_app(predictor, ServingConfig(max_megabytes=1))
    response = post(app, **request_(files[0]))
    assert response.status_code == status
    assert response.json()["detail"]
    assert app.state.service.in_flight == 0


def test_an_explanation_is_a_drawing_with_the_limits_of_a_prediction(predictor, files):
    app = create_app(predictor, ServingConfig(api_key="secret"))
    key = {"headers": {"X-API-Key": "secret"}}

    async def conversation(client):
        requests = [as_form(files[0]) | key, as_form(files[0][:50]) | key, as_form(files[0])]
        return [await client.post("/explain", **request) for request in requests]

    drawn, damaged, without_key = run_client(app, conversation)
    assert (drawn.status_code, damaged.status_code, without_key.status_code) == (200, 422, 401)
    assert drawn.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(drawn.content)).width >= 960


def test_explanations_hold_as_many_images_as_there_are_decoders(predictor, files, monkeypatch):
    calls = []

    def recorded(name, function):
        return lambda body: calls.append(name) or function(body)

    for name in ("read_image", "decode"):
        monkeypatch.setattr(predictor, name, recorded(name, getattr(predictor, name)))

    async def conversation(client):
        return await asyncio.gather(*(client.post("/explain", **as_form(data)) for data in files[:3]))

    responses = run_client(create_app(predictor, ServingConfig(decoders=1)), conversation)
    assert [response.status_code for response in responses] == [200] * 3
    assert calls == ["read_image", "decode"] * 3


@pytest.mark.parametrize(
    ("request_", "limit"),
    [
        (lambda jpeg: {"files": [("image", ("a.jpg", jpeg)), ("image", ("b.jpg", jpeg))]}, "one file"),
        (lambda jpeg: as_form(jpeg) | {"data": {f"field {n}": "" for n in range(5)}}, "fields"),
        (lambda jpeg: as_form(jpeg) | {"data": {"field": "x" * 1_100_000}}, "1 MiB"),
        (lambda jpeg: {"json": as_json(jpeg)["json"] | {"more": [[] for _ in range(99)]}}, "64 lists"),
    ],
)
def test_the_limit_that_a_request_exceeds_is_named(predictor, files, request_, limit):
    response = post(create_app(predictor, ServingConfig()), **request_(files[0]))
    assert response.status_code == 422
    assert limit in response.json()["detail"]


def test_a_full_temporary_folder_is_a_fault_of_the_server(predictor, files, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    app = create_app(predictor, ServingConfig())
    assert post(app, **as_form(files[0])).status_code == 200, "small uploads stay in memory"
    response = post(app, **as_form(files[0] + bytes(2_000_000)))
    assert response.status_code == 507
    assert "No space left" in response.json()["detail"]
    assert app.state.service.in_flight == 0


def tiff_with_a_tile_size_as_text():
    """A TIFF header whose tile width is a text of 4,000 characters, and whose tile length is 500,000."""
    text = b"1" * 4_000 + b"\0"
    tags = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(322, 2, len(text), 8 + 2 + 12 * 8 + 4), (323, 4, 1, 500_000), (324, 4, 1, 8)]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + ifd + text


def test_the_server_responds_while_it_refuses_hostile_headers(predictor):
    app = create_app(predictor, ServingConfig())

    async def conversation(client):
        request = as_form(tiff_with_a_tile_size_as_text())
        uploads = [asyncio.create_task(client.post("/predict", **request)) for _ in range(2)]
        longest = 0.0
        while not all(upload.done() for upload in uploads):
            started = time.perf_counter()
            assert (await client.get("/healthz")).status_code == 200
            longest = max(longest, time.perf_counter() - started)
            await asyncio.sleep(0.005)
        return longest, [upload.result().status_code for upload in uploads]

    longest, statuses = run_client(app, conversation)
    assert statuses == [422, 422]
    assert longest < 0.2


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics"])
def test_head_is_answered(predictor, path):
    assert run_client(create_app(predictor, ServingConfig()), lambda client: client.head(path)).status_code == 200


def test_concurrent_requests_get_their_own_prediction_or_503(predictor, files):
    """A fifth of the requests is malformed, and there are more clients than places. Clients retry after a 503."""
    expected = [prediction.probability for prediction in predictor.predict(files)]
    app = create_app(predictor, ServingConfig(max_in_flight=12, max_batch=4))

    async def send(client, number):
        data = files[number % len(files)]
        statuses = []
        while True:
            response = await client.post("/predict", **as_form(data[:50] if number % 5 == 0 else data))
            statuses.append(response.status_code)
            if response.status_code != 503:
                return number, response, statuses
            assert int(response.headers["Retry-After"]) >= 1
            await asyncio.sleep(0.02)

    async def send_all(client):
        return await asyncio.gather(*(send(client, number) for number in range(60)))

    results = run_client(app, send_all)
    assert {status for _, _, statuses in results for status in statuses} == {200, 422, 503}
    for number, response, _ in results:
        if number % 5:
            assert response.json()["probability"] == pytest.approx(expected[number % len(files)], abs=1e-6)
        else:
            assert response.status_code == 422
    assert app.state.service.in_flight == 0
    assert 48 / 4 <= app.state.service.batcher.batches < 48


def test_a_request_counts_as_in_flight_before_its_body_is_read(predictor, files):
    app = create_app(predictor, ServingConfig(max_in_flight=1, timeout_seconds=5))

    async def conversation(client):
        release = asyncio.Event()

        async def slow_body():
            yield b'{"image": "'
            await release.wait()
            yield base64.b64encode(files[0]) + b'"}'

        headers = {"Content-Type": "application/json"}
        first = asyncio.create_task(client.post("/predict", content=slow_body(), headers=headers))
        while not app.state.service.in_flight:
            await asyncio.sleep(0.01)
        second = await client.post("/predict", **as_form(files[0]))
        release.set()
        return (await first).status_code, second.status_code

    assert run_client(app, conversation) == (200, 503)


def test_a_body_that_does_not_arrive_times_out(predictor):
    app = create_app(predictor, ServingConfig(timeout_seconds=0.05))

    async def conversation(client):
        async def endless_body():
            yield b"{"
            await asyncio.sleep(0.5)

        return await client.post("/predict", content=endless_body(), headers={"Content-Type": "application/json"})

    assert run_client(app, conversation).status_code == 408
    assert app.state.service.in_flight == 0


def test_a_prediction_that_times_out_stays_in_flight_until_it_is_done(predictor, files, monkeypatch, tmp_path):
    log = tmp_path / "served.jsonl"
    release = threading.Event()
    predict = predictor.predict_prepared
    monkeypatch.setattr(predictor, "predict_prepared", lambda images: release.wait(10) and predict(images))
    app = create_app(predictor, ServingConfig(timeout_seconds=0.2, max_in_flight=1, log=log))

    async def conversation(client):
        timed_out = await client.post("/predict", **as_form(files[0]))
        rejected = await client.post("/predict", **as_form(files[0]))
        in_flight = app.state.service.in_flight
        release.set()
        while app.state.service.in_flight:
            await asyncio.sleep(0.01)
        return timed_out, rejected.status_code, in_flight

    timed_out, rejected, in_flight = run_client(app, conversation)
    assert (timed_out.status_code, rejected, in_flight) == (503, 503, 1)
    assert "Retry-After" in timed_out.headers
    assert log.read_bytes() == b""  # the client did not get the prediction


def test_health_metrics_and_openapi_schema(predictor, files):
    app = create_app(predictor, ServingConfig())

    async def conversation(client):
        await client.post("/predict", **as_form(files[0]))
        await client.post("/predict", **as_form(b"none"))
        return [await client.get(path) for path in ("/healthz", "/metrics", "/openapi.json", "/docs")]

    health, metrics, schema, docs = run_client(app, conversation)
    assert health.json() == {"status": "ok", "bundle": predictor.manifest.digest}
    assert metrics.headers["content-type"].startswith("text/plain")
    lines = metrics.text.splitlines()
    assert 'streetvision_requests_total{status="200"} 1' in lines
    assert 'streetvision_requests_total{status="422"} 1' in lines
    assert "streetvision_in_flight 0" in lines
    post = schema.json()["paths"]["/predict"]["post"]
    assert post["requestBody"]["content"].keys() == {"multipart/form-data", "application/json", "image/*"}
    assert {"200", "401", "413", "422", "503"} <= post["responses"].keys()
    assert docs.status_code == 404


@pytest.mark.parametrize(("error", "status"), [(MachineError("no decoder"), 503), (RuntimeError("out of memory"), 500)])
def test_faults_of_the_server_are_in_the_metrics(error, status, predictor, files, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setattr(predictor, "prepare_with_note", fail)
    app = create_app(predictor, ServingConfig())
    with suppress(RuntimeError):  # the transport of this test raises the error of a response 500
        assert post(app, **as_form(files[0])).status_code == status
    assert f'streetvision_requests_total{{status="{status}"}} 1' in app.state.service.metrics().splitlines()


def test_the_page_escapes_the_class_names_and_its_policy_allows_only_its_own_script(predictor):
    manifest = predictor.manifest.model_copy(update={"class_names": ("clear", "</script><b>&")})
    predictor.manifest = manifest
    response = run_client(create_app(predictor, ServingConfig()), lambda client: client.get("/"))
    assert response.headers["content-type"].startswith("text/html")
    assert "</script><b>" not in response.text
    assert "&lt;/script&gt;&lt;b&gt;&amp;" in response.text
    assert response.text.count("<script>") == response.text.count("</script>") == 1
    policy = response.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy
    (script_rule,) = (rule for rule in policy if rule.startswith("script-src"))
    assert script_rule.startswith("script-src 'sha256-")
    assert "unsafe-inline" not in "".join(policy)
    assert "X-API-Key" not in response.text.partition("<script>")[0]
    assert re.search(r"resized to \d+ x \d+ pixels", response.text)


@pytest.mark.parametrize("name", ["platt", "none"])
def test_the_page_states_whether_the_probability_is_calibrated(predictor, name):
    policy = predictor.manifest.policy
    calibrator = policy.scrc_params.calibrator.model_copy(update={"name": name})
    params = policy.scrc_params.model_copy(update={"calibrator": calibrator})
    changed = policy.model_copy(update={"scrc_params": params})
    predictor.manifest = predictor.manifest.model_copy(update={"policy": changed})
    page = run_client(create_app(predictor, ServingConfig()), lambda client: client.get("/")).text
    assert ("is calibrated" in page) == (name == "platt")
    assert ("without calibration" in page) == (name == "none")


@pytest.mark.parametrize("certified", [True, False])
def test_the_page_states_the_certified_risk(predictor, certified):
    control = SimpleNamespace(certified=certified, reason="fNR <= 5 % with 90 % confidence")

    class WithControl(type(predictor)):
        risk_control = control

    predictor.__class__ = WithControl
    page = render_page(predictor, ServingConfig(api_key="secret"))
    assert ("FNR &lt;= 5 % with 90 % confidence." in page) is certified
    assert ("no certified predictions" in page) is not certified
    assert "X-API-Key: $STREETVISION_API_KEY" in page
    assert "secret" not in page
    assert 'id="key"' in page
    assert 'id="key"' not in render_page(predictor, ServingConfig())


def test_a_configured_key_is_required(predictor, files):
    app = create_app(predictor, ServingConfig(api_key="secret"))
    assert post(app, **as_form(files[0])).status_code == 401
    assert post(app, **as_form(files[0]), headers={"X-API-Key": "wrong"}).status_code == 401
    assert post(app, **as_form(files[0]), headers={"X-API-Key": "secret"}).status_code == 200


def test_a_public_address_requires_a_key(command, finished_run, monkeypatch):
    monkeypatch.delenv("STREETVISION_API_KEY", raising=False)
    code, _, err = command("serve", "--bundle", finished_run / "export", "--host", "0.0.0.0")  # noqa: S104
    assert code == 2
    assert "STREETVISION_API_KEY" in err
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "10.0.0.1", "::", "example")] == [
        *(True, True, True),
        *(False, False, False),
    ]


def test_limits_are_settings_and_the_key_is_not():
    assert serving_config(["max_in_flight=7", "max_megapixels=1.5"], api_key="k") == ServingConfig(
        max_in_flight=7, max_megapixels=1.5, api_key="k"
    )
    with pytest.raises(ConfigError, match="max_flight"):
        serving_config(["max_flight=7"], api_key=None)
    with pytest.raises(ConfigError, match="max_batch='many'"):
        serving_config(["max_batch=many"], api_key=None)
    with pytest.raises(ConfigError, match="environment"):
        serving_config(["api_key=secret"], api_key=None)


def test_a_port_in_use_is_a_user_error(command, finished_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = command("serve", "--bundle", finished_run / "export", "--port", port)
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in err


@pytest.mark.parametrize(("host", "expected"), [("::1", "http://[::1]:8123/"), ("127.0.0.1", "http://127.0.0.1:8123/")])
def test_the_printed_address_can_be_opened(host, expected, finished_run, monkeypatch, capsys):
    from streetvision.pipeline.console import Console

    listener = nullcontext(SimpleNamespace(getsockname=lambda: (host, 8123)))
    monkeypatch.setattr(launch, "open_listener", lambda *_: listener)
    monkeypatch.setattr(launch, "run_app", lambda *_: None)
    launch.serve_bundle(finished_run / "export", [], host=host, port=8123, console=Console())
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("key", ["secret\n", " secret", "se\ncret", "gehe\u00efm", "se\tcret"])
def test_a_key_that_no_client_can_send_is_refused_and_not_printed(key, monkeypatch):
    monkeypatch.setenv("STREETVISION_API_KEY", key)
    with pytest.raises(ConfigError) as raised:
        key_from_environment()
    assert key.strip() not in str(raised.value)


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_a_host_that_is_no_name_is_a_user_error(host):
    with pytest.raises(ConfigError):
        open_listener(host, 0)


def test_log_has_what_the_monitor_reads_and_no_image(predictor, files, tmp_path):
    from streetvision.monitoring.update import update_state

    log = tmp_path / "served.jsonl"
    app = create_app(predictor, ServingConfig(log=log))

    async def talk(client):
        for number, data in enumerate(files[:6]):
            parameters = {"group": f"cam{number % 2}"} if number < 4 else {"id": f"image-{number}"}
            response = await client.post("/predict", params=parameters, **as_form(data))
            assert response.status_code == 200
        long = await client.post("/predict", params={"id": "x" * 201}, **as_form(files[0]))
        return long.status_code

    assert run_client(app, talk) == 422
    rows = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert [row["image"] for row in rows[4:]] == ["image-4", "image-5"]
    assert rows[0]["image"] == hashlib.sha256(files[0]).hexdigest()
    status = update_state(predictor.bundle.folder, [log], state=tmp_path / "state")
    assert (status.images, status.units, status.without_group) == (6, 4, 2)

    interrupted = tmp_path / "interrupted.jsonl"
    interrupted.write_bytes(log.read_bytes() + b'{"unfinished')  # by a process that was killed
    create_app(predictor, ServingConfig(log=interrupted))
    assert interrupted.read_bytes() == log.read_bytes()


PREDICTION = SimpleNamespace(
    label="a",
    decision=0,
    probability=0.5,
    certified=None,
    signals=SimpleNamespace(margin=1.0, features=2.0, quality=(3.0,)),
)


@pytest.mark.parametrize("change", ["rename", "rename and create", "delete"])
def test_a_rotated_log_is_continued_in_a_new_file(change, tmp_path):
    path, rotated = tmp_path / "served.jsonl", tmp_path / "served.jsonl.1"
    log = PredictionLog(path, bundle="0" * 64)
    log.write(PREDICTION, b"", name="first", group=None)
    path.unlink() if change == "delete" else path.rename(rotated)
    if change == "rename and create":
        path.touch()
    for name in ("second", "third"):
        log.write(PREDICTION, b"", name=name, group=None)
    assert [json.loads(line)["image"] for line in path.read_text().splitlines()] == ["second", "third"]
    assert log.errors == 0
    path.unlink()
    path.mkdir()
    log.write(PREDICTION, b"", name="fourth", group=None)
    assert log.errors == 1


@pytest.mark.parametrize("name", ["image-1", 'a"\\\u00e9', "", "n" * 99])
def test_an_incomplete_first_line_is_removed(name, tmp_path):
    log, interrupted = tmp_path / "served.jsonl", tmp_path / "interrupted.jsonl"
    PredictionLog(log, bundle="0" * 64).write(PREDICTION, b"image", name=name, group=None)
    line = log.read_bytes()
    for length in (*range(0, len(line), 7), len(line) - 1):
        interrupted.write_bytes(line[:length])
        PredictionLog(interrupted, bundle="0" * 64)
        assert interrupted.read_bytes() == b""


@pytest.mark.parametrize(
    "content", [b"image,label\na.jpg,1\nb.jpg,0", b'{"image": "a.jpg", "label": 1}', b"[1]\n", b"\0", b"{\n"]
)
def test_a_file_that_is_not_a_log_is_not_changed(content, predictor, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        create_app(predictor, ServingConfig(log=path))
    assert path.read_bytes() == content


def test_a_log_of_another_bundle_is_not_continued(predictor, tmp_path):
    path = tmp_path / "served.jsonl"
    path.write_text(json.dumps({"image": "a", "time": 0.0, "bundle": "f" * 64, "signals": {}}) + "\n")
    content = path.read_bytes()
    with pytest.raises(ConfigError) as raised:
        create_app(predictor, ServingConfig(log=path))
    assert "log=" in raised.value.hint
    assert path.read_bytes() == content


def test_one_server_writes_to_a_log_and_errors_are_counted(predictor, files, tmp_path, monkeypatch):
    log = tmp_path / "served.jsonl"
    app = create_app(predictor, ServingConfig(log=log))
    with pytest.raises(ArtifactError):
        create_app(predictor, ServingConfig(log=log))
    run_client(app, lambda client: client.post("/predict", **as_form(files[0])))
    written = log.read_bytes()

    class FullDisk(io.FileIO):
        def write(self, data):
            return super().write(data[:9])

        def truncate(self, size=None):
            super().truncate(size)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(app.state.service._log, "_file", FullDisk(log, "a+"))
    assert run_client(app, lambda client: client.post("/predict", **as_form(files[0]))).status_code == 200
    assert log.read_bytes() == written
    assert "streetvision_log_errors_total 1" in app.state.service.metrics()


def test_monitor_state_withdraws_the_certificate_and_is_in_the_metrics(predictor, files, tmp_path):
    from streetvision.monitoring.monitor import Monitor

    running, path = Monitor(predictor.bundle), tmp_path / "state"
    running.status = running.status.model_copy(update={"images": 1_234_567})
    running.state.write(path, running.status)
    app = create_app(predictor, ServingConfig(monitor_state=path))

    async def talk(client):
        before = (await client.post("/predict", **as_form(files[0]))).json()
        running.state.write(path, running.status.model_copy(update={"withdrawn": "the risk is too high"}))
        after = (await client.post("/predict", **as_form(files[0]))).json()
        return before, after, (await client.get("/metrics")).text

    before, after, metrics = run_client(app, talk)
    assert "withdrawn" not in before
    assert (after["certified"], after["withdrawn"]) == (None, "the risk is too high")
    assert "streetvision_certificate_withdrawn 1" in metrics
    assert "streetvision_monitor_images 1234567" in metrics.splitlines()
    assert 'streetvision_monitor_log10_martingale{test="scores"} 0' in metrics
