"""Whether anomaly maps point at the defect: synthetic ones pasted onto normal images at known places.

    python benchmarks/defects.py MODEL fashion-mnist:9 [--data-root DIR] [--images 100] [--side 0.25]

Each defect is a square patch at a random place, of one of three kinds: noise, a checkerboard, or the
image's own pixels inverted. A map hits if its highest point, at the input's own resolution, lies inside.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

import pad
from pad.images.geometry import seen_box
from pad.images.resolve import resolve
from pad.showing.explanation import displayable

KINDS = ("noise", "checkerboard", "inverted")


def paste(
    image: Image.Image, kind: str, box: tuple[int, int, int, int], rng: np.random.Generator
) -> Image.Image:
    """A copy of `image` (RGB) with a defect at `box`."""
    left, top, right, bottom = box
    pixels = np.array(image)
    patch = pixels[top:bottom, left:right]
    if kind == "noise":
        patch[:] = rng.integers(0, 256, (*patch.shape[:2], 1))
    elif kind == "checkerboard":
        step = max(1, (right - left) // 4)
        rows, columns = np.indices(patch.shape[:2]) // step
        patch[:] = (255 * ((rows + columns) % 2))[..., None]
    else:
        patch[:] = 255 - patch
    return Image.fromarray(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--data-root")
    parser.add_argument("--images", type=int, default=100, help="of each kind of defect")
    parser.add_argument(
        "--side", type=float, default=0.25, help="of the patch, as a share of the image's side"
    )
    args = parser.parse_args()

    detector = pad.load(args.model)
    config = detector.config
    images = resolve(args.data, "evaluate", args.data_root).normal_only()
    rng = np.random.default_rng(0)
    for kind in KINDS:
        hits, before, after = 0, [], []
        for index in rng.choice(len(images), args.images, replace=args.images > len(images)):
            image = displayable(images.open(int(index)))
            left, top, right, bottom = seen_box(*image.size, config.crop, config.fit)
            side = max(2, round(args.side * min(right - left, bottom - top)))
            x, y = int(rng.integers(left, right - side + 1)), int(rng.integers(top, bottom - side + 1))
            defective = paste(image, kind, (x, y, x + side, y + side), rng)
            plain, found = detector.explain([image, defective])
            row, column = np.unravel_index(found.anomaly_map.argmax(), found.anomaly_map.shape)
            hits += x <= column < x + side and y <= row < y + side
            before.append(plain.score)
            after.append(found.score)
        rise = np.mean(np.array(after) > np.array(before))
        print(
            f"{kind:13} the map peaks inside in {hits} of {args.images}; the score rises in {rise:.0%}, "
            f"on average from {np.mean(before):.3f} to {np.mean(after):.3f}"
        )


if __name__ == "__main__":
    main()
