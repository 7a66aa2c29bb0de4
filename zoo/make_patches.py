"""Cuts the image folders of the zoo's two colour models from photographs inside scikit-image's wheel:

    pip install scikit-image
    python zoo/make_patches.py patches

Makes `patches/hubble` and `patches/retina` in the MVTec layout. A photograph is cut into square cells that do
not overlap; three quarters of them, drawn at random, are the normal images for training, the rest are
for testing, so no pixel is in both. Anomalies are cells of other photographs, and `pasted`: test cells with
a small square of another photograph pasted in, whose place is in `ground_truth`.

The photographs: hubble_deep_field (NASA, public domain), retina (Mikael Häggström, CC0), astronaut (NASA,
public domain), chelsea (Stefan van der Walt, CC0), coffee (Rachel Michetti, CC0).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

CELLS = {"hubble": 48, "retina": 64}  # photograph: side of its cells, in pixels
PHOTOGRAPHS = {
    "hubble": "hubble_deep_field",
    "retina": "retina",
    "astronaut": "astronaut",
    "chelsea": "chelsea",
    "coffee": "coffee",
}
NORMAL, OTHERS = 400, 30  # cells at most: of the photograph that is normal, of each other one
TRAINING_SHARE = 0.75
BLACK = 24  # 0 to 255: a cell with a pixel darker than this lies on the rim of the retina


def cells(name: str, side: int, rng: np.random.Generator) -> list[np.ndarray]:
    """All cells of a photograph, uint8 (side, side, 3), in random order."""
    from skimage import data

    photograph = getattr(data, PHOTOGRAPHS[name])()
    height, width = photograph.shape[:2]
    corners = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    cut = [photograph[y : y + side, x : x + side] for y, x in corners]
    if name == "retina":
        cut = [cell for cell in cut if cell.max(2).min() >= BLACK]
    return [cut[i] for i in rng.permutation(len(cut))]


def paste(cell: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`cell` with a square of `other`, a quarter of its side, at a random place; and the mask of it."""
    side = len(cell)
    square = side // 4
    y, x = rng.integers(0, side - square, 2)
    pasted, mask = cell.copy(), np.zeros((side, side), np.uint8)
    pasted[y : y + square, x : x + square] = other[y : y + square, x : x + square]
    mask[y : y + square, x : x + square] = 255
    return pasted, mask


def write(images: list[np.ndarray], folder: Path, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:03d}{suffix}.png")


def make(name: str, root: Path) -> None:
    """Writes one folder of images, `root`/`name`."""
    rng = np.random.default_rng(0)
    normal = cells(name, CELLS[name], rng)[:NORMAL]
    split = round(TRAINING_SHARE * len(normal))
    training, held_out = normal[:split], normal[split:]
    others = {key: cells(key, CELLS[name], rng)[:OTHERS] for key in PHOTOGRAPHS if key != name}
    folder = root / name
    write(training, folder / "train" / "good")
    write(held_out, folder / "test" / "good")
    for key, images in others.items():
        write(images, folder / "test" / key)
    strangers = [image for images in zip(*others.values(), strict=False) for image in images]
    pairs = [paste(a, b, rng) for a, b in zip(held_out[:OTHERS], strangers, strict=False)]
    write([image for image, _ in pairs], folder / "test" / "pasted")
    write([mask for _, mask in pairs], folder / "ground_truth" / "pasted", "_mask")
    print(f"{folder}: {len(training)} normal images to train on, {len(held_out)} to test")


if __name__ == "__main__":
    for photograph in CELLS:
        make(photograph, Path(sys.argv[1] if len(sys.argv) > 1 else "patches"))
