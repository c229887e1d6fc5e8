"""The page to label on, served to this machine: one process, one person, any number of browser tabs."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.middleware.trustedhost import TrustedHostMiddleware

from streetvision.contracts.errors import ArtifactError
from streetvision.data.image_file import UndecodableImage
from streetvision.data.labels.store import EventId
from streetvision.eval.report.html import environment
from streetvision.io.atomic import sha256_json
from streetvision.labeling.agreement import agreements
from streetvision.labeling.queue import QueuedImage
from streetvision.labeling.rounds import Round
from streetvision.labeling.session import DecisionError, Session
from streetvision.serving.server import check_key, content_security_policy

MAX_BODY = 4096
"""Bytes of a request."""
PREFETCHED = 4
"""Images that a tab has at a time."""
DIGEST = re.compile("[0-9a-f]{64}")
TAB = re.compile("[0-9a-f]{1,32}")
Body = TypeVar("Body", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DecisionRequest(_Body):
    """Body of POST /decide."""

    event: EventId
    """Chosen by the page, so that a decision may be sent again after a failure."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    label: Annotated[int, Field(ge=0, le=1)] | None
    """None: skip."""
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] | None = None


class UndoRequest(_Body):
    """Body of POST /undo."""

    event: EventId
    undoes: EventId


def create_app(
    session: Session,
    *,
    class_names: tuple[str, str],
    show_model: bool = False,
    api_key: str | None = None,
    hosts: Sequence[str] = ("127.0.0.1", "localhost", "testserver"),
    rounds: Sequence[Round] = (),
) -> FastAPI:
    """The application: a page at /, the images, and the decisions.

    Args:
        session: The queue and the decisions.
        class_names: Names of class 0 and class 1.
        show_model: Show what the model predicts before the decision and not after it.
        api_key: Key that the page must send as X-API-Key; None: none, and only `hosts` are accepted as Host.
        hosts: Names of this machine.
        rounds: Earlier trainings with these labels.
    """
    app = FastAPI(title="streetvision label", docs_url=None, redoc_url=None, openapi_url=None)
    if api_key is None:
        # A page of another server cannot send requests here under its own name.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    session_id = sha256_json([str(session.store.path.absolute()), session.labeler, class_names])[:16]
    page = (
        environment("streetvision.labeling")
        .get_template("label.html.j2")
        .render(
            class_names=class_names,
            show_model=show_model,
            session_id=session_id,
            key_required=api_key is not None,
            labeler=session.labeler,
            rounds=rounds,
        )
    )
    headers = {"Content-Security-Policy": content_security_policy(page), "X-Content-Type-Options": "nosniff"}

    async def body(request: Request, kind: type[Body]) -> Body:
        check_key(request, api_key)
        # A form of another web page cannot send this type.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "send application/json")
        data = b""
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise HTTPException(422, f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}") from error

    def described(image: QueuedImage) -> dict[str, Any]:
        shown = {"probability": image.probability} if show_model else {}
        return {"sha256": image.sha256, "queue": image.queue, "reason": image.reason, **shown}

    def state() -> dict[str, Any]:
        return asdict(session.progress())

    @app.exception_handler(ArtifactError)
    async def report_failed_write(_: Request, error: ArtifactError) -> JSONResponse:
        return JSONResponse({"detail": error.message}, 507)

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/next")
    async def next_images(request: Request, tab: str) -> dict[str, Any]:
        check_key(request, api_key)
        if not TAB.fullmatch(tab):
            raise HTTPException(422, "tab must be 1 to 32 hexadecimal digits")
        images = session.next_images(tab, PREFETCHED)
        return {"images": [described(image) for image in images], **state()}

    @app.get("/images/{sha256}")
    async def show(request: Request, sha256: str, full: bool = False) -> Response:
        check_key(request, api_key)
        image = session.image(sha256) if DIGEST.fullmatch(sha256) else None
        if image is None:
            raise HTTPException(404, "the image is not in the queue")
        try:
            jpeg = await asyncio.to_thread(session.jpeg, image, full=full)
        except UndecodableImage as error:
            raise HTTPException(410, error.message) from error
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @app.post("/decide")
    async def decide(request: Request) -> dict[str, Any]:
        made = await body(request, DecisionRequest)
        try:
            await asyncio.to_thread(session.decide, **made.model_dump())
        except DecisionError as error:
            raise HTTPException(409, error.message) from error
        image = session.image(made.sha256)
        return {"probability": None if image is None else image.probability, **state()}

    @app.post("/undo")
    async def undo(request: Request) -> dict[str, Any]:
        made = await body(request, UndoRequest)
        try:
            await asyncio.to_thread(session.undo, **made.model_dump())
        except DecisionError as error:
            raise HTTPException(409, error.message) from error
        return state()

    @app.get("/agreement")
    async def agreement(request: Request) -> list[dict[str, Any]]:
        check_key(request, api_key)
        return [asdict(pair) for pair in agreements(session.store.events)]

    return app
