"""Files in, pixels out: every format and pixel mode that is read becomes 8-bit or float pixels.

What is decided here, so that training and scoring see a picture the same way, with torch or without:

- Of an animation or a multi-page file, the first frame. EXIF orientation is applied.
- Transparent pixels are composited over white, as viewers and printers show them.
- 16-bit grey keeps its depth and is divided by 65535. Pillow has no 16-bit colour, so that is read at 8 bits.
- Float pixels are taken as 0..1, or 0..255, or 0..65535: the smallest of these that holds the picture.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pad.errors import PadError, one_line, printable

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
BAND = 1 << 22  # pixels of a large picture that are converted at a time


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


# Pixels --------------------------------------------------------------------------------------------


def from_array(array: np.ndarray) -> Image.Image:
    """A uint8 array (H, W) or (H, W, 1, 3 or 4) as a picture. Raises ImageError for anything else."""
    if array.dtype != np.uint8:
        raise ImageError("", f"an image array must be uint8, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ImageError("", f"an image array must be (H, W) or (H, W, 1, 3 or 4), not {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def pixels_of(image: Image.Image, channels: int) -> tuple[np.ndarray, float]:
    """The pixels of a picture, uint8 (H, W) or, of `channels` 3, (H, W, 3), and the value that means white;
    of a picture of more than 8 bits float32 (H, W). Raises ImageError for values with no known scale."""
    if image.mode in DEEP_MODES:
        return _deep(image)
    mode = "L" if channels == 1 else "RGB"
    rows = max(1, BAND // image.width)
    if image.height <= rows:
        pixels = _pixels(image, mode)
    else:  # in bands: of transparent pictures there are several copies on the way
        pixels = np.empty((image.height, image.width, 3)[: 3 if channels == 3 else 2], np.uint8)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            pixels[top:bottom] = _pixels(image.crop((0, top, image.width, bottom)), mode)
    return pixels, 255.0


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
    """The 8-bit pixels of a picture in "L", (H, W), or "RGB", (H, W, 3), transparent ones over white."""
    image = opaque(image)
    return np.array(image if image.mode == mode else image.convert(mode))


def _deep(image: Image.Image) -> tuple[np.ndarray, float]:
    """A 16-bit, 32-bit or float picture as float32 (H, W), and the value that means white."""
    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("", "pixel values that are not finite numbers")
    scales = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((scale for scale in scales if high <= scale), None)
    if low < 0 or white is None:
        raise ImageError("", f"pixel values from {low:g} to {high:g} have no known scale; save it as 16-bit")
    return values, white


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
