"""How long a report of many images takes, and how large it is:

    python benchmarks/report.py [--images 10000] [--size 64] [--idx FILE] [--out report.html]

The pictures are textures made here, or, with `--idx`, those of an IDX file such as Fashion-MNIST's
`t10k-images-idx3-ubyte.gz`. Scores, nearest images, maps and latents are made up: what they are does not
change the work. Textures with noise at `--size 64` and above are harder to compress than photographs.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from pad.config import Config
from pad.judging.calibration import Calibration
from pad.judging.map_scale import MapScale
from pad.judging.summary import make_row, summarize
from pad.showing.report import ReportWriter


def pictures(args: argparse.Namespace) -> np.ndarray:
    """uint8 (n, H, W[, 3])."""
    if args.idx:
        with gzip.open(args.idx) as file:
            return np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    rng = np.random.default_rng(0)
    base = gaussian_filter(rng.normal(size=(200, args.size, args.size, 3)), (0, 2, 2, 0.5)) * 500 + 128
    return np.clip(base + rng.normal(0, 8, base.shape), 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=64, help="side of the made-up pictures, in pixels")
    parser.add_argument("--idx", type=Path, help="an IDX file of grey 28x28 pictures")
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    args = parser.parse_args()

    rng = np.random.default_rng(1)
    source = pictures(args)
    side = 32 if args.idx else 64
    calibration = Calibration(rng.gamma(20, 0.05, 1000))
    kinds = ["scratch", "hole", "stain", "bent"]
    rows = []
    start = time.perf_counter()
    with ReportWriter(
        args.out,
        calibration=calibration,
        fpr=0.05,
        config=Config(size=side),
        scale=MapScale(0.5, 3.0),
        model="benchmark",
        card={"recipe": {"size": side, "steps": 1500}, "data": {"images": 6000}},
        command="python benchmarks/report.py",
    ) as report:
        for i in range(args.images):
            anomalous = i % 5 == 0
            kind = kinds[i // 5 % 4] if anomalous else "good"
            score = float(rng.gamma(20, 0.05) * (1.6 if anomalous else 1))
            row = make_row(f"images/{kind}/{i:05d}.png", score, calibration, 0.05, "", anomalous, kind)
            image = Image.fromarray(source[i % len(source)])
            seen = np.asarray(image.resize((side, side)).convert("RGB"), np.float32)
            nearest = np.moveaxis(gaussian_filter(seen, (1, 1, 0)), 2, 0) / 127.5 - 1
            anomaly_map = np.abs(seen - 128).mean(axis=2) / 64 * (2 if anomalous else 0.5)
            latent = rng.normal(size=64) + (2 * kinds.index(kind) if anomalous else 0)
            report.add(row, image, nearest, anomaly_map, latent)
            rows.append(row)
        added = time.perf_counter() - start
        summary = summarize(rows, calibration, 0.05)
        report.finish(summary)
    seconds = time.perf_counter() - start
    megabytes = args.out.stat().st_size / 1e6
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"{args.images} images: {seconds:.1f} s ({added:.1f} s adding them), {megabytes:.1f} MB, "
        f"peak memory {memory:.0f} MB"
    )


if __name__ == "__main__":
    main()
