"""A whole set of images scored by the workers of a Ray cluster: Ray Data hands out the pieces, and those of a
worker that is lost are done again by another."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import ray
import ray.data

from pad.cluster.start import hush, needed, reason, room
from pad.cluster.work import Settings, Worker, sent
from pad.detector import Detector
from pad.errors import PadError
from pad.images.imageset import ImageSet
from pad.images.stream import lane_threads, pieces, shares
from pad.judging.request import EvaluateRequest
from pad.judging.rows import Row

_TOGETHER = 256  # images that are handed out in one go, about
_AT_LEAST = 8  # times that a worker is handed something, where there are images for it


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
    needs = needed(detector, threads)
    workers = min(room(needs), len(todo))
    together = max(1, min(_TOGETHER // size, len(todo) // (_AT_LEAST * workers)))
    context = ray.data.DataContext.get_current()
    hush()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    model = sent(folder)
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
        raise PadError(f"--ray: {reason(error)}") from None


def _packed(images: ImageSet, chosen: range) -> bytes:
    try:
        return pickle.dumps(images.subset(chosen))
    except TypeError:  # an open database
        raise PadError(f"{images.source}: cannot be sent to other processes; leave --ray away") from None
