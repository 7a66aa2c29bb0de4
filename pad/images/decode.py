"""Images in, tensors out: pixels (pad/images/read.py) become float32 (channels, size, size) in [-1, 1].

- `config.crop`: a centre crop of that side in pixels of the source (or the whole side where it is shorter).
  `config.fit`: then the largest centred square ("crop"), or the whole picture ("stretch"), resized
  with antialiasing to `config.input_side`. Cropping comes first, so that a panorama costs no more than its
  centre.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from pad.config import Config
from pad.errors import PadError
from pad.images.geometry import seen_box
from pad.images.read import BAND, ImageError, from_array, pixels_of, read_image

Given = Image.Image | np.ndarray | torch.Tensor  # an image that is opened
Seen = TypeVar("Seen")

_TOLERANCE = 1e-3  # by which a float tensor may leave [-1, 1], for the rounding of whoever made it


def to_tensor(image: Image.Image | np.ndarray, config: Config) -> torch.Tensor:
    """An image as the networks see it: float32 (channels, size, size) in [-1, 1].

    `image` is a PIL image of any mode or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    Raises ImageError for an array of another type or shape, or pixel values with no known scale.
    """
    return scaled(*planes(image, config), config)


def planes(image: Image.Image | np.ndarray, config: Config) -> tuple[torch.Tensor, float]:
    """The first half of `to_tensor`: the pixels that are seen, (channels, H, W) uint8 or float32, and the
    value that means white."""
    if isinstance(image, np.ndarray):
        image = from_array(image)
    box = seen_box(*image.size, config.crop, config.fit)
    seen = image if box == (0, 0, *image.size) else image.crop(box)
    pixels, white = pixels_of(seen, config.channels)
    tensor = torch.from_numpy(pixels)
    return (tensor.expand(config.channels, -1, -1) if tensor.dim() == 2 else tensor.permute(2, 0, 1)), white


def scaled(pixels: torch.Tensor, white: float, config: Config) -> torch.Tensor:
    """The second half of `to_tensor`, for one image or several of the same size: (..., channels, H, W) to
    float32 (..., channels, size, size) in [-1, 1]."""
    return (_resize(pixels, config.input_side).to(torch.float32) * (2.0 / white) - 1.0).clamp_(-1.0, 1.0)


def _resize(planes: torch.Tensor, size: int) -> torch.Tensor:
    """(..., H, W) to (..., size, size), bilinear with antialiasing; the type stays.

    The same as torchvision's `resize`, without importing it: that takes longer than scoring an image.
    """
    if planes.shape[-2:] == (size, size):
        return planes
    batch = planes.reshape(-1, 1, *planes.shape[-2:])
    if len(batch) > 1 and batch[0].numel() > BAND:  # one by one: as float they take four times the memory
        resized = torch.cat([_resize(plane, size) for plane in batch.split(1)])
        return resized.reshape(*planes.shape[:-2], size, size)
    if not batch.is_floating_point():
        resized = functional.interpolate(batch.float(), size=(size, size), mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).to(planes.dtype).reshape(*planes.shape[:-2], size, size)
    resized = functional.interpolate(batch, size=(size, size), mode="bilinear", antialias=True)
    return resized.reshape(*planes.shape[:-2], size, size)


def batch_tensor(images: Any, config: Config, first: int = 0) -> torch.Tensor:
    """Images of any kind as one batch: float32 (n, channels, size, size) in [-1, 1].

    `images` is a path or a PIL image, a sequence of paths, PIL images, uint8 arrays (H, W[, C]) or float
    tensors (C, H, W), a uint8 array (n, H, W[, C]), or a float tensor (n, C, H, W) in [-1, 1] with C 1 or 3.
    Float tensors are taken as prepared: `config.crop` does not apply, and they are resized only if their size
    differs. Raises PadError, naming the index, for anything else and for images that cannot be read.
    """
    if isinstance(images, torch.Tensor) or (isinstance(images, np.ndarray) and images.dtype.kind == "f"):
        return _float_batch(torch.as_tensor(images), config, first)
    return torch.stack(each_of(images, lambda image, index: _seen(image, index, config), first))


def each_of(images: Any, see: Callable[[Given, int], Seen], first: int = 0) -> list[Seen]:
    """What `see` makes of each of some images, which are given as in `batch_tensor`; it takes the image,
    opened, and its index, counted from `first`. Raises PadError, naming the index, for what is none."""
    if isinstance(images, str | os.PathLike | Image.Image):
        images = [images]
    if isinstance(images, np.ndarray) and images.dtype.kind == "f":
        images = torch.from_numpy(images)
    if isinstance(images, np.ndarray):
        _check_stack(images)
    if not isinstance(images, Iterable):
        raise PadError(f"images must be paths, PIL images, arrays or tensors, not {type(images).__name__}")
    seen = [_one(image, index, see) for index, image in enumerate(images, first)]
    if not seen:
        raise PadError("no images were given")
    return seen


def _seen(image: Given, index: int, config: Config) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        return _float_batch(image[None], config, index)[0]
    return to_tensor(image, config)


def _check_stack(array: np.ndarray) -> None:
    if array.dtype == object:
        return
    single = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if single or array.ndim not in (3, 4):
        hint = "; put a single image in a list" if single else ""
        raise PadError(f"an array of images must be uint8 (n, H, W[, C]), not {array.shape}{hint}")


def _one(image: Any, index: int, see: Callable[[Given, int], Seen]) -> Seen:
    name = f"images[{index}]"
    try:
        if isinstance(image, str | os.PathLike):
            name = f"{name} ({os.fspath(image)})"
            return see(read_image(image, os.fspath(image)), index)
        if isinstance(image, torch.Tensor) and image.dtype.is_floating_point:
            return see(image, index)
        if isinstance(image, Image.Image | np.ndarray):
            return see(image, index)
    except ImageError as error:
        raise ImageError(name, error.reason) from None
    except PadError as error:
        raise error if str(error).startswith(name) else PadError(f"{name}: {error}") from None
    except (OSError, ValueError) as error:  # a PIL image is lazy: its file may turn out broken only here
        raise ImageError(name, f"cannot be decoded ({error})") from None
    kind = f"{image.dtype} tensor" if isinstance(image, torch.Tensor) else type(image).__name__
    raise PadError(f"{name}: expected a path, a PIL image, a uint8 array or a float tensor, not {kind}")


def _float_batch(batch: torch.Tensor, config: Config, first: int) -> torch.Tensor:
    shape = tuple(batch.shape)
    if not batch.dtype.is_floating_point:
        raise PadError(
            f"a tensor of images must be float in [-1, 1], not {batch.dtype}; uint8 goes as an array"
        )
    if batch.ndim != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise PadError(f"a tensor of images must be (n, 1 or 3, H, W), not {shape}")
    batch = batch.detach().to("cpu", torch.float32)
    _check_range(batch, first)
    if shape[1] != config.channels:
        batch = _luma(batch) if config.channels == 1 else batch.expand(-1, 3, -1, -1)
    if config.fit == "crop" and shape[2] != shape[3]:
        side = min(shape[2:])
        top, left = (shape[2] - side) // 2, (shape[3] - side) // 2
        batch = batch[:, :, top : top + side, left : left + side]
    return _resize(batch, config.input_side).clamp(-1.0, 1.0).contiguous()


def _luma(batch: torch.Tensor) -> torch.Tensor:
    """(n, 3, H, W) to (n, 1, H, W) by ITU-R 601, as Pillow does it (torchvision's weights sum to 0.9999)."""
    return torch.einsum("c,nchw->nhw", torch.tensor([0.299, 0.587, 0.114]), batch).unsqueeze(1)


def _check_range(batch: torch.Tensor, first: int) -> None:
    flat = batch.flatten(1)
    usable = torch.isfinite(flat).all(1) & (flat.abs() <= 1 + _TOLERANCE).all(1)
    wrong: Sequence[int] = torch.nonzero(~usable).flatten().tolist()
    if wrong:
        low, high = float(flat[wrong[0]].min()), float(flat[wrong[0]].max())
        raise PadError(
            f"images[{first + wrong[0]}]: values from {low:g} to {high:g}; a tensor must lie in [-1, 1]"
        )
