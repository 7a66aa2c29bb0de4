"""Whether a second channel beside rho tells more: how likely E(x) is under the prior, or what D_x says of x.

    python benchmarks/channels.py --ablation ablation [--row default] [--classes 0 3] [--seeds 0]
        [--markdown FILE]

Of runs of `benchmarks/ablation.py`, on the same images: ROC AUC of each channel alone, and of rho together
with another. They are combined without labels: each is divided into deviations from the mean by the
calibration images, which are normal and were never trained on, and the second is added with a weight.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jobs import exit_status
from numpy.typing import NDArray
from protocol import Task, training_split_task
from provenance import markdown, plain, provenance
from sklearn.metrics import roc_auc_score

from pad.config import BATCH_SIZE
from pad.data import ImageSet, stream
from pad.detector import Detector
from pad.runs import split_images

WEIGHTS = (0.25, 0.5, 1.0)
Scores = dict[str, NDArray[np.float64]]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ablation", type=Path, required=True, metavar="DIR", help="its --out")
    parser.add_argument("--row", default="default", metavar="NAME", help="as its folders spell it")
    parser.add_argument("--dataset", choices=("fashion-mnist", "mnist", "cifar10"), default="fashion-mnist")
    parser.add_argument("--data-root", type=Path, metavar="DIR")
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 3], metavar="K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--anomalies", type=int, default=200, metavar="N", help="images of each other class")
    parser.add_argument("--held-out", type=float, default=0.2, metavar="SHARE")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    return parser.parse_args()


def channels(detector: Detector, images: ImageSet) -> Scores:
    """{channel: scores (n,)}, higher for what is more anomalous by it."""
    found: dict[str, list[torch.Tensor]] = {"ρ": [], "E(x) under the prior": [], "D_x": []}
    critic = detector.networks["image_critic"]
    for batch in stream(images, detector.config, BATCH_SIZE):
        found["ρ"].append(detector.score_batch(batch.tensor))
        # -log of the prior's density at E(x), but for a constant
        found["E(x) under the prior"].append(detector.encode(batch.tensor).square().sum(1) / 2)
        with torch.no_grad():
            found["D_x"].append(-critic(batch.tensor.to(detector.device)).float().flatten().cpu())
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def combined(scores: Scores, normal: Scores) -> Scores:
    """Each channel, and rho with each other one, in deviations of `normal`."""
    deviations = {name: (s - normal[name].mean()) / normal[name].std() for name, s in scores.items()}
    first, *others = deviations
    found = dict(deviations)
    for name in others:
        for weight in WEIGHTS:
            found[f"{first} + {weight:g} {name}"] = deviations[first] + weight * deviations[name]
    return found


def roc_aucs(task: Task, detector: Detector) -> dict[str, float]:
    _, calibration = split_images(task.train, detector.config)
    normal = channels(detector, calibration)
    scores = combined(channels(detector, task.test), normal)
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
        task = training_split_task(
            arguments.dataset, label, arguments.data_root, arguments.anomalies, arguments.held_out
        )
        for seed in arguments.seeds:
            folder = arguments.ablation / "runs" / f"{arguments.row}-class{label}-seed{seed}"
            found[label, seed] = roc_aucs(task, Detector.load(folder, arguments.device))
    header, rows = table(found, arguments.classes)
    print(plain(header, rows))
    if arguments.markdown:
        note = "Same images as in the ablation; means over seeds."
        arguments.markdown.write_text(
            markdown(provenance(arguments.device), header, rows, note), encoding="utf-8"
        )


if __name__ == "__main__":
    sys.exit(exit_status(lambda: run(parse_arguments())))
