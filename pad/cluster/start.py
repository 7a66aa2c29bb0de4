"""Ray, started on this machine or joined: its address, what it says, and how much room it has."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch

from pad.detector import Detector
from pad.errors import PadError, one_line

_OBJECTS = 512 << 20  # bytes that a cluster on this machine alone keeps: names of images, and rows
_PATIENCE = 10.0  # seconds for a cluster to answer


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Within, Ray is there: at an address, or on this machine alone with as many processors as torch would
    use. Raises PadError if there is none at the address."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers how it is used
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of what is as it should be
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    common: dict[str, Any] = {"logging_level": "error", "log_to_driver": False, "include_dashboard": False}
    try:
        with quiet():
            if address:
                _knock(address)
                del common["include_dashboard"]
                ray.init(address, **common)
            else:
                ray.init("local", num_cpus=torch.get_num_threads(), object_store_memory=_OBJECTS, **common)
    except Exception as error:  # of whatever layer
        raise PadError(f"--ray {address}: {one_line(str(error)) or type(error).__name__}") from None
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray sets its own, which would end us without a word
            signal.signal(number, handler)
    try:
        yield
    finally:
        with quiet():
            ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens, which Ray would wait for, for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


@contextmanager
def quiet() -> Iterator[None]:
    """Within, nothing goes to standard error: Ray's core says there that it is to say nothing."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def hush() -> None:
    """What Ray's loggers would say, and matters, is raised."""
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("ray")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def reason(error: Exception) -> str:
    """What a worker raised is the last line of what Ray says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else type(error).__name__


def needed(detector: Detector, threads: int) -> dict[str, Any]:
    """What one process takes of the cluster, in Ray's words."""
    return {"num_gpus": 1} if detector.device.type == "cuda" else {"num_cpus": threads}


def room(needs: dict[str, Any]) -> int:
    """How many such processes the cluster has room for. Raises PadError for none."""
    (kind, each), there = *needs.items(), ray.cluster_resources()
    name = {"num_cpus": "CPU", "num_gpus": "GPU"}[kind]
    workers = int(there.get(name, 0) // each)
    if not workers:
        raise PadError(f"--ray: a worker takes {each} {name}, and the cluster has {there.get(name, 0):g}")
    return workers
