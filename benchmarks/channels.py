"""Whether a second channel beside rho tells more: how likely E(x) is under the prior, or what D_x says of x.
And what of the score is the generator's: rho as in the paper, and the score with one mean image for all in
place of G(E(x)).

    python benchmarks/channels.py --ablation ablation [--row default] [--classes 0 3] [--seeds 0]
        [--markdown FILE]

Of runs of `benchmarks/ablation.py`, on the same images: ROC AUC of each channel alone, and of the score
together with another. They are combined without labels: each is divided into deviations from the mean by the
calibration images, which are normal and were never trained on, and the second is added with a weight.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping

import numpy as np
import torch
from finished_rows import argument_parser, detector_of, report, task_of
from jobs import exit_status
from numpy.typing import NDArray
from protocol import Task
from sklearn.metrics import roc_auc_score

from pad.config import BATCH_SIZE
from pad.detector import Detector
from pad.images.imageset import ImageSet
from pad.images.stream import stream
from pad.learning.images import split_images
from pad.learning.replay import generator_of
from pad.learning.run import residual_indices
from pad.similarity.relative import LayerStatistics, RelativePerceptualL1, Residuals

CHANNELS = (
    "score",
    "ρ as in the paper",
    "the mean image instead of G(E(x))",
    "E(x) under the prior",
    "D_x",
)
WEIGHTS = (0.25, 0.5, 1.0)
Scores = dict[str, NDArray[np.float64]]


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--row", default="default", metavar="NAME", help="as its folders spell it")
    return parser.parse_args()


class MeanImage:
    """The score of a model with the mean of f^(x) over training images in place of f^(G(E(x)))."""

    def __init__(self, detector: Detector, training: ImageSet) -> None:
        generator = generator_of(detector)
        assert isinstance(generator.similarity, RelativePerceptualL1)
        self.device, self.similarity = detector.device, generator.similarity
        (self.layer,) = self.similarity.layers
        images = training.subset(residual_indices(len(training)).tolist())
        features = [
            self.prepare(detector.for_generator(batch.tensor))
            for batch in stream(images, detector.config, BATCH_SIZE)
        ]
        self.mean = torch.cat([f.float() for f in features]).mean(0).to(features[0].dtype)
        self.statistics: LayerStatistics = copy.deepcopy(self.similarity.of(self.layer))
        residuals = Residuals()
        for f in features:
            residuals.add(f - self.mean)
        self.statistics.assign_residuals(residuals)

    @torch.no_grad()
    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        return self.similarity.prepare(x.to(self.device))[0].cpu()

    def score(self, x: torch.Tensor) -> torch.Tensor:
        f = self.prepare(x)
        left = self.statistics.project(self.statistics.weigh(f - self.mean))
        return left.abs().sum((1, 2, 3), dtype=torch.float32) / f.abs().sum((1, 2, 3), dtype=torch.float32)


def without_residuals(detector: Detector) -> Detector:
    """The same model, whose score is rho as in the paper."""
    return detector.scoring_by(
        detector.config.replace(feature_weights=False, feature_channels=1, residual_components=0)
    )


def channels(detector: Detector, mean_image: MeanImage, images: ImageSet) -> Scores:
    """{channel: scores (n,)}, higher for what is more anomalous by it; the first is the detector's score."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in CHANNELS}
    plain = without_residuals(detector)
    generator, without = generator_of(detector), generator_of(plain)
    critic = generator.networks["image_critic"]
    for batch in stream(images, detector.config, BATCH_SIZE):
        x = detector.for_generator(batch.tensor)
        found["score"].append(generator.score(x))
        found["ρ as in the paper"].append(without.score(x))
        found["the mean image instead of G(E(x))"].append(mean_image.score(x))
        # -log of the prior's density at E(x), but for a constant
        found["E(x) under the prior"].append(generator.encode(x).square().sum(1) / 2)
        with torch.no_grad():
            found["D_x"].append(-critic(x.to(detector.device)).float().flatten().cpu())
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def combined(scores: Scores, normal: Scores) -> Scores:
    """Each channel, and the score with each other one, in deviations of `normal`."""
    deviations = {name: (s - normal[name].mean()) / normal[name].std() for name, s in scores.items()}
    first, *others = deviations
    found = dict(deviations)
    for name in others:
        for weight in WEIGHTS:
            found[f"{first} + {weight:g} {name}"] = deviations[first] + weight * deviations[name]
    return found


def roc_aucs(task: Task, detector: Detector) -> dict[str, float]:
    training, calibration = split_images(task.train, detector.config)
    mean_image = MeanImage(detector, training)
    normal = channels(detector, mean_image, calibration)
    scores = combined(channels(detector, mean_image, task.test), normal)
    return {name: float(roc_auc_score(task.labels(), s)) for name, s in scores.items()}


def table(
    found: Mapping[tuple[int, int], dict[str, float]], classes: list[int]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows from {(class, seed): {channel: ROC AUC}}; means over seeds."""
    header = ["score", *(f"class {label}" for label in classes), "mean"]
    rows = []
    for name in next(iter(found.values())):
        means = [
            np.mean([aucs[name] for (label, _), aucs in found.items() if label == wanted])
            for wanted in classes
        ]
        rows.append([name, *(f"{mean:.4f}" for mean in [*means, np.mean(means)])])
    return header, rows


def run(arguments: argparse.Namespace) -> None:
    found = {}
    for label in arguments.classes:
        task = task_of(arguments, label)
        for seed in arguments.seeds:
            found[label, seed] = roc_aucs(task, detector_of(arguments, arguments.row, label, seed))
    header, rows = table(found, arguments.classes)
    report(arguments, header, rows, "Same images as in the ablation; means over seeds.")


if __name__ == "__main__":
    sys.exit(exit_status(lambda: run(parse_arguments())))
