"""Serve a bundle over HTTP: one process, dynamic batches, and limits on everything that a client sends.

A request counts as in flight before its body is read, so an overloaded server responds 503 at once and its memory is
bounded.
"""

import asyncio
import base64
import hashlib
import hmac
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field, JsonValue
from starlette.requests import ClientDisconnect

from streetvision.bundle.explain import draw_overlay
from streetvision.bundle.format import read_classifier_description
from streetvision.bundle.model import SINGLE_VIEW
from streetvision.bundle.monitor_status import StatusFile
from streetvision.bundle.predictor import Prediction, Predictor, PreparedImage
from streetvision.calibration.config import UNCALIBRATED
from streetvision.contracts.errors import DataError, MachineError
from streetvision.contracts.policies import ScrcPolicy
from streetvision.contracts.settings import Section
from streetvision.eval.report.html import environment
from streetvision.io.user_paths import user_path
from streetvision.serving.batcher import Batcher
from streetvision.serving.prediction_log import PredictionLog
from streetvision.serving.upload import FIELD, read_upload

Result = TypeVar("Result")

MAX_NAME = 200
"""Longest id or group of an image, in characters."""
RETRY_HEADERS = {"Retry-After": "1"}
"""Sent with status 503; in seconds."""


class ServingConfig(Section):
    """Limits of the server."""

    max_in_flight: int = Field(default=128, ge=1)
    """Requests in progress at a time. Further requests get status 503."""
    max_batch: int = Field(default=16, ge=1)
    """Images per forward pass."""
    max_megabytes: float = Field(default=20.0, gt=0)
    """Largest size of an uploaded image file, in millions of bytes."""
    max_megapixels: float = Field(default=50.0, gt=0)
    """Largest size of a JPEG in millions of pixels. Other formats may have a fifth of it."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Time limit in seconds for reading a request. Reading and prediction together may take twice as long."""
    decoders: int = Field(default=2, ge=1)
    """Threads that decode images."""
    log: Path | None = None
    """File to which predictions are appended for `streetvision monitor`; None: no log."""
    monitor_state: Path | None = None
    """State file of `streetvision monitor`, which may withdraw the certificate and is read again when it changes."""
    api_key: str | None = Field(default=None, min_length=1)
    """Key that clients must send as X-API-Key; None: no key is needed."""


class PredictionResponse(BaseModel):
    """The prediction for one image."""

    label: str
    """Name of the predicted class."""
    decision: int
    """Predicted class, 0 or 1."""
    probability: float
    """Calibrated probability of class 1."""
    certified: int | None
    """Prediction with certified risk, 0 or 1; null: the model abstained, or no risk is certified."""
    note: str | None = None
    """What is wrong with the data of the image, which makes the prediction doubtful; absent: nothing."""
    withdrawn: str | None = None
    """Why the certificate of the bundle is withdrawn; absent: it is not."""


