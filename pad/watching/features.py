"""What the watcher keeps of a picture: its features as bytes and what a generator sees of it, a small JPEG,
and a few numbers that say how light, how colourful and how sharp it is."""

from __future__ import annotations

import contextlib
import io
import math

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from pad.errors import PadError
from pad.showing.pictures import displayable
from pad.views.features import Features, joined_features

THUMBNAIL = 96  # pixels of the longer side
MEASURES = ("light", "red-green", "yellow-blue", "sharpness")  # of a picture; grey ones have no colours
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601


def packed(features: Features, picture: Tensor | None = None) -> bytes:
    """The features of one image; and the image (1, channels, size, size) in [-1, 1] in 8 bits, if there is a
    generator that may have to learn it."""
    named = {f"deep{i}": layer for i, layer in enumerate(features.deep)}
    named |= {"middle": features.middle, "local": features.local, "layers": torch.tensor(features.layers)}
    if picture is not None:
        named["picture"] = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return save({name: tensor.contiguous().clone() for name, tensor in named.items()})


def unpacked(parts: list[bytes]) -> Features:
    """The features of n images as those of one batch. Raises PadError for what `packed` did not make."""
    return joined_features([_one(part) for part in parts])


def _one(part: bytes) -> Features:
    try:
        named = load(part)
        deep = [named[f"deep{i}"] for i in range(sum(name.startswith("deep") for name in named))]
        return Features(deep, named["middle"], named["local"], int(named["layers"]))
    except (SafetensorError, KeyError) as error:
        raise PadError(
            f"the state holds features that cannot be read ({error}); begin with another --state"
        ) from None


def pictures(parts: list[bytes]) -> Tensor | None:
    """The n images that were packed with features, (n, channels, size, size) in [-1, 1]; None where one of
    them is not there, by an older version or without a generator."""
    found = [load(part).get("picture") for part in parts]
    kept = [picture for picture in found if picture is not None]
    return torch.cat(kept).float() / 127.5 - 1 if len(kept) == len(parts) else None


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG; smaller pictures are enlarged by a whole number."""
    small = displayable(image, 4 * THUMBNAIL)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    if (factor := THUMBNAIL // max(small.size)) > 1:
        small = small.resize((small.width * factor, small.height * factor), Image.Resampling.NEAREST)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=80)
    return content.getvalue()


def montage(thumbnails: list[bytes]) -> bytes:
    """A JPEG of small ones, in rows that make it about square; what is no picture leaves its place empty."""
    columns = max(1, math.ceil(math.sqrt(len(thumbnails))))
    rows = max(1, math.ceil(len(thumbnails) / columns))
    sheet = Image.new("RGB", (columns * THUMBNAIL, rows * THUMBNAIL), (128, 128, 128))
    for index, content in enumerate(thumbnails):
        with contextlib.suppress(OSError), Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            row, column = divmod(index, columns)
            left, top = (THUMBNAIL - picture.width) // 2, (THUMBNAIL - picture.height) // 2
            sheet.paste(picture, (column * THUMBNAIL + left, row * THUMBNAIL + top))
    content_of_all = io.BytesIO()
    sheet.save(content_of_all, "JPEG", quality=85)
    return content_of_all.getvalue()


def measures(x: Tensor) -> list[dict[str, float]]:
    """Of images (n, 1 or 3, s, s) in [-1, 1], by the names in MEASURES.

    light: the mean luma, in [0, 1]. red-green, yellow-blue: the mean of R − G and of (R + G)/2 − B, over the
    mean luma, so that lamps that dim do not count as colour. sharpness: log of the mean squared Laplacian of
    the luma over its variance (the usual measure of focus, Pech-Pacheco et al., 2000, with contrast taken
    out).
    """
    x = (x.float() + 1) / 2
    luma = x[:, :1] if x.shape[1] == 1 else torch.einsum("c,nchw->nhw", torch.tensor(_LUMA), x)[:, None]
    light = luma.mean((1, 2, 3))
    laplacian = F.conv2d(luma, torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]]))
    sharpness = (laplacian.square().mean((1, 2, 3)) + 1e-9).log() - (luma.var((1, 2, 3)) + 1e-9).log()
    columns = {"light": light}
    if x.shape[1] == 3:
        red, green, blue = x.mean((2, 3)).unbind(1)
        columns["red-green"] = (red - green) / (light + 0.01)
        columns["yellow-blue"] = ((red + green) / 2 - blue) / (light + 0.01)
    columns["sharpness"] = sharpness
    return [{name: float(column[i]) for name, column in columns.items()} for i in range(len(x))]
