"""What the critics earn: how near to normal images are those that the generator makes.

    python benchmarks/samples.py --ablation ablation [--rows default no-critics] [--classes 0 3] [--seeds 0]
        [--markdown FILE]

Of runs of `benchmarks/ablation.py`: the Fréchet distance (Heusel et al., arXiv:1706.08500, with features of
the backbone in place of Inception's) between normal images that were never trained on and as many images
G(z) of the prior, z ~ N(0, I); and the same for G(E(x)) of anomalies, which are shown as their nearest normal
images. The first line is the distance of training images, which is how near one can come.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from baselines import pooled_features
from finished_rows import argument_parser, detector_of, report, task_of
from jobs import exit_status
from numpy.typing import NDArray
from protocol import Task
from torch import Tensor

from pad.detector import Detector
from pad.images.stream import load_all
from pad.learning.replay import generate
from pad.recipes import build_config

ROWS = ["default", "no-critics", "no-image-critic", "no-latent-critic"]


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", nargs="+", default=ROWS, metavar="NAME", help="as its folders spell them")
    return parser.parse_args()


def features(images: Tensor) -> NDArray[np.float64]:
    """relu3_3 averaged over all places: images (n, c, h, w) in [-1, 1] -> (n, 256)."""
    quarters = pooled_features(images.float().numpy())  # over a 2x2 grid
    return quarters.reshape(len(images), 256, 4).mean(2).astype(np.float64)


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of the means and covariances of (n, values) each."""
    from scipy.linalg import eigvals

    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    # The trace of a root is the sum of the roots of the eigenvalues, which are real and not negative.
    roots = np.sqrt(np.clip(eigvals(covariances[0] @ covariances[1]).real, 0, None))
    means = np.square(a.mean(0) - b.mean(0)).sum()
    return float(means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum())


def distances(task: Task, detector: Detector, held_out: NDArray[np.float64], n: int) -> tuple[float, float]:
    """Of images of the prior, and of the nearest images of anomalies."""
    config = detector.config
    random = torch.Generator().manual_seed(0)
    r = config.latent_resolution
    of_prior = generate(detector, torch.randn(n, config.latent_dim, r, r, generator=random))
    anomalies = task.test.subset(np.flatnonzero(task.labels()).tolist())
    nearest = torch.cat([detector.reconstruct(x) for x in load_all(anomalies, config)[0].split(64)])
    return frechet_distance(held_out, features(of_prior)), frechet_distance(held_out, features(nearest))


def run(arguments: argparse.Namespace) -> None:
    found: dict[str, list[tuple[float, float]]] = {}
    floor = []
    for label in arguments.classes:
        task = task_of(arguments, label)
        normal = task.test.subset(np.flatnonzero(~task.labels()).tolist())
        config = build_config(None, {}, task.train)
        held_out = features(load_all(normal, config)[0])
        training = task.train.subset(range(min(len(normal), len(task.train))))
        floor.append(frechet_distance(held_out, features(load_all(training, config)[0])))
        for row in arguments.rows:
            for seed in arguments.seeds:
                detector = detector_of(arguments, row, label, seed)
                found.setdefault(row, []).append(distances(task, detector, held_out, len(normal)))
    header = ["Fréchet distance to normal images", "G(z), z of the prior", "G(E(x)), x an anomaly"]
    rows = [["training images", f"{np.mean(floor):.2f}", ""]]
    rows += [[row, *(f"{value:.2f}" for value in np.mean(values, axis=0))] for row, values in found.items()]
    classes = ", ".join(map(str, arguments.classes))
    report(arguments, header, rows, f"Classes {classes}; means over classes and seeds.")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: run(parse_arguments())))