class Service:
    """A predictor with dynamic batching, limits and counters."""

    def __init__(self, predictor: Predictor, config: ServingConfig) -> None:
        predictor.limits = replace(
            predictor.limits,
            max_megabytes=config.max_megabytes,
            max_megapixels=config.max_megapixels,
            setting="max_megapixels",
        )
        self.config, self._predictor = config, predictor
        self._log: PredictionLog | None = None
        if config.log is not None:
            predictor.record_signals()
            self._log = PredictionLog(user_path(config.log), bundle=predictor.manifest.digest)
        if config.monitor_state is not None:
            predictor.use_monitor_state(user_path(config.monitor_state))
        self._decoders = ThreadPoolExecutor(max_workers=config.decoders)
        self._explanations = asyncio.Semaphore(config.decoders)
        self.batcher: Batcher[PreparedImage, Prediction] = Batcher(
            predictor.predict_prepared, max_batch=config.max_batch
        )
        self.in_flight = 0
        self.statuses: Counter[int] = Counter()
        """Number of responses by HTTP status."""
        self.predictions = 0
        self.seconds = 0.0
        """Total time of decoding and prediction."""

    async def predict(self, request: Request) -> Prediction:
        """Read, decode and predict the image of a request.

        Raises:
            HTTPException: the server is overloaded, the time limit is exceeded, or the request is invalid.
        """
        name, group = (request.query_params.get(key) for key in ("id", "group"))
        if any(value is not None and not 0 < len(value) <= MAX_NAME for value in (name, group)):
            raise HTTPException(422, f"id and group must have 1 to {MAX_NAME} characters")
        prediction, body = await self._within_limits(request, self._predict)
        if self._log is not None:  # not before: the client sends an image again that was not predicted in time
            self._log.write(prediction, body, name=name, group=group)
        return prediction

    async def explain(self, request: Request) -> bytes:
        """Return a PNG of the image of a request with the prediction of each of its views; raises as `predict`."""
        return await self._within_limits(request, self._explain)

    async def _within_limits(
        self, request: Request, compute: Callable[[bytes], Coroutine[None, None, Result]]
    ) -> Result:
        if self.in_flight >= self.config.max_in_flight:
            raise HTTPException(503, "too many requests are in flight", RETRY_HEADERS)
        self.in_flight += 1
        work = asyncio.create_task(self._process(request, compute))
        work.add_done_callback(self._release)
        try:
            # A decoding thread cannot be stopped, so the request stays in flight until its work is done.
            return await asyncio.wait_for(asyncio.shield(work), 2 * self.config.timeout_seconds)
        except TimeoutError as error:
            raise HTTPException(503, "the prediction took too long", RETRY_HEADERS) from error

    async def _process(self, request: Request, compute: Callable[[bytes], Coroutine[None, None, Result]]) -> Result:
        try:
            reading = read_upload(request, max_megabytes=self.config.max_megabytes)
            body = await asyncio.wait_for(reading, self.config.timeout_seconds)
        except TimeoutError as error:
            raise HTTPException(408, "the body took too long to arrive") from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the connection was closed before the body was complete") from error
        try:
            return await compute(body)
        except DataError as error:
            raise HTTPException(422, error.message) from error
        except MachineError as error:
            raise HTTPException(503, error.message, RETRY_HEADERS) from error

    async def _predict(self, body: bytes) -> tuple[Prediction, bytes]:
        """The prediction for an image file, and the file."""
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        image = await loop.run_in_executor(self._decoders, self._predictor.prepare_with_note, body)
        prediction = await self.batcher.submit(image)
        self.predictions += 1
        self.seconds += time.perf_counter() - started
        return prediction, body

    async def _explain(self, body: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        async with self._explanations:  # each holds an image of full resolution until it is drawn
            pixels = await loop.run_in_executor(self._decoders, self._predictor.read_image, body)
            decoded = await loop.run_in_executor(self._decoders, self._predictor.decode, body)
            prediction = await loop.run_in_executor(self.batcher.thread, self._predictor.explain, decoded)
            return await loop.run_in_executor(self._decoders, draw_overlay, pixels, prediction)

    def _release(self, work: "asyncio.Task[Any]") -> None:
        self.in_flight -= 1
        if not work.cancelled():
            work.exception()  # after a timeout nothing else retrieves it, and asyncio would log a warning

    def metrics(self) -> str:
        """The counters as Prometheus text, version 0.0.4."""
        lines = [
            "# TYPE streetvision_requests_total counter",
            *(f'streetvision_requests_total{{status="{s}"}} {n}' for s, n in sorted(self.statuses.items())),
            "# TYPE streetvision_in_flight gauge",
            f"streetvision_in_flight {self.in_flight}",
            "# TYPE streetvision_batches_total counter",
            f"streetvision_batches_total {self.batcher.batches}",
            "# TYPE streetvision_prediction_seconds summary",
            f"streetvision_prediction_seconds_sum {self.seconds:.6f}",
            f"streetvision_prediction_seconds_count {self.predictions}",
        ]
        if self._log is not None:
            lines += [
                "# TYPE streetvision_log_errors_total counter",
                f"streetvision_log_errors_total {self._log.errors}",
            ]
        if self._predictor.monitor_state is not None:
            lines += monitor_metrics(self._predictor.monitor_state)
        return "\n".join(lines) + "\n"


def monitor_metrics(state: StatusFile) -> list[str]:
    """The status of `streetvision monitor` as lines of Prometheus text."""
    status = state.status
    values: list[tuple[str, float]] = [
        ("streetvision_monitor_state_readable", int(status is not None)),
        ("streetvision_certificate_withdrawn", int(state.withdrawn is not None)),
    ]
    if status is not None:
        values += [("streetvision_monitor_images", status.images), ("streetvision_monitor_units", status.units)]
        for name, test in status.tests.items():
            values += [
                (f'streetvision_monitor_log10_martingale{{test="{name}"}}', test.log10_martingale),
                (f'streetvision_monitor_alarm{{test="{name}"}}', int(test.alarm_at is not None)),
            ]
        if status.recent_prevalence is not None and status.recent_prevalence.estimate is not None:
            values.append(("streetvision_monitor_prevalence", status.recent_prevalence.estimate))
        kind = status.risk.kind
        values += [
            (f'streetvision_monitor_risk_lower{{kind="{kind}"}}', status.risk.lower),
            (f'streetvision_monitor_risk_upper{{kind="{kind}"}}', status.risk.upper),
        ]
    lines, typed = [], set()
    for label, value in sorted(values):
        metric = label.partition("{")[0]
        if metric not in typed:
            lines.append(f"# TYPE {metric} gauge")
            typed.add(metric)
        lines.append(f"{label} {value}")
    return lines


UPLOAD_SCHEMA = {
    "parameters": [
        {"name": "X-API-Key", "in": "header", "required": False, "schema": {"type": "string"}},
        *({"name": name, "in": "query", "required": False, "schema": {"type": "string"}} for name in ("id", "group")),
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {FIELD: {"type": "string", "format": "binary"}}}
            },
            "application/json": {
                "schema": {"type": "object", "properties": {FIELD: {"type": "string", "format": "byte"}}}
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}
ERRORS = {
    401: "the API key is missing or wrong",
    408: "the body took too long to arrive",
    413: "the body is too long",
    422: "the body contains no valid image",
    507: "the temporary folder of the server is full",
    503: "overloaded, or a fault of the machine: retry after the number of seconds in Retry-After",
}
"""HTTP status -> its description in the OpenAPI schema."""


def create_app(predictor: Predictor, config: ServingConfig) -> FastAPI:
    """The application: POST /predict and /explain, /healthz, /metrics, /openapi.json, and an upload page at /."""
    service = Service(predictor, config)
    # FastAPI's documentation pages load scripts from another server.
    app = FastAPI(title="streetvision", docs_url=None, redoc_url=None)
    app.state.service = service
    page = render_page(predictor, config)
    page_headers = {"Content-Security-Policy": content_security_policy(page), "X-Content-Type-Options": "nosniff"}

    async def checked(request: Request, respond: Callable[[Request], Coroutine[None, None, Result]]) -> Result:
        """Check the key, respond, and count the status."""
        try:
            check_key(request, config.api_key)
            result = await respond(request)
        except Exception as error:
            service.statuses[error.status_code if isinstance(error, HTTPException) else 500] += 1
            raise
        service.statuses[200] += 1
        return result

    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": description} for status, description in ERRORS.items()
    }
    prediction_options: dict[str, Any] = {"response_model": PredictionResponse, "response_model_exclude_unset": True}

    @app.post("/predict/", include_in_schema=False, **prediction_options)
    @app.post("/predict", openapi_extra=UPLOAD_SCHEMA, responses=errors, **prediction_options)
    async def predict(request: Request) -> PredictionResponse:
        prediction = await checked(request, service.predict)
        fields = {name: getattr(prediction, name) for name in PredictionResponse.model_fields}
        for name in ("note", "withdrawn"):  # most images have none
            if fields[name] is None:
                del fields[name]
        return PredictionResponse(**fields)

    @app.post("/explain/", include_in_schema=False)
    @app.post("/explain", openapi_extra=UPLOAD_SCHEMA, responses=errors | {200: {"content": {"image/png": {}}}})
    async def explain(request: Request) -> Response:
        """A drawing of the image with the prediction of each of its views."""
        return Response(await checked(request, service.explain), media_type="image/png")

    # These are coroutines, so they need no thread and respond at once while the threads decode.
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "bundle": predictor.manifest.digest}

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        return service.metrics()

    @app.head("/", include_in_schema=False)
    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=page_headers)

    return app


