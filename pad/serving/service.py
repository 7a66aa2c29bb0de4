"""The HTTP interface of a detector.

    POST /v1/score     multipart, field `files` (repeated), or JSON {"images": [{"name", "image": <base64>},
    ...]}
                       -> {"results": [{"name", "score", "p_value", "verdict", "error"}, ...]}
    POST /v1/explain   the same, of at most EXPLAINED pictures; each result has `views` and `picture`, a PNG
    GET  /healthz      200 while the process lives
    GET  /readyz       200 once the model is loaded and has scored, else 503
    GET  /metrics      for Prometheus
    GET  /docs, /openapi.json

A picture that cannot be used has its own `error`, and the others their answers. What is wrong with a request
as a whole is a status: 400 malformed, 401 token, 408 or 504 too slow, 413 too large, 429 too much waiting.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.datastructures import UploadFile

import pad
from pad.detector import Detector
from pad.errors import PadError, printable
from pad.images.tiles import as_seen
from pad.judging.rows import Row
from pad.serving.request import ServeRequest
from pad.serving.scorer import Given, Scorer, TooMany

EXPLAINED = 8  # pictures in a request
MOST_NAME = 1000  # characters of a picture's name
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["image"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "image": {"type": "string", "description": "an image file in base64"},
                                },
                            },
                        }
                    },
                }
            },
        },
    }
}


class _Metrics:
    """What is counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pad_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.images = Counter("pad_images", "Pictures by verdict", ["verdict"], registry=self.registry)
        self.seconds = Histogram(
            "pad_request_seconds", "Seconds that a request took", ["path"], registry=self.registry
        )
        self.batch = Histogram(
            "pad_batch_images",
            "Pictures scored together",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.waiting = Gauge("pad_waiting_images", "Pictures that wait", registry=self.registry)

    def count(self, row: Row) -> None:
        self.images.labels(row.verdict or ("error" if row.error else "none")).inc()


def create_service(detector: Detector, request: ServeRequest, token: str | None = None) -> FastAPI:
    """The service. Raises PadError for a detector that could flag nothing."""
    check(detector, request)
    metrics = _Metrics()
    scorer = Scorer(detector, request, metrics.batch.observe)
    metrics.waiting.set_function(lambda: scorer.waiting)
    ready = asyncio.Event()

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.get_running_loop().run_in_executor(None, _warm_up, detector)
        ready.set()
        yield
        ready.clear()
        scorer.close()

    app = FastAPI(title="pad", version=pad.__version__, description=pad.__doc__, lifespan=life)
    known = {"/v1/score", "/v1/explain", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}

    @app.middleware("http")
    async def guarded(asked: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        begun, path = time.perf_counter(), asked.url.path if asked.url.path in known else "other"
        response = await _guarded(asked, answer, request, token)
        metrics.requests.labels(path, str(response.status_code)).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - begun)
        return response

    @app.post("/v1/score", openapi_extra=_BODY)
    async def score(asked: Request) -> dict[str, Any]:
        """How unusual each picture is, how often a normal one is as unusual, and the verdict."""
        rows = await scorer.score(await _pictures(asked, request.max_images))
        for row in rows:
            metrics.count(row)
        return {"results": [_result(row) for row in rows]}

    @app.post("/v1/explain", openapi_extra=_BODY)
    async def explain(asked: Request) -> dict[str, Any]:
        """Why: the p-value in each view, and a picture of where it is unusual."""
        results = []
        for given in await _pictures(asked, EXPLAINED):
            row, picture = await scorer.explain(given)
            metrics.count(row)
            results.append({**_result(row), "views": dict(row.views), "picture": picture})
        return {"results": results}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        done = ready.is_set()
        return JSONResponse({"status": "ready" if done else "not ready"}, 200 if done else 503)

    @app.get("/metrics")
    async def all_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def check(detector: Detector, request: ServeRequest) -> None:
    """Raises PadError for a detector that could flag nothing."""
    if detector.calibration is None:
        raise PadError("the model has no calibration; make one with `pad calibrate MODEL NORMAL_IMAGES`")
    if note := detector.calibration.note(request.fpr, request.confidence):
        raise PadError(note)


def _warm_up(detector: Detector) -> None:
    """The first picture would wait for imports."""
    detector.score_views(as_seen([Image.new("L", (64, 64))], detector.config))


async def _guarded(
    asked: Request,
    answer: Callable[[Request], Awaitable[Response]],
    request: ServeRequest,
    token: str | None,
) -> Response:
    """The answer, within the limits of a request."""
    if asked.url.path.startswith("/v1/"):
        if token is not None and not _allowed(asked, token):
            return _refusal(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        length = asked.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > request.max_bytes:
            return _too_large(request)
    try:
        return await asyncio.wait_for(answer(asked), request.timeout)
    except asyncio.TimeoutError:
        return _refusal(504, f"not done within {request.timeout:g} seconds")
    except TooMany as error:
        return _refusal(429, str(error), {"Retry-After": "1"})
    except PadError as error:
        return _refusal(400, str(error))


def _allowed(asked: Request, token: str) -> bool:
    scheme, _, given = asked.headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def _refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": reason}, status, headers)


def _too_large(request: ServeRequest) -> JSONResponse:
    return _refusal(413, f"a request may have {request.max_megabytes:g} MB")


def _result(row: Row) -> dict[str, Any]:
    score = None if row.score is None else float(f"{row.score:.9g}")
    return {
        "name": row.path,
        "score": score,
        "p_value": row.p_value,
        "verdict": row.verdict,
        "error": row.error,
    }


# What was sent


async def _pictures(asked: Request, most: int) -> list[Given]:
    """The pictures of a request. Raises HTTPException where it has none, too many, or is malformed."""
    kind = asked.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        given = await _uploaded(asked, most)
    elif kind == "application/json":
        given = _from_json(await asked.body())
    else:
        raise HTTPException(415, "send multipart/form-data with files, or application/json")
    if not given:
        raise HTTPException(400, "no pictures: the field 'files', or 'images' in JSON, has none")
    if len(given) > most:
        raise HTTPException(413, f"{len(given)} pictures in a request, at most {most}")
    return given


async def _uploaded(asked: Request, most: int) -> list[Given]:
    async with asked.form(max_files=most + 1, max_fields=100) as form:
        parts = form.getlist("files")
        return [
            Given(_named(part.filename), await part.read())
            if isinstance(part, UploadFile)
            else Given("", b"", "a text where a file is due")
            for part in parts
        ]


def _from_json(body: bytes) -> list[Given]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "not JSON") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise HTTPException(400, 'JSON must be {"images": [{"name": ..., "image": <base64>}, ...]}')
    return [_from_base64(image) for image in images]


def _from_base64(given: Any) -> Given:
    image = given.get("image") if isinstance(given, dict) else None
    name = _named(given.get("name")) if isinstance(given, dict) else ""
    if not isinstance(image, str):
        return Given(name, b"", 'no "image" in base64')
    try:
        return Given(name, base64.b64decode(image, validate=True))
    except (binascii.Error, ValueError):
        return Given(name, b"", '"image" is not base64')


def _named(name: Any) -> str:
    return printable(name[:MOST_NAME]) if isinstance(name, str) else ""
