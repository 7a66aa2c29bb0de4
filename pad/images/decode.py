"""Images in, tensors out: every file format and pixel mode becomes float32 (channels, size, size) in [-1, 1].

What is decided here, so that training and scoring see a picture the same way:

- Of an animation or a multi-page file, the first frame. EXIF orientation is applied.
- Transparent pixels are composited over white, as viewers and printers show them.
- 16-bit grey keeps its depth and is divided by 65535. Pillow has no 16-bit colour, so that is read at 8 bits.
- Float pixels are taken as 0..1, or 0..255, or 0..65535: the smallest of these that holds the picture.
- `config.crop`: a centre crop of that side in pixels of the source (or the whole side where it is shorter).
  `config.fit`: then the largest centred square ("crop"), or the whole picture ("stretch"), resized
  with antialiasing to `config.input_side`. Cropping comes first, so that a panorama costs no more than its
  centre.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional

from pad.config import Config
from pad.errors import PadError, one_line, printable
from pad.images.geometry import seen_box

Given = Image.Image | np.ndarray | torch.Tensor  # an image that is opened
Seen = TypeVar("Seen")

# The decoders that may run on a user's files; Pillow's others (EPS, which starts Ghostscript, for one) may
# not.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_SMALL_FILE = 1 << 20  # bytes, read in one go
MOST_SIDE = 1 << 16  # pixels of a picture's longer side
# What no file holds: the best compression there is (fax, of a blank page) comes to some 80,000 pixels a byte.
# It only matters for pictures of more than _FEW_PIXELS; below that a mistake in a file costs nothing.
_MOST_PIXELS_A_BYTE, _FEW_PIXELS = 1 << 17, 1 << 22
_MOST_TILE = 1 << 10  # side of a TIFF's tile that may be larger than the picture
_BAND = 1 << 22  # pixels of a large picture that are converted at a time
_TOLERANCE = 1e-3  # by which a float tensor may leave [-1, 1], for the rounding of whoever made it


class ImageError(PadError):
    """One image that cannot be used. `reason` is the message without the name of the image."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = printable(reason)


