"""Why an image was flagged, as pictures: the nearest normal image beside it, and where the two differ.

Everything here works on pictures and arrays; what the model computes comes in as arguments.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from pad.config import Config
from pad.images.geometry import Box, seen_box
from pad.images.imageset import ImageSet
from pad.images.read import read_image
from pad.judging.map_scale import MapScale
from pad.judging.rows import ANOMALY, speaking
from pad.showing.pictures import displayable, to_picture
from pad.store.files import atomic

EXPLAINED_AT_ONCE = 16  # images explained at a time: they are held at their own resolution
LARGEST_SIDE = 2048  # pixels: a longer picture is explained on a reduced copy

_VERDICT_COLOURS = {"anomaly": (179, 38, 30), "normal": (20, 108, 67), "": (84, 90, 97)}


@dataclass(frozen=True)
class Explanation:
    """One image explained.

    input: the image, 8-bit RGB, at its own resolution (W, H), or, where a side is longer than 2048 pixels,
    reduced by the least whole number that brings it down to that. nearest: the nearest normal image (that the
    generator makes or, without one, that the model keeps), (S, S) RGB. anomaly_map: float32 (H, W) >= 0,
    aligned with the pixels of `input`, 0 outside `box`, the part that the model saw. score: higher is more
    anomalous. p_value and verdict as in `scores.csv`; None and "" without a calibration. scale: what the map
    is drawn on. views: the p-value in each view by its name; they say why, and the verdict does not follow
    from them.
    """

    input: Image.Image
    nearest: Image.Image
    anomaly_map: NDArray[np.float32]
    box: Box
    score: float
    p_value: float | None
    verdict: str
    scale: MapScale
    views: Mapping[str, float] = field(default_factory=dict)

    @property
    def seen_by(self) -> tuple[str, ...]:
        """The views in which the image is most unusual, by the smallest p-value; empty of a single view."""
        return speaking(self.views)

    def overlay(self) -> Image.Image:
        """The anomaly map in colour over the grey input, (W, H)."""
        return overlay(self.input, self.anomaly_map, self.scale)

    def annotated(self, label: str = "") -> Image.Image:
        """A copy of the input with verdict, p-value, score and, if given, its label in a bar below."""
        return annotate(self.input, self.score, self.p_value, self.verdict, label, self.seen_by)

    def montage(self) -> Image.Image:
        """Input, nearest normal image and map side by side, with captions."""
        return montage(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the montage."""
        return html_picture(self.montage(), ", ".join(_said(self.score, self.p_value, self.verdict, ())))

    def pictures(self, label: str = "") -> dict[str, Image.Image]:
        """`montage`, `overlay` and `annotated`, by name."""
        return {"montage": self.montage(), "overlay": self.overlay(), "annotated": self.annotated(label)}


def make_explanation(
    image: Image.Image,
    nearest: Image.Image | ArrayLike,
    anomaly_map: ArrayLike,
    config: Config,
    score: float,
    p_value: float | None = None,
    verdict: str = "",
    scale: MapScale | None = None,
    views: Mapping[str, float] | None = None,
) -> Explanation:
    """An Explanation from what the model gives for one image.

    image: as read from its file, any mode. nearest: the reconstruction, (C, S, S) in [-1, 1], C 1 or 3, or
    the picture of it.
    anomaly_map: (S, S), >= 0. config: of the model, for its crop and fit. scale: None draws the map on its
    own range, which compares with no other image. views: the p-value in each view.
    """
    shown = displayable(image, LARGEST_SIDE)
    box = box_on(seen_box(image.width, image.height, config.crop, config.fit), image.size, shown.size)
    small = np.asarray(anomaly_map, dtype=np.float32)
    scale = scale or MapScale(0.0, max(float(small.max()), 1e-6))
    aligned = align_map(small, shown.size, box)
    picture = nearest if isinstance(nearest, Image.Image) else to_picture(nearest)
    return Explanation(shown, picture, aligned, box, score, p_value, verdict, scale, views or {})


def pictures_of(images: Any) -> Iterator[tuple[Image.Image, Any]]:
    """Each image as a picture, and as it goes into the model; opened one by one."""
    if isinstance(images, ImageSet):
        images = map(images.open, range(len(images)))
    elif isinstance(images, str | Path | Image.Image) or not hasattr(images, "__iter__"):
        images = [images]
    for image in images:
        if isinstance(image, np.ndarray) and image.dtype.kind == "f":
            image = torch.from_numpy(image)
        if hasattr(image, "detach"):  # a float tensor (C, H, W) in [-1, 1]
            yield to_picture(image.detach().cpu()), image
            continue
        if isinstance(image, str | Path):
            image = read_image(image)
        elif not isinstance(image, Image.Image):
            pixels = np.asarray(image)
            image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
        yield image, image


