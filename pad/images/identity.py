"""Which picture an image is, by its content: the same under another name, in another order or format.

A short hash of the pixels says so. By it images are split into those that are trained on and those that
calibrate, and a model remembers what it was trained on, so that nothing is calibrated on it later.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from pad.config import Config
from pad.images.decode import planes
from pad.images.hashes import HASH_BYTES, Hashes
from pad.images.imageset import ImageSet
from pad.images.read import ImageError

_AT_A_TIME = 64  # images that a thread hashes in one go
_WHOLE = Config(channels=3, fit="stretch")


def pixel_hash(image: Image.Image | np.ndarray) -> int:
    """48 bits of the BLAKE2b hash of a picture as it is seen: over white where it is transparent, and grey if
    its colours are all grey, whatever the mode. Raises ImageError for pixels that have no known scale."""
    pixels, white = _as_seen(image)
    digest = hashlib.blake2b(f"{pixels.shape} {white:g}".encode(), digest_size=HASH_BYTES)
    digest.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(digest.digest(), "little")


def _as_seen(image: Image.Image | np.ndarray) -> tuple[np.ndarray, float]:
    """The pixels (H, W) or (H, W, 3), uint8 or float32, and the value that means white."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 2:
        return image, 255.0  # as below, without the detour
    if isinstance(image, Image.Image) and image.mode == "L" and not image.has_transparency_data:
        return np.asarray(image), 255.0
    tensor, white = planes(image, _WHOLE)
    pixels = tensor.permute(1, 2, 0).numpy()
    grey = pixels[..., 0]
    if np.array_equal(grey, pixels[..., 1]) and np.array_equal(grey, pixels[..., 2]):
        return grey, white
    return pixels, white


def with_hashes(images: ImageSet, workers: int = 2, progress: Callable[[int], Any] | None = None) -> ImageSet:
    """The same images with the hash of each, which its subsets keep; every image is decoded once for it,
    and `progress` is told of so many more. One that cannot be read is known by its name."""
    if images.hashes is not None:
        return images
    hashes = np.empty(len(images), np.uint64)

    def look(chosen: range) -> int:
        for index in chosen:
            hashes[index] = _hash(images, index)
        return len(chosen)

    pieces = [range(i, min(i + _AT_A_TIME, len(images))) for i in range(0, len(images), _AT_A_TIME)]
    with ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="hash") as pool:
        for done in pool.map(look, pieces):
            if progress is not None:
                progress(done)
    return dataclasses.replace(images, hashes=hashes)


def _hash(images: ImageSet, index: int) -> int:
    content = images.contents[index]
    try:
        return pixel_hash(content if isinstance(content, np.ndarray) else images.open(index))
    except (ImageError, OSError, ValueError, MemoryError):
        name = images.keys[index].encode("utf-8", "surrogateescape")
        return int.from_bytes(hashlib.blake2b(name, digest_size=HASH_BYTES).digest(), "little")


def hashes_of(images: ImageSet) -> Hashes:
    """The hash of each image, (n,)."""
    hashes = with_hashes(images).hashes
    assert hashes is not None
    return hashes
