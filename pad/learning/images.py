"""The images of a training: read or drawn, split into those that teach and those that calibrate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from pad.config import BATCH_SIZE, Config
from pad.errors import PadError
from pad.images.hashes import Hashes
from pad.images.identity import hashes_of, with_hashes
from pad.images.imageset import ImageSet
from pad.images.resize import at_side
from pad.images.stream import load_all, stream
from pad.judging.calibration import calibration_split
from pad.progress import progress_bar

MINIMUM_IMAGES = 8
CACHE_BYTES = 1 << 30  # training images, and features of them, are kept in memory while they fit in here


class Images(Protocol):
    """The training images: a length, and any of them as a batch (n, channels, size, size) in [-1, 1]."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor: ...


def in_batches(images: Images, indices: Tensor, size: int = BATCH_SIZE) -> Iterator[Tensor]:
    """The images of these indices in order, `size` at a time."""
    return (images.batch(part) for part in indices.split(size))


class MemoryImages:
    """Training images (n, channels, size, size) in [-1, 1] held in memory in half precision."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.half()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        return self.images[indices].float()


class FileImages:
    """Training images decoded whenever they are drawn, for sets that do not fit in memory."""

    def __init__(self, images: ImageSet, config: Config) -> None:
        self.images, self.config = images, config

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        chosen = self.images.subset(indices.tolist())
        batches = list(stream(chosen, self.config, batch_size=max(1, len(chosen) // 4), workers=4))
        readable = at_side(torch.cat([batch.tensor for batch in batches]), self.config.size)
        if not len(readable):
            raise PadError(f"{self.images.describe()}: a whole batch of {len(chosen)} images cannot be read")
        # Others of the batch stand in for those that cannot be read, so that its size stays.
        return readable[torch.arange(len(chosen)) % len(readable)]


def load_images(images: ImageSet, config: Config, progress: bool = False) -> tuple[Images, list[str]]:
    """Training images, in memory if they fit, and a line for each that could not be read."""
    bytes_needed = 2 * len(images) * config.channels * config.size**2
    if bytes_needed > CACHE_BYTES:
        return FileImages(images, config), []
    with progress_bar(len(images), "reading", "image", progress) as bar:
        pixels, _, errors = load_all(images, config, half=True, progress=bar.update, side=config.size)
    return MemoryImages(pixels), [f"{images.samples[i].name}: {reason}" for i, reason in errors]


def split_images(
    images: ImageSet, config: Config, trained: Hashes | None = None, progress: bool = False
) -> tuple[ImageSet, ImageSet]:
    """Normal images to train on, and those kept back for calibration, by their content (`calibration_split`).

    Without a generator all are trained on: they are judged by cross-fitting.
    trained: hashes of what a model was trained on that is to be fine-tuned; none of it calibrates.
    Raises PadError if there are fewer than 8, saying how many and where, or if none can calibrate.
    """
    if len(images) < MINIMUM_IMAGES:
        raise PadError(f"training takes at least {MINIMUM_IMAGES} normal images; found {images.describe()}")
    with progress_bar(len(images), "comparing", "image", progress) as bar:
        images = with_hashes(images, progress=bar.update)
    if not config.has_generator:
        return images, images.subset([])
    try:
        training, calibration = calibration_split(
            hashes_of(images), config.calibration_fraction, seed=config.seed, trained=trained
        )
    except PadError as error:
        raise PadError(f"{images.source}: {error}") from None
    return images.subset(training.tolist()), images.subset(calibration.tolist())


def readable(images: ImageSet, config: Config) -> tuple[ImageSet, list[str]]:
    """The images that can be read, and a line for each of the others."""
    kept: list[int] = []
    errors: list[str] = []
    for batch in stream(images, config, 64):
        kept += batch.indices
        errors += [f"{images.samples[i].name}: {reason}" for i, reason in batch.errors]
    return (images.subset(kept) if errors else images), errors