def box_on(box: Box, size: tuple[int, int], reduced: tuple[int, int]) -> Box:
    """`box` of a picture of `size` (W, H) on a copy of it of size `reduced`; at least one pixel."""
    if size == reduced:
        return box
    edges = [round(edge * reduced[i % 2] / size[i % 2]) for i, edge in enumerate(box)]
    left, top = min(edges[0], reduced[0] - 1), min(edges[1], reduced[1] - 1)
    return left, top, max(edges[2], left + 1), max(edges[3], top + 1)


def align_map(anomaly_map: NDArray[np.float32], size: tuple[int, int], box: Box) -> NDArray[np.float32]:
    """A map (S, S) of the part `box` of a picture of `size` (W, H), as float32 (H, W) on that picture's
    own pixels: bilinear inside the box, 0 outside."""
    left, top, right, bottom = box
    aligned = np.zeros((size[1], size[0]), np.float32)
    if right > left and bottom > top:
        resized = Image.fromarray(anomaly_map).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
        aligned[top:bottom, left:right] = np.asarray(resized)
    return aligned


def overlay(image: Image.Image, anomaly_map: NDArray[np.float32], scale: MapScale) -> Image.Image:
    """The map (H, W), on `scale`, in colour over a dimmed grey copy of `image` (W, H): dark violet just
    above the scale's low end, through red, to bright yellow at its high end."""
    strength = np.clip((anomaly_map - scale.low) / (scale.high - scale.low), 0, 1)
    colours, opacity = _colour_table()
    index = (strength * 255 + 0.5).astype(np.uint8)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] * 0.8 + 20
    alpha = opacity[index][..., None]
    return Image.fromarray((grey * (1 - alpha) + colours[index] * alpha + 0.5).astype(np.uint8))


@functools.cache
def _colour_table() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colours (256, 3) in 0..255 and opacities (256,) in 0..0.9, over the scale."""
    from matplotlib import colormaps

    steps = np.linspace(0, 1, 256)
    colours = colormaps["inferno"](0.3 + 0.65 * steps)[:, :3] * 255
    return colours.astype(np.float32), (0.9 * steps**0.6).astype(np.float32)


def colour_bar(steps: int = 32) -> list[str]:
    """What `overlay` makes of a mid-grey picture, from the low end of the scale to its high end: colours of
    the form `#rrggbb`."""
    ramp = np.linspace(0, 1, steps, dtype=np.float32)[None]
    grey = Image.new("RGB", (steps, 1), (128, 128, 128))
    drawn = np.asarray(overlay(grey, ramp, MapScale(0.0, 1.0)))[0]
    return ["#" + colour.tobytes().hex() for colour in drawn]


def panels(
    image: Image.Image,
    nearest: Image.Image,
    anomaly_map: NDArray[np.float32],
    box: Box,
    scale: MapScale,
    side: int,
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Input, nearest normal image and map as three RGB pictures of one size, the longer side `side`.

    image: RGB. nearest, anomaly_map: (S, S), of the part `box` of the image; outside it, the second
    picture shows the input faded, the third in grey.
    """
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    shown = image if size == image.size else _resized(image, size)
    left, right = (min(size[0], round(x * size[0] / image.width)) for x in (box[0], box[2]))
    top, bottom = (min(size[1], round(y * size[1] / image.height)) for y in (box[1], box[3]))
    small = (min(left, size[0] - 1), min(top, size[1] - 1), max(right, left + 1), max(bottom, top + 1))
    beside = Image.blend(shown, Image.new("RGB", size, (128, 128, 128)), 0.75)
    inside = (small[2] - small[0], small[3] - small[1])
    if max(image.size) <= 2 * max(nearest.size):  # both coarse: show both as they are
        beside.paste(_resized(nearest, inside), small[:2])
    else:
        beside.paste(nearest.resize(inside, Image.Resampling.BICUBIC), small[:2])
    return shown, beside, overlay(shown, align_map(anomaly_map, size, small), scale)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Smooth when made smaller; when made larger, pixels stay visible as squares."""
    smaller = size[0] <= image.width or size[1] <= image.height
    return image.resize(size, Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST)


def annotate(
    image: Image.Image,
    score: float,
    p_value: float | None,
    verdict: str,
    label: str = "",
    seen_by: Sequence[str] = (),
) -> Image.Image:
    """A copy of `image` (RGB) with a coloured bar below that names verdict, p-value, score, the views that an
    anomaly is seen by, and label.

    No pixel of the image is covered; one with sides below 256 pixels is enlarged first.
    """
    shown = _enlarged(image, 256)
    lines = _said(score, p_value, verdict, seen_by)
    if label:
        lines.append(f"labelled {_one_line(label)}")
    size = max(12, min(shown.width // 18, 48))
    bar = _text_bar(lines, max(shown.width, 240), size, _VERDICT_COLOURS.get(verdict, _VERDICT_COLOURS[""]))
    page = Image.new("RGB", (bar.width, shown.height + bar.height), (255, 255, 255))
    page.paste(shown, ((bar.width - shown.width) // 2, 0))
    page.paste(bar, (0, shown.height))
    return page


def montage(explanation: Explanation, side: int = 512) -> Image.Image:
    """Input, nearest normal image and map side by side, each at most `side` pixels, with captions and a
    bar that names verdict, p-value and score."""
    image, box = explanation.input, explanation.box
    inside = explanation.anomaly_map[box[1] : box[3], box[0] : box[2]]
    side = min(side, max(256, *image.size))
    pictures = panels(image, explanation.nearest, inside, box, explanation.scale, side)
    width, height = pictures[0].size
    gap, caption = 8, 26
    bar = _text_bar(
        _said(explanation.score, explanation.p_value, explanation.verdict, explanation.seen_by),
        max(3 * width + 2 * gap, 480), 18, _VERDICT_COLOURS.get(explanation.verdict, _VERDICT_COLOURS[""]),
    )  # fmt: skip
    page = Image.new("RGB", (bar.width, caption + height + gap + bar.height), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    for i, (picture, name) in enumerate(
        zip(pictures, ("input", "nearest normal", "anomaly map"), strict=True)
    ):
        left = i * (width + gap)
        draw.text((left + 2, 4), name, fill=(40, 44, 48), font=_font(15))
        page.paste(picture, (left, caption))
    page.paste(bar, (0, caption + height + gap))
    return page


def html_picture(picture: Image.Image, text: str) -> str:
    """An `img` element that holds the picture itself; `text` says what it shows."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(text)}" style="max-width:100%" src="data:image/png;base64,{content}">'


