"""uvicorn, set up for our applications."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from pad.detector import Detector
from pad.errors import PadError
from pad.serving.limits import BodyLimit
from pad.serving.request import ServeRequest
from pad.serving.service import create_service

BACKLOG = 2048


def listening(host: str, port: int) -> socket.socket:
    """A socket on which a server may listen. Raises PadError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise PadError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    return sock


def address(sock: socket.socket) -> str:
    """Its URL."""
    return url(*sock.getsockname()[:2])


def url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    detector: Detector, request: ServeRequest, token: str | None, tell: Callable[[str, bool], object]
) -> int:
    """Serves until SIGINT or SIGTERM; requests that were begun are answered first. The exit status."""
    app = create_service(detector, request, token)
    sock = listening(request.host, request.port)
    # No line for each request: names of pictures are nobody's business, and headers hold the token.
    config = uvicorn.Config(
        BodyLimit(app, request.max_bytes),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(request.timeout) + 1,
    )
    tell(address(sock), token is not None)
    with sock:
        uvicorn.Server(config).run(sockets=[sock])
    return 0
