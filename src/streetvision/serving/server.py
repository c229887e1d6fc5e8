"""The bundle behind HTTP: one process, dynamic batches, and a limit on everything that a stranger can send.

A request counts as in flight before a byte of its body is read, so that overload is a quick 503 and memory is bounded.
"""

import asyncio
import base64
import hashlib
import hmac
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from streetvision.bundle.predictor import Prediction, Predictor, Prepared
from streetvision.contracts.errors import DataError
from streetvision.contracts.settings import Section
from streetvision.serving.batcher import Batcher
from streetvision.serving.upload import FIELD, Refusal, read_upload

RETRY_SECONDS = 1


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
    """Time limit in seconds for reading a request, and again for the prediction."""
    decoders: int = Field(default=2, ge=1)
    """Threads that decode images."""
    api_key: str | None = Field(default=None, min_length=1)
    """Key that clients must send as X-API-Key; None: no key is needed."""


class Answer(BaseModel):
    """The answer for one image."""

    label: str
    decision: int
    probability: float
    certified: int | None


class Service:
    """A predictor, its batches and its counts."""

    def __init__(self, predictor: Predictor, config: ServingConfig) -> None:
        limits = replace(predictor.limits, max_megabytes=config.max_megabytes, max_megapixels=config.max_megapixels)
        predictor.limits = limits
        self.config, self._predictor = config, predictor
        self._decoders = ThreadPoolExecutor(max_workers=config.decoders)
        self.batcher: Batcher[Prepared, Prediction] = Batcher(predictor.predict_prepared, most=config.max_batch)
        self.in_flight = 0
        self.statuses: Counter[int] = Counter()
        self.seconds = 0.0
        """Spent on requests that were answered."""

    async def answer(self, request: Request) -> Prediction:
        """Read, decode and ask; raises Refusal for whatever ends otherwise."""
        if self.in_flight >= self.config.max_in_flight:
            raise Refusal(503, "too many requests are in flight")
        self.in_flight += 1
        work = asyncio.create_task(self._read_and_work(request))
        work.add_done_callback(self._release)
        try:
            # A decoder cannot be stopped: the request keeps its place until its thread is through.
            return await asyncio.wait_for(asyncio.shield(work), 2 * self.config.timeout_seconds)
        except TimeoutError as error:
            raise Refusal(503, "this took too long") from error

    async def _read_and_work(self, request: Request) -> Prediction:
        started = time.perf_counter()
        try:
            reading = read_upload(request, max_megabytes=self.config.max_megabytes)
            body = await asyncio.wait_for(reading, self.config.timeout_seconds)
        except TimeoutError as error:
            raise Refusal(408, "the body took too long to arrive") from error
        except ClientDisconnect as error:
            raise Refusal(400, "the connection was closed before the body had come") from error
        try:
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(self._decoders, self._predictor.prepare, body)
        except DataError as error:
            raise Refusal(422, error.message) from error
        found = await self.batcher.ask(image)
        self.seconds += time.perf_counter() - started
        return found

    def _release(self, work: "asyncio.Task[Prediction]") -> None:
        self.in_flight -= 1
        if not work.cancelled():
            work.exception()  # heard here too when nobody waits any more

    def metrics(self) -> str:
        """Prometheus text, version 0.0.4."""
        lines = [
            "# TYPE streetvision_requests_total counter",
            *(f'streetvision_requests_total{{status="{s}"}} {n}' for s, n in sorted(self.statuses.items())),
            "# TYPE streetvision_in_flight gauge",
            f"streetvision_in_flight {self.in_flight}",
            "# TYPE streetvision_batches_total counter",
            f"streetvision_batches_total {self.batcher.batches}",
            "# TYPE streetvision_answer_seconds summary",
            f"streetvision_answer_seconds_sum {self.seconds:.6f}",
            f"streetvision_answer_seconds_count {self.statuses[200]}",
        ]
        return "\n".join(lines) + "\n"


UPLOAD_SCHEMA = {
    "parameters": [{"name": "X-API-Key", "in": "header", "required": False, "schema": {"type": "string"}}],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {FIELD: {"type": "string", "format": "binary"}}}
            },
            "application/json": {
                "schema": {"type": "object", "properties": {FIELD: {"type": "string", "format": "byte"}}}
            },
        },
    },
}
REFUSALS = {
    401: "the API key is missing or wrong",
    408: "the body took too long to arrive",
    413: "the body is too long",
    422: "the body holds no image that is read here",
    503: "too busy: ask again after the seconds in Retry-After",
}


def create_app(predictor: Predictor, config: ServingConfig) -> FastAPI:
    """The application: /predict, /healthz, /metrics, /openapi.json and a page for people at /."""
    service = Service(predictor, config)
    app = FastAPI(title="streetvision", docs_url=None, redoc_url=None)  # their pages load scripts from elsewhere
    app.state.service = service
    page, policy = _page()

    @app.post(
        "/predict",
        response_model=Answer,
        openapi_extra=UPLOAD_SCHEMA,
        responses={status: {"description": reason} for status, reason in REFUSALS.items()},
    )
    async def predict(request: Request) -> Response:
        try:
            _check_key(config.api_key, request.headers.get("x-api-key"))
            found = asdict(await service.answer(request))
        except Refusal as refusal:
            service.statuses[refusal.status] += 1
            headers = {"Retry-After": str(RETRY_SECONDS)} if refusal.status == 503 else None
            return JSONResponse({"detail": refusal.reason}, refusal.status, headers=headers)
        service.statuses[200] += 1
        return JSONResponse({name: found[name] for name in Answer.model_fields})

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok", "bundle": predictor.manifest.digest}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        return service.metrics()

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    return app


def _check_key(wanted: str | None, given: str | None) -> None:
    if wanted is not None and not hmac.compare_digest(wanted.encode(), (given or "").encode()):
        raise Refusal(401, "send the server's key as X-API-Key")


def _page() -> tuple[str, str]:
    """The page, and a policy that lets it run its own script and style and ask this server, no other."""
    text = (resources.files("streetvision.serving") / "page.html").read_text()
    digests = {}
    for part in ("script", "style"):
        content = text.partition(f"<{part}>")[2].partition(f"</{part}>")[0]
        digests[part] = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    rules = [f"{part}-src 'sha256-{digest}'" for part, digest in digests.items()]
    return text, "; ".join(["default-src 'none'", *rules, "connect-src 'self'", "img-src blob:", "base-uri 'none'"])