def write_pictures(pictures: Mapping[str, Image.Image], folder: Path, index: int, path: str) -> Path:
    """Writes the `pictures()` of one explanation into `folder` as PNG; returns the montage's path.

    They are named after the row of the image in `scores.csv` (`index`, from 1) and its file name, so that
    images of one name do not collide. Raises PadError where a file cannot be written.
    """
    stem = f"{index:06d}-{safe_name(path)}"
    for name, picture in pictures.items():
        with atomic(folder / f"{stem}.{name}.png") as file:
            picture.save(file, "PNG")
    return folder / f"{stem}.montage.png"


def safe_name(path: str) -> str:
    """The file name of `path` without its ending, in characters that every file system takes."""
    name = re.split(r"[/\\]", path)[-1].rsplit(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:60] or "image"


def _enlarged(image: Image.Image, side: int) -> Image.Image:
    """`image`, enlarged by a whole number if its longer side is below `side`."""
    factor = math.ceil(side / max(image.size))
    size = (image.width * factor, image.height * factor)
    return image if factor == 1 else image.resize(size, Image.Resampling.NEAREST)


def _said(score: float, p_value: float | None, verdict: str, seen_by: Sequence[str]) -> list[str]:
    lines = [verdict.upper() or "NO VERDICT", _numbers(score, p_value)]
    return [*lines, f"seen by {', '.join(seen_by)}"] if verdict == ANOMALY and seen_by else lines


def _numbers(score: float, p_value: float | None) -> str:
    return f"score {score:.4g}" if p_value is None else f"p-value {p_value:.3g}   score {score:.4g}"


def _one_line(text: str, limit: int = 40) -> str:
    safe = "".join(c if c.isprintable() else "?" for c in text)
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


def _text_bar(lines: Sequence[str], width: int, size: int, colour: tuple[int, int, int]) -> Image.Image:
    """Lines of white text on `colour`; text that is too wide for `width` is set smaller."""
    widest = max(_font(size).getlength(line) for line in lines)
    size = max(8, min(size, int(size * (width - size) / widest)))
    step = round(size * 1.35)
    bar = Image.new("RGB", (width, step * len(lines) + size // 2), colour)
    draw = ImageDraw.Draw(bar)
    for i, line in enumerate(lines):
        draw.text((size // 2, size // 4 + i * step), line, fill=(255, 255, 255), font=_font(size))
    return bar


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