def check_key(request: Request, api_key: str | None) -> None:
    """Raise HTTPException with status 401 unless the request has the API key of the server; None: no key is needed."""
    key = request.headers.get("x-api-key", "")
    # compare_digest takes the same time for every wrong key.
    if api_key is not None and not hmac.compare_digest(api_key.encode(), key.encode()):
        raise HTTPException(401, "send the API key of this server in the header X-API-Key")


def render_page(predictor: Predictor, config: ServingConfig) -> str:
    """The upload page. It loads nothing from other servers."""
    control, model = predictor.risk_control, read_classifier_description(predictor.bundle)
    policy = predictor.manifest.policy
    return (
        environment("streetvision.serving")
        .get_template("upload.html.j2")
        .render(
            class_names=predictor.manifest.class_names,
            threshold=predictor.threshold,
            calibrated=isinstance(policy, ScrcPolicy) and policy.scrc_params.calibrator.name != UNCALIBRATED,
            guarantee=control.reason if control is not None and control.certified else None,
            max_megabytes=config.max_megabytes,
            max_megapixels=config.max_megapixels,
            key_required=config.api_key is not None,
            field=FIELD,
            digest=predictor.manifest.digest,
            backbone=_backbone_name(model.backbone),
            image_size=model.image_size,
            inference=predictor.inference,
            single_view=predictor.inference == SINGLE_VIEW,
        )
    )


def _backbone_name(description: Mapping[str, JsonValue]) -> str:
    """The name of a timm model, or the type of a transformers model."""
    config = description.get("config")
    name = description.get("name") or (config.get("model_type") if isinstance(config, dict) else None)
    return str(name or description.get("source", "model"))


def content_security_policy(page: str) -> str:
    """A policy that allows the page its own script and style, by their digests, and requests to this server only."""
    rules = ["default-src 'none'", "connect-src 'self'", "img-src blob:", "base-uri 'none'"]
    for tag in ("script", "style"):
        content = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        rules.append(f"{tag}-src 'sha256-{digest}'")
    return "; ".join(rules)
