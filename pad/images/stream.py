"""A steady stream of images as tensors: decoded ahead of the consumer, in flat memory, errors named."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from pad.config import BATCH_SIZE, Config, fitting_batch
from pad.devices import in_parallel, lanes
from pad.images.decode import planes, scaled
from pad.images.imageset import ImageSet
from pad.images.read import ImageError
from pad.images.resize import at_side
from pad.images.tiles import Pictures, Tiled, tiled

Result = TypeVar("Result")

SMALL = 1 << 16  # pixels of a picture that waits to be resized together with others
PATIENCE = 0.05  # seconds that a lane waits for another to have read its images


@dataclass(frozen=True)
class Batch:
    """Some consecutive images of an ImageSet: those that could be read, and why others could not."""

    indices: list[int]  # of the rows of `tensor`, in the ImageSet
    tensor: (
        torch.Tensor
    )  # float32 (len(indices), channels, size, size) in [-1, 1]; empty where there are tiles
    errors: list[tuple[int, str]]  # index in the ImageSet and the reason, without the name
    tiles: list[Tiled] = field(default_factory=list)  # the pictures, where the recipe cuts them into tiles

    @property
    def pictures(self) -> Pictures:
        """What a detector looks at."""
        return self.tiles or self.tensor


def stream(images: ImageSet, config: Config, batch_size: int, workers: int = 2) -> Iterator[Batch]:
    """All images in order, `batch_size` at a time, decoded by `workers` threads ahead of the consumer.

    At most `workers` + 1 batches wait, so memory does not grow with the number of images. An unreadable image
    is in its batch's `errors`; a batch in which none was readable has an empty tensor.
    """
    ahead_of_us = pieces(len(images), 1 if config.tile else batch_size)
    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="decode")

    def ahead() -> None:
        chosen = next(ahead_of_us, None)
        if chosen is not None:
            waiting.append(pool.submit(decoded, images, chosen, config))

    try:
        for _ in range(max(1, workers) + 1):
            ahead()
        while waiting:
            batch = waiting.popleft().result()
            ahead()
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def each_batch(
    function: Callable[[Batch], Result],
    images: ImageSet,
    config: Config,
    device: torch.device,
    batch_size: int,
) -> Iterator[Result]:
    """`function` of all images in order, `batch_size` at a time or, on a CPU, a share of it in every lane."""
    if device.type != "cpu":
        return map(function, stream(images, config, batch_size))

    turn = threading.Lock()

    def read(chosen: range) -> Result:
        # To read small files is mostly Python, which two lanes at once would only snatch from each other: one
        # waits, and then reads while the other computes. Large files are decoded outside Python's lock.
        waited_for = turn.acquire(timeout=PATIENCE)
        try:
            batch = decoded(images, chosen, config)
        finally:
            if waited_for:
                turn.release()
        return function(batch)

    # A lane reads its own images: more threads than processors would be in each other's way.
    size, workers = shares(config, device, batch_size)
    return in_parallel(read, pieces(len(images), size), workers)


def shares(config: Config, device: torch.device, batch_size: int) -> tuple[int, int]:
    """How many images of a batch a lane takes at a time, and the number of lanes. Of pictures in tiles one:
    the tiles are a batch of their own."""
    size = fitting_batch(config, batch_size)
    workers = lanes(device, BATCH_SIZE if config.tile else size)
    return (1 if config.tile else size // workers), workers


def lane_threads(images: int, config: Config, device: torch.device, batch_size: int) -> int:
    """By how many of torch's threads a lane computes, which takes a part in how numbers are rounded."""
    size, workers = shares(config, device, batch_size)
    threads = torch.get_num_threads()
    return threads if workers == 1 or images <= size else max(1, threads // workers)


def pieces(n: int, size: int) -> Iterator[range]:
    """0 .. n - 1 in pieces of `size`."""
    return (range(start, min(start + size, n)) for start in range(0, n, size))


def decoded(images: ImageSet, chosen: range, config: Config) -> Batch:
    """Some consecutive images as one batch."""
    indices: list[int] = []
    pixels: list[tuple[torch.Tensor, float]] = []
    pictures: list[Tiled] = []
    errors: list[tuple[int, str]] = []
    for index in chosen:
        try:
            if config.tile is None:
                pixels.append(_shrunk(*planes(images.open(index), config), config))
            else:
                pictures.append(tiled(images.open(index), config))
            indices.append(index)
        except ImageError as error:
            errors.append((index, error.reason))
        except Exception as error:  # pixels that Pillow cannot convert, a container that is lost
            errors.append((index, f"cannot be decoded ({str(error) or type(error).__name__})"))
    return Batch(indices, _together(pixels, config), errors, pictures)


def _shrunk(pixels: torch.Tensor, white: float, config: Config) -> tuple[torch.Tensor, float]:
    """A large picture as `scaled` gives it, at once: a batch of large ones might not fit into memory."""
    if pixels.shape[-1] * pixels.shape[-2] <= SMALL:
        return pixels, white
    return scaled(pixels, white, config), 0.0  # no white: it is done


def _together(pixels: list[tuple[torch.Tensor, float]], config: Config) -> torch.Tensor:
    """Float32 (n, channels, size, size) in [-1, 1]; pictures of one shape and type are resized in one go,
    which is much quicker for small ones."""
    tensor = torch.empty(len(pixels), config.channels, config.input_side, config.input_side)
    groups: dict[Any, list[int]] = {}
    for row, (p, white) in enumerate(pixels):
        groups.setdefault((p.shape, p.dtype, white), []).append(row)
    for (_, _, white), rows in groups.items():
        stacked = torch.stack([pixels[row][0] for row in rows])
        tensor[rows] = scaled(stacked, white, config) if white else stacked
    return tensor


def load_all(
    images: ImageSet,
    config: Config,
    workers: int = 2,
    half: bool = False,
    progress: Callable[[int], object] | None = None,
    side: int | None = None,
) -> tuple[torch.Tensor, list[int], list[tuple[int, str]]]:
    """All readable images in memory, decoded by `workers` threads; `progress` is told of so many more.

    Returns float32 (or, to save memory, float16) (n, channels, s, s) in [-1, 1], s being `side` or else the
    recipe's `input_side`, the indices of its rows in `images`, and the errors as in Batch.
    """
    side = side or config.input_side
    shape = (len(images), config.channels, side, side)
    pixels = torch.empty(shape, dtype=torch.float16 if half else torch.float32)
    kept: list[int] = []
    errors: list[tuple[int, str]] = []
    for batch in stream(images, config, 64, workers):
        pixels[len(kept) : len(kept) + len(batch.indices)] = at_side(batch.tensor, side)
        kept += batch.indices
        errors += batch.errors
        if progress is not None:
            progress(len(batch.indices) + len(batch.errors))
    return pixels[: len(kept)], kept, errors
