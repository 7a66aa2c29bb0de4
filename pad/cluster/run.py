"""A whole set of images scored by the workers of a Ray cluster: Ray Data hands out the pieces, and those of a
worker that is lost are done again by another."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Said before Ray is imported: it would report to its makers how it is used.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
import ray.data
import torch

from pad.cluster.work import Settings, Worker
from pad.detector import Detector
from pad.errors import PadError, one_line
from pad.images.imageset import ImageSet
from pad.images.stream import lane_threads, pieces, shares
from pad.judging.request import EvaluateRequest
from pad.judging.rows import Row
from pad.store.model_folder import FILES

_OBJECTS = 512 << 20  # bytes that a cluster on this machine alone keeps: names of images, and rows
_PATIENCE = 10.0  # seconds for a cluster to answer
_TOGETHER = 256  # images that are handed out in one go, about
_AT_LEAST = 8  # times that a worker is handed something, where there are images for it


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Within, Ray is there: at an address, or on this machine alone with as many processors as torch would
    use. Raises PadError if there is none at the address."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of what is as it should be
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    common: dict[str, Any] = {"logging_level": "error", "log_to_driver": False, "include_dashboard": False}
    try:
        with _quiet():
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
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError where nobody listens, which Ray would wait for, for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


@contextmanager
def _quiet() -> Iterator[None]:
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


def size_of_pieces(detector: Detector, batch_size: int) -> int:
    """How many images are scored together."""
    return shares(detector.config, detector.device, batch_size)[0]


def scored(
    detector: Detector, folder: Path, images: ImageSet, request: EvaluateRequest, skip: set[int]
) -> Iterator[tuple[int, list[Row]]]:
    """The number and the rows of each piece, as they come; those in `skip` are left out.

    folder: of the model. Raises PadError where the cluster cannot do it.
    """
    size = size_of_pieces(detector, request.batch_size)
    threads = lane_threads(len(images), detector.config, detector.device, request.batch_size)
    settings = Settings(
        detector.device.type,
        request.precision,
        request.backbone_weights,
        request.view_backbone_weights,
        request.allow_downloads,
        request.fpr,
        request.confidence,
        threads,
    )
    todo = [
        {"number": number, "images": _packed(images, chosen)}
        for number, chosen in enumerate(pieces(len(images), size))
        if number not in skip
    ]
    if not todo:
        return
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    needs: dict[str, Any] = {"num_gpus": 1} if detector.device.type == "cuda" else {"num_cpus": threads}
    workers = min(_workers(needs), len(todo))
    together = max(1, min(_TOGETHER // size, len(todo) // (_AT_LEAST * workers)))
    context = ray.data.DataContext.get_current()
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("ray")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is raised
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    model = ray.put(files)  # held here, so that a worker that begins again finds it
    try:
        rows = ray.data.from_items(todo, override_num_blocks=-(-len(todo) // together)).map_batches(
            Worker,
            fn_constructor_args=(model, settings),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            **needs,
        )
        for row in rows.iter_rows():
            yield row["number"], pickle.loads(row["rows"])
    except ray.exceptions.RayError as error:
        raise PadError(f"--ray: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What a worker raised is the last line of what Ray says."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else type(error).__name__


def _packed(images: ImageSet, chosen: range) -> bytes:
    try:
        return pickle.dumps(images.subset(chosen))
    except TypeError:  # an open database
        raise PadError(f"{images.source}: cannot be sent to other processes; leave --ray away") from None


def _workers(needs: dict[str, Any]) -> int:
    """How many the cluster has room for. Raises PadError for none."""
    (kind, each), there = *needs.items(), ray.cluster_resources()
    name = {"num_cpus": "CPU", "num_gpus": "GPU"}[kind]
    workers = int(there.get(name, 0) // each)
    if not workers:
        raise PadError(f"--ray: a worker takes {each} {name}, and the cluster has {there.get(name, 0):g}")
    return workers
