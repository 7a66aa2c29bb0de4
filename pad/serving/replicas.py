"""The service on several machines: each replica is one of `service.py`, and Ray Serve stands before them.

A replica has the limits of a single service, a queue and micro-batches of its own. Requests come in at the
same port of every machine that has one, and go to a replica that is little busy. Needs the extras
`pad-anomaly[ray,serve]`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve
from ray.serve.schema import ApplicationStatus, LoggingConfig
from starlette.types import ASGIApp

from pad.cluster.start import cluster, hush, needed, quiet, reason, room
from pad.cluster.work import loaded, sent
from pad.detector import Detector
from pad.errors import PadError
from pad.serving.limits import BodyLimit
from pad.serving.request import ServeRequest
from pad.serving.server import listening, url
from pad.serving.service import check, create_service

NAME = "pad"  # of the application
GRACE = 5.0  # seconds that a request may take in Ray, besides its own
LOOK = 5.0  # seconds between two looks at whether all is well
_CONTROLLER = "SERVE_CONTROLLER_ACTOR"


class _Stop:
    """Whether a signal came, and which."""

    def __init__(self) -> None:
        self.number = 0
        self.came = threading.Event()

    def __call__(self, number: int, frame: object) -> None:
        self.number = number
        self.came.set()


def serve_replicas(
    detector: Detector,
    folder: Path,
    request: ServeRequest,
    token: str | None,
    tell: Callable[[str, bool], object],
) -> int:
    """Serves until SIGINT or SIGTERM; requests that were begun are answered first. The exit status.

    Args:
        detector: of the model in `folder`; it says what a replica takes.
        token: what clients must send.
        tell: is told where it serves, and whether with a token, once all replicas are ready.

    Raises PadError where the cluster has no room, serves something else, or is lost.
    """
    assert request.ray is not None
    check(detector, request)
    port = request.port if request.ray else _free_port(request)
    with _signals() as stop, redirect_stdout(sys.stderr), cluster(request.ray):  # Ray speaks of lost replicas
        count, threads = _shares(detector, request)
        model = sent(folder)  # held here for as long as replicas may begin again
        try:
            with quiet():
                _claim(request)
            with _begun(request, port):
                with quiet():
                    build = _builder(model, request, token, threads)
                    _deploy(build, needed(detector, threads), count, request)
                where = f"{url(request.host, port)}, {count} replica{'s' if count > 1 else ''}"
                tell(where, token is not None)
                while not stop.came.wait(LOOK):
                    _look()
        except (ray.exceptions.RayError, RuntimeError, TimeoutError) as error:
            raise PadError(f"--ray {request.ray}: {reason(error)}") from None
    return 128 + stop.number


@contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port(request: ServeRequest) -> int:
    """Of this machine. Raises PadError if the one that is asked for cannot be had."""
    with listening(request.host, request.port) as sock:
        return int(sock.getsockname()[1])


def _shares(detector: Detector, request: ServeRequest) -> tuple[int, int]:
    """How many replicas, and threads for each. Raises PadError if the cluster has no room for them."""
    count = request.replicas or sum(bool(node["Alive"]) for node in ray.nodes())
    threads = torch.get_num_threads()
    if not request.ray:  # this machine's own are shared
        threads = max(1, threads // count)
    if count > (most := room(needed(detector, threads))):
        raise PadError(
            f"--replicas {count}: the cluster has room for {most}, of OMP_NUM_THREADS={threads} each"
        )
    return count, threads


def _builder(model: Any, request: ServeRequest, token: str | None, threads: int) -> Callable[[], ASGIApp]:
    """What a replica begins with. It travels as it is, the token in it: not in a command line, not in an
    environment that Ray's pages would show."""

    def build() -> ASGIApp:
        torch.set_num_threads(threads)
        return BodyLimit(create_service(loaded(model, request), request, token), request.max_bytes)

    return build


def _claim(request: ServeRequest) -> None:
    """What a `pad serve` that was killed has left is stopped. Raises PadError where anything else is served,
    which is none of our business."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    if not any(actor["name"] == _CONTROLLER for actor in actors):
        return
    if others := sorted(set(serve.status().applications) - {NAME}):
        raise PadError(
            f"--ray {request.ray}: the cluster serves '{others[0]}' by Ray Serve already; `pad serve` takes "
            "one that serves nothing else"
        )
    serve.shutdown()


@contextmanager
def _begun(request: ServeRequest, port: int) -> Iterator[None]:
    """Within, Ray Serve is there, at our address."""
    try:
        with quiet():
            serve.start(
                proxy_location="EveryNode",
                http_options={
                    "host": request.host,
                    "port": port,
                    "request_timeout_s": request.timeout + GRACE,
                },
                logging_config=_logging(),
            )
            hush()
        yield
    finally:
        with quiet():
            serve.shutdown()


def _deploy(build: Callable[[], ASGIApp], needs: dict[str, Any], count: int, request: ServeRequest) -> None:
    """Returns when all replicas are ready."""
    detectors: Any = serve.deployment(
        serve.ingress(build)(),
        name="detectors",
        num_replicas=count,
        max_ongoing_requests=request.max_queue,  # beyond, a replica says itself that it is too much
        ray_actor_options=needs,
        graceful_shutdown_timeout_s=request.timeout + GRACE,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=_logging(),
    )
    serve.run(detectors.bind(), name=NAME, route_prefix="/", logging_config=_logging())


def _logging() -> LoggingConfig:
    """No line for each request: names of pictures are nobody's business, and headers hold the token."""
    return LoggingConfig(log_level="ERROR", enable_access_log=False)


def _look() -> None:
    """Raises PadError if the service is no more. A replica that is lost begins again."""
    found = serve.status().applications.get(NAME)
    if found is None or found.status in (ApplicationStatus.DELETING, ApplicationStatus.DEPLOY_FAILED):
        raise PadError("the service was stopped or replaced by somebody else in the cluster")
