"""The page of a watcher: the stream with its verdicts, proposals to decide on, drift, and history.

It reads the state beside the watcher, and decides as the command line does. It listens on this machine alone.
What another page in the same browser could do is shut out: requests must name a host that is this machine,
and what changes something must carry a header that no other origin may send.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from pad.errors import PadError
from pad.serving.server import address, listening
from pad.watching.online_fdr import OnlineFdr
from pad.watching.state import OPEN, REJECTED, Event, State

HEADER = "x-pad"  # of what changes something
POLL = 0.25  # seconds
SHOWN = 60  # events at a time
ALARMS = 20  # that are listed
MOST_NAME = 100  # characters
BUCKETS = 50  # of the rate over time
_FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
          "/page.css": ("page.css", "text/css")}  # fmt: skip
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'"
_SAFE = {
    "Content-Security-Policy": f"{_POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_HERE = ("127.0.0.1", "localhost", "[::1]")


def create_page(folder: Path, stopping: threading.Event) -> FastAPI:
    """The page of the state in a folder. `stopping` ends what is streamed."""
    app = FastAPI(openapi_url=None)

    def asked(question: Callable[[State], Any]) -> Any:
        state = State(folder)
        try:
            return question(state)
        except PadError as error:
            raise HTTPException(409, str(error)) from None
        finally:
            state.close()

    @app.middleware("http")
    async def guarded(given: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        host = given.headers.get("host", "").rsplit(":", 1)[0]
        if host not in _HERE:
            return JSONResponse({"detail": "ask this machine by its own name"}, 403)
        if given.method != "GET" and given.headers.get(HEADER) != "1":
            return JSONResponse({"detail": f"the header {HEADER} is missing"}, 403)
        response = await answer(given)
        response.headers.update(_SAFE)
        return response

    for path, (name, kind) in _FILES.items():
        app.add_api_route(path, _file(name, kind), methods=["GET"])

    @app.get("/api/state")
    def state() -> Any:
        return asked(summary)

    @app.get("/api/events")
    def events(before: int | None = None, flagged: bool = False, alarms: bool = False) -> Any:
        return [shown(event) for event in asked(lambda s: s.latest_events(SHOWN, flagged, before, alarms))]

    @app.get("/api/pictures/{event}")
    def picture(event: int) -> Response:
        content = asked(lambda s: s.thumbnail(event))
        if not content:
            raise HTTPException(404)
        return Response(content, media_type="image/jpeg")

    @app.get("/api/proposals/{proposal}")
    def montage(proposal: int) -> Response:
        path = asked(lambda s: s.montage(proposal))
        if not path.is_file():
            raise HTTPException(404)
        return Response(path.read_bytes(), media_type="image/jpeg")

    @app.post("/api/accept/{proposal}")
    def accept(proposal: int) -> Any:
        return asked(lambda s: _accepted(s, proposal))

    @app.post("/api/reject/{proposal}")
    def reject(proposal: int, name: str = "") -> Any:
        return asked(lambda s: _rejected(s, proposal, name))

    @app.post("/api/rollback")
    def rollback() -> Any:
        return asked(_rolled_back)

    @app.get("/api/stream")
    async def stream(after: int = 0) -> StreamingResponse:
        return StreamingResponse(_news(folder, after, stopping), media_type="text/event-stream")

    return app


def _file(name: str, kind: str) -> Callable[[], Response]:
    content = resources.files("pad.serving").joinpath("templates").joinpath(name).read_bytes()
    return lambda: Response(content, media_type=kind)


def _accepted(state: State, proposal: int) -> dict[str, Any]:
    if state.fact("adopt") == "never":
        raise PadError("the watcher runs with --adopt never: nothing is accepted")
    state.accept(proposal, "page")
    return summary(state)


def _rejected(state: State, proposal: int, name: str) -> dict[str, Any]:
    state.reject(proposal, "page", name[:MOST_NAME])
    return summary(state)


def _rolled_back(state: State) -> dict[str, Any]:
    state.rollback("page")
    return summary(state)


def shown(event: Event) -> dict[str, Any]:
    """An event as the page takes it."""
    return json.loads(event.line())


def summary(state: State) -> dict[str, Any]:
    """All but the events."""
    version = state.version()
    return {
        "counts": state.count(),
        "fpr": state.fact("fpr"),
        "adopt": state.fact("adopt"),
        "evidence": state.fact("evidence") or 1.0,
        "version": version.id,
        "normals": list(version.normals),
        "learnt": list(version.learnt),
        "proposals": [
            {"id": p.id, "time": p.time, "status": p.status, "name": p.name, "pictures": p.pictures}
            for p in sorted(state.proposals(), key=lambda p: (p.status != OPEN, p.status == REJECTED, -p.id))
        ],
        "decisions": state.decisions()[::-1][:100],
        "alarms": state.alarms()[::-1][:100],
        "online_fdr": _online_fdr(state),
        "rates": state.rates(BUCKETS),
    }


def _online_fdr(state: State) -> dict[str, Any] | None:
    """Where the rule of `--online-fdr` stands, and what raised an alarm last; None where nobody asks."""
    kept = state.fact("online_fdr")
    if kept is None:
        return None
    known = json.loads(kept)
    rule = OnlineFdr(known["rate"], known["n"])
    rule.resume(kept)
    return {
        "rate": rule.rate,
        "period": rule.period,
        "seen": rule.seen,
        "alarms": rule.alarms,
        "level": rule.level,
        "raised": state.alarms_raised(),
        "latest": [shown(event) for event in state.latest_events(ALARMS, alarms=True)],
    }


async def _news(folder: Path, after: int, stopping: threading.Event) -> AsyncIterator[str]:
    """Server-sent events: `pictures`, those that are new, and `state`, whenever anything has changed."""
    loop, told, last = asyncio.get_running_loop(), "", after

    def look() -> tuple[list[Event], str]:
        state = State(folder)
        try:
            return state.events(last, SHOWN), json.dumps(summary(state))
        finally:
            state.close()

    while not stopping.is_set():
        events, text = await loop.run_in_executor(None, look)
        if events:
            last = events[-1].id
            yield f"event: pictures\nid: {last}\ndata: {json.dumps([shown(e) for e in events])}\n\n"
        if text != told:
            told = text
            yield f"event: state\ndata: {text}\n\n"
        if len(events) < SHOWN:
            await asyncio.sleep(POLL)


@contextlib.contextmanager
def served(folder: Path, port: int) -> Iterator[str]:
    """Within, the page is served on this machine; its URL. Raises PadError if the port cannot be had."""
    stopping = threading.Event()
    sock = listening("127.0.0.1", port)
    config = uvicorn.Config(
        create_page(folder, stopping), access_log=False, log_level="warning", server_header=False,
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="page", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield address(sock)
    finally:
        stopping.set()
        server.should_exit = True
        thread.join(5)
        sock.close()
