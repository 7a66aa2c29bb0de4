"""Cuts the image folders of the zoo's surfaces from grey photographs inside scikit-image's wheel:

    pip install scikit-image
    python zoo/make_surfaces.py surfaces

Makes `surfaces/gravel`, `surfaces/grass` and `surfaces/brick` in the MVTec layout. A photograph of 512x512
pixels is cut into 64 square cells that do not overlap; three quarters of them, drawn at random, are the
normal images for training, the rest are for testing, so no pixel is in both. Anomalies are cells of the
other two surfaces; `pasted`, test cells with a small square of another photograph pasted in; and
`scratched`, test cells with a bright line two pixels wide. The places of these two are in `ground_truth`.

The photographs, all CC0: gravel (CC0Textures, Gravel04), brick (CC0Textures, Bricks25), grass (linolafett,
Grass 01); squares are pasted from coffee (Rachel Michetti) and chelsea (Stefan van der Walt).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from make_patches import paste, write
from PIL import Image, ImageDraw

SURFACES = ("gravel", "grass", "brick")
STRANGERS = ("coffee", "chelsea")  # photographs that squares are pasted from
SIDE = 64  # of a cell, in pixels
TRAINING_SHARE = 0.75
SCRATCH = 24, 2, 235  # length and width in pixels, grey


def cells(name: str, rng: np.random.Generator) -> list[np.ndarray]:
    """All cells of a photograph, grey, uint8 (side, side), in random order."""
    from skimage import data

    photograph = np.asarray(Image.fromarray(getattr(data, name)()).convert("L"))
    rows, columns = (length // SIDE for length in photograph.shape)
    cut = [
        photograph[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE]
        for y in range(rows)
        for x in range(columns)
    ]
    return [cut[i] for i in rng.permutation(len(cut))]


def scratch(cell: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`cell` with a bright line at a random place and angle; and the mask of it."""
    length, width, grey = SCRATCH
    angle, centre = rng.uniform(0, np.pi), rng.uniform(length / 2, SIDE - length / 2, 2)
    half = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    line = [*(centre - half), *(centre + half)]
    picture, mask = Image.fromarray(cell), Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(picture).line(line, fill=grey, width=width)
    ImageDraw.Draw(mask).line(line, fill=255, width=width)
    return np.asarray(picture), np.asarray(mask)


def make(name: str, root: Path) -> None:
    """Writes one folder of images, `root`/`name`."""
    rng = np.random.default_rng(0)
    normal = cells(name, rng)
    split = round(TRAINING_SHARE * len(normal))
    training, held_out = normal[:split], normal[split:]
    folder = root / name
    write(training, folder / "train" / "good")
    write(held_out, folder / "test" / "good")
    for other in SURFACES:
        if other != name:
            write(cells(other, rng)[: len(held_out)], folder / "test" / other)
    strangers = [cell for stranger in STRANGERS for cell in cells(stranger, rng)[: len(held_out) // 2]]
    defects = {
        "pasted": [paste(cell, stranger, rng) for cell, stranger in zip(held_out, strangers, strict=True)],
        "scratched": [scratch(cell, rng) for cell in held_out],
    }
    for kind, pairs in defects.items():
        write([image for image, _ in pairs], folder / "test" / kind)
        write([mask for _, mask in pairs], folder / "ground_truth" / kind, "_mask")
    print(f"{folder}: {len(training)} normal images to train on, {len(held_out)} to test")


if __name__ == "__main__":
    for surface in SURFACES:
        make(surface, Path(sys.argv[1] if len(sys.argv) > 1 else "surfaces"))
