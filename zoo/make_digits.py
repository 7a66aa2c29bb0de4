"""Writes the image folders of the zoo's models of handwritten digits, from those inside scikit-learn's wheel:

    python zoo/make_digits.py digits

Makes `digits/three` and `digits/eight` in the MVTec layout. Three quarters of a digit's images, drawn at
random, are the normal images for training, the rest of them and all images of the other digits are for
testing.

The images: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998, UCI Machine Learning
Repository, CC BY 4.0), 1,797 grey pictures of 8x8 pixels and 17 levels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NORMAL = ("three", "eight")  # a folder each
TRAINING_SHARE = 0.75
LEVELS = 16  # of white; black is 0


def write(images: np.ndarray, folder: Path) -> None:
    """Images (n, 8, 8) in [0, 16] as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(np.round(image * (255 / LEVELS)).astype(np.uint8)).save(folder / f"{index:03d}.png")


def make(name: str, root: Path) -> None:
    """Writes one folder of images, `root`/`name`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    of = {key: digits.images[digits.target == label] for label, key in enumerate(NAMES)}
    normal = np.random.default_rng(0).permutation(of.pop(name))
    split = round(TRAINING_SHARE * len(normal))
    folder = root / name
    write(normal[:split], folder / "train" / "good")
    write(normal[split:], folder / "test" / "good")
    for key, images in of.items():
        write(images, folder / "test" / key)
    print(f"{folder}: {split} normal images to train on, {len(normal) - split} to test")


if __name__ == "__main__":
    for digit in NORMAL:
        make(digit, Path(sys.argv[1] if len(sys.argv) > 1 else "digits"))
