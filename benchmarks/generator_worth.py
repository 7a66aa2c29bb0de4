"""What the generator's view earns: trained models with and without it, and each view alone.

    python benchmarks/generator_worth.py --runs DIR [--dataset fashion-mnist] [--data-root DIR]
        [--classes 0 1 2] [--seeds 0] [--device cpu] [--out generator-worth.json] [--markdown FILE]

DIR is the `--out` of `benchmarks/quality.py`, whose runs keep their models. All of a class's test images are
scored once in every view. Without the generator the others are fused as `pad` fuses them where there is none:
by mean and deviation of the same normal images, and by weights that the normal images give.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jobs import exit_status
from protocol import Task, dataset_task
from provenance import made_by, markdown, plain, provenance, stamp, write_json
from quality import result_name
from sklearn.metrics import roc_auc_score

from pad.config import BATCH_SIZE
from pad.detector import Detector
from pad.errors import PadError
from pad.images.stream import each_batch

GENERATOR = "generator"


def view_scores(detector: Detector, task: Task) -> np.ndarray:
    """(n, v) of the test images, in their order."""
    scores = np.full((len(task.test), len(detector.views)), np.nan)

    def look(batch: Any) -> tuple[list[int], np.ndarray]:
        return batch.indices, detector.score_views(batch.tensor).numpy()

    for indices, found in each_batch(look, task.test, detector.config, detector.device, BATCH_SIZE):
        scores[indices] = found
    return scores


def measure(runs: Path, task: Task, label: int, seed: int, device: str) -> dict[str, Any]:
    detector = Detector.load(runs / "runs" / result_name("pad", label, seed) / "model", device)
    if detector.fusion is None or detector.views[0] != GENERATOR:
        raise PadError(f"class {label}, seed {seed}: the model has no other view beside a generator")
    scores, labels = view_scores(detector, task), task.labels()
    fused = {
        "fused": detector.fusion.fuse(scores),
        "without": detector.fusion.among(detector.views[1:]).fuse(scores[:, 1:]),
    }
    found = {**fused, **{view: scores[:, i] for i, view in enumerate(detector.views)}}
    areas = {name: float(roc_auc_score(labels, values)) for name, values in found.items()}
    weight = float(detector.fusion.weights[0])
    result = {"class": label, "name": task.name, "seed": seed, "roc_auc": areas, "weight": weight}
    print(f"{task.name}, seed {seed}: {areas['fused']:.4f}, without {areas['without']:.4f}", file=sys.stderr)
    return {**result, "training": detector.card["training"], **stamp(device)}


def table(results: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = list(results[0]["roc_auc"])
    header = ["ROC AUC", "generator's weight", "fused", "without the generator", *names[2:]]
    rows = []
    for label in dict.fromkeys(row["class"] for row in results):
        group = [row for row in results if row["class"] == label]
        means = [np.mean([row["roc_auc"][name] for row in group]) for name in names]
        weight = np.mean([row["weight"] for row in group])
        rows.append([f"{label} {group[0]['name']}", f"{weight:.2f}", *(f"{mean:.3f}" for mean in means)])
    over_all = [f"{np.mean([row['roc_auc'][name] for row in results]):.4f}" for name in names]
    return header, [*rows, ["mean", f"{np.mean([row['weight'] for row in results]):.2f}", *over_all]]


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    seeds = sorted({row["seed"] for row in content["results"]})
    note = f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}."
    return markdown(content, *table(content["results"]), note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="--out of quality.py")
    parser.add_argument("--dataset", choices=("fashion-mnist", "mnist", "cifar10"), default="fashion-mnist")
    parser.add_argument("--data-root", type=Path, metavar="DIR")
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)), metavar="K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    origin, results = provenance(arguments.device), []
    for label in arguments.classes:
        task = dataset_task(arguments.dataset, label, arguments.data_root)
        for seed in arguments.seeds:
            results.append(measure(arguments.runs, task, label, seed, arguments.device))
            if arguments.out:
                write_json(arguments.out, {**made_by(origin, results), "results": results})
    print(plain(*table(results)))
    if arguments.markdown:
        content = {**made_by(origin, results), "results": results}
        arguments.markdown.write_text(page(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_status(main))
