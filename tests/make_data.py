"""Make tests/data: real images, small. Run from the source tree: `python tests/make_data.py`.

Needs Fashion-MNIST (Debian's dataset-fashion-mnist, or the folder of its IDX files as the argument) and
scikit-image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data as photographs

from pad.images.named import FASHION_CLASSES
from pad.images.named import read_idx as read

HERE = Path(__file__).parent / "data"
NORMAL = "ankle-boot"
ANOMALIES = ("sandal", "sneaker", "bag", "shirt", "trouser")
TRAIN, TEST, EACH_ANOMALY = 120, 40, 20  # images


def save_fashion(source: Path, split: str, kind: str, count: int, folder: Path) -> None:
    """The first `count` images of a class, named by their index in the split."""
    images = read(source / f"{split}-images-idx3-ubyte.gz")
    labels = read(source / f"{split}-labels-idx1-ubyte.gz")
    folder.mkdir(parents=True, exist_ok=True)
    for index in np.flatnonzero(labels == FASHION_CLASSES.index(kind))[:count]:
        Image.fromarray(images[index]).save(folder / f"{index:05d}.png", optimize=True)


def save_photographs(folder: Path) -> None:
    """Four photographs in the public domain, made small."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = Image.fromarray(getattr(photographs, name)())
        image.thumbnail((96, 96))
        image.save(folder / f"{name}.png", optimize=True)


def main() -> None:
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
    fashion = HERE / "fashion"
    save_fashion(source, "train", NORMAL, TRAIN, fashion / "train" / NORMAL)
    save_fashion(source, "t10k", NORMAL, TEST, fashion / "test" / "normal")
    for kind in ANOMALIES:
        save_fashion(source, "t10k", kind, EACH_ANOMALY, fashion / "test" / kind)
    save_photographs(HERE / "photographs")


if __name__ == "__main__":
    main()