def read_image(source: str | os.PathLike[str] | bytes, name: str = "") -> Image.Image:
    """The first frame of an image file (or of a file's bytes), upright by its EXIF orientation.

    The mode is the file's own: grey 16-bit stays "I;16" or "I", float stays "F". `name` stands for the source
    in error messages. Raises ImageError for a file that is missing, not readable, empty, truncated, not an
    image of a supported format, or one that `too_large` refuses.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), len(source), name or "image")
    name = name or os.fspath(source)
    try:
        path = source if isinstance(source, Path) else Path(source)
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(name, "a folder, not an image")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
            raise ImageError(name, "not a regular file")
        with path.open("rb", buffering=0) as file:
            if status.st_size <= _SMALL_FILE:  # Pillow reads in many small bites
                return _decode(io.BytesIO(file.read()), status.st_size, name)
            return _decode(io.BufferedReader(file), status.st_size, name)
    except FileNotFoundError:
        raise ImageError(name, "no such file") from None
    except PermissionError:
        raise ImageError(name, "permission denied") from None
    except (OSError, ValueError) as error:
        raise ImageError(name, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _decode(file: IO[bytes], size: int, name: str) -> Image.Image:
    if size == 0:
        raise ImageError(name, "the file is empty")
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            if reason := too_large(image, size):
                raise ImageError(name, reason)
            image.load()
            if (
                image.mode == "P" and image.palette is None
            ):  # Pillow fails on it later, and only here and there
                raise ImageError(name, "the file is damaged (no palette)")
            return _upright(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(name, _over_the_limit()) from None
    except UnidentifiedImageError:
        raise ImageError(name, "not an image of a supported format") from None
    except MemoryError:
        raise ImageError(name, "too large for the memory") from None
    except Exception as error:  # decoders fail in many ways on broken bytes; all of them are the file's fault
        text = one_line(str(error)) or type(error).__name__
        short = "truncated" if "truncated" in text.lower() else f"damaged ({text})"
        raise ImageError(name, f"the file is {short}") from None


def too_large(image: Image.Image, size: int) -> str:
    """Why a picture that is opened and not yet decoded is refused, or "".

    A few bytes may ask for all the memory there is, so it is looked at before any is taken: the number of
    pixels (Pillow's limit against decompression bombs, `Image.MAX_IMAGE_PIXELS`), the longer side (65,536),
    whether a file of `size` bytes can hold so many pixels, and the tiles of a TIFF, each of which is decoded
    whole, however small the picture is.
    """
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        return _over_the_limit()
    if max(width, height) > MOST_SIDE:
        return f"too large: {width:,}x{height:,} pixels, at most {MOST_SIDE:,} on a side"
    if width * height > max(_FEW_PIXELS, size * _MOST_PIXELS_A_BYTE):
        return f"damaged: a file of {size:,} bytes cannot hold {width:,}x{height:,} pixels"
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    for tag, side in ((322, width), (323, height)):
        tile = tags.get(tag, 0)
        if not isinstance(tile, int) or tile > max(_MOST_TILE, 2 * side):
            return f"damaged: tiles of {tile} pixels for a picture of {width:,}x{height:,}"
    return ""


def _over_the_limit() -> str:
    limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
    return f"too large (a decompression bomb?): over {limit} million pixels"


def _upright(image: Image.Image) -> Image.Image:
    if not image.info and image.format in ("PNG", "BMP", "PPM"):
        return image  # nothing beside the pixels, so no orientation
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that cannot be parsed says nothing about the orientation; the pixels are good
        return image.copy()


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
    return _planes(_crop(image, config), config.channels)


def scaled(pixels: torch.Tensor, white: float, config: Config) -> torch.Tensor:
    """The second half of `to_tensor`, for one image or several of the same size: (..., channels, H, W) to
    float32 (..., channels, size, size) in [-1, 1]."""
    return (_resize(pixels, config.input_side).to(torch.float32) * (2.0 / white) - 1.0).clamp_(-1.0, 1.0)


def from_array(array: np.ndarray) -> Image.Image:
    """A uint8 array (H, W) or (H, W, 1, 3 or 4) as a picture. Raises ImageError for anything else."""
    if array.dtype != np.uint8:
        raise ImageError("", f"an image array must be uint8, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ImageError("", f"an image array must be (H, W) or (H, W, 1, 3 or 4), not {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _crop(image: Image.Image, config: Config) -> Image.Image:
    box = seen_box(*image.size, config.crop, config.fit)
    return image if box == (0, 0, *image.size) else image.crop(box)


def _planes(image: Image.Image, channels: int) -> tuple[torch.Tensor, float]:
    """Pixels as (channels, H, W), uint8 or float32, and the value that means white."""
    if image.mode in DEEP_MODES:
        values, white = _deep(image)
        return values.expand(channels, -1, -1), white
    mode = "L" if channels == 1 else "RGB"
    rows = max(1, _BAND // image.width)
    if image.height <= rows:
        pixels = _pixels(image, mode)
    else:  # in bands: of transparent pictures there are several copies on the way
        pixels = np.empty((image.height, image.width, 3)[: 3 if channels == 3 else 2], np.uint8)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            pixels[top:bottom] = _pixels(image.crop((0, top, image.width, bottom)), mode)
    planes = torch.from_numpy(pixels)
    return (planes[None] if channels == 1 else planes.permute(2, 0, 1)), 255.0


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
    """The 8-bit pixels of a picture in "L", (H, W), or "RGB", (H, W, 3), transparent ones over white."""
    image = opaque(image)
    return np.array(image if image.mode == mode else image.convert(mode))


def _deep(image: Image.Image) -> tuple[torch.Tensor, float]:
    """A 16-bit, 32-bit or float picture as float32 (1, H, W), and the value that means white."""
    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("", "pixel values that are not finite numbers")
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((scale for scale in scales if high <= scale), None)
    if low < 0 or white is None:
        raise ImageError("", f"pixel values from {low:g} to {high:g} have no known scale; save it as 16-bit")
    return torch.from_numpy(values)[None], white


def opaque(image: Image.Image) -> Image.Image:
    """The picture over white where it has an alpha channel or a transparent colour, else as it is."""
    if image.mode == "LAB":  # Pillow converts it to RGB only
        return image.convert("RGB")
    if not image.has_transparency_data:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    front = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), front).convert("RGB")


def _resize(planes: torch.Tensor, size: int) -> torch.Tensor:
    """(..., H, W) to (..., size, size), bilinear with antialiasing; the type stays.

    The same as torchvision's `resize`, without importing it: that takes longer than scoring an image.
    """
    if planes.shape[-2:] == (size, size):
        return planes
    batch = planes.reshape(-1, 1, *planes.shape[-2:])
    if len(batch) > 1 and batch[0].numel() > _BAND:  # one by one: as float they take four times the memory
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
