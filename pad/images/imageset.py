"""An ordered set of images, each opened only when asked for, and what is known about each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pad.errors import printable
from pad.images.read import read_image

Purpose = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Sample:
    """What is known about one image."""

    name: str  # as shown to the user, and in scores.csv
    kind: str | None = None  # the sub-folder or class it is from, also for normal images
    anomalous: bool | None = None  # None: unknown
    mask: Path | None = None  # where its defect is, white on black


class Packed(Protocol):
    """An image in a container (a database, say) or a store: the bytes of an image file, read when asked for.
    One that may be named twice has an `identity` besides."""

    def read(self) -> bytes: ...


# A file, a uint8 array (H, W[, 3 or 4]), a PIL image of any mode, or packed.
Content = Path | np.ndarray | Image.Image | Packed


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order, each opened only when asked for.

    `keys` are names that are the same on every machine (relative to the folder that was given).
    """

    samples: list[Sample]
    contents: list[Content] = field(repr=False)
    keys: list[str] = field(repr=False)
    source: str  # what was asked for, without the path to it
    hashes: NDArray[np.uint64] | None = field(
        default=None, repr=False, compare=False
    )  # of the content, if known

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labelled(self) -> bool:
        """Whether it is known of any image if it is anomalous."""
        return any(sample.anomalous is not None for sample in self.samples)

    def open(self, index: int) -> Image.Image:
        """The image as stored, upright. Raises pad.images.read.ImageError if it cannot be read."""
        content, name = self.contents[index], self.samples[index].name
        if isinstance(content, np.ndarray):
            return Image.fromarray(content)
        if isinstance(content, Image.Image):
            return content
        return read_image(content if isinstance(content, Path) else content.read(), name)

    def describe(self) -> str:
        """`"120 images in ankle-boot"`, for messages."""
        return printable(f"{len(self)} image{'' if len(self) == 1 else 's'} in {self.source}")

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """Some of the images, in the order of `indices`."""
        chosen = list(indices)
        return ImageSet(
            [self.samples[i] for i in chosen],
            [self.contents[i] for i in chosen],
            [self.keys[i] for i in chosen],
            self.source,
            None if self.hashes is None else self.hashes[chosen],
        )

    def normal_only(self) -> ImageSet:
        """Without the images that are known to be anomalous."""
        return self.subset(i for i, sample in enumerate(self.samples) if not sample.anomalous)

    def fingerprint(self) -> dict[str, str | int]:
        """`source`, number of `images`, and a `sha256` of their keys and sizes (in memory: their pixels).

        Cheap, and the same on every machine: no path to the data enters, and files are not read.
        """
        digest = hashlib.sha256()
        for key, content in zip(self.keys, self.contents, strict=True):
            digest.update(key.encode("utf-8", "surrogateescape") + b"\0")
            if isinstance(content, np.ndarray):
                digest.update(np.ascontiguousarray(content).tobytes())
            elif isinstance(content, Image.Image):
                digest.update(content.tobytes())
            elif isinstance(content, Path):
                digest.update(str(_size(content)).encode() + b"\0")
        return {"source": self.source, "images": len(self), "sha256": digest.hexdigest()}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def joined_sets(first: ImageSet, second: ImageSet) -> ImageSet:
    """The images of both, in this order."""
    hashes = None
    if first.hashes is not None and second.hashes is not None:
        hashes = np.concatenate([first.hashes, second.hashes])
    return ImageSet(
        first.samples + second.samples,
        first.contents + second.contents,
        first.keys + second.keys,
        first.source,
        hashes,
    )
