"""How well the quick views tell anomalies after a dirty training, and how well strangers are found.

    python benchmarks/contamination.py --data-root DIR [--tasks dogs-cats:dog:cat fashion-mnist:9:5 ...]
                                       [--shares 0 0.05 0.1 0.2] [--images 500] [--draws 3]
                                       [--out FILE] [--markdown FILE]

A task is a data set and two of its classes: normal images, and strangers. DIR holds folders with train/CLASS
and test/CLASS, or Fashion-MNIST. Of the images to train on, a share are strangers, from the training split;
in the test split the first class is told from the second. A draw chooses images and folds. Of the same
images three models are fitted: by the default, which leaves out a group that stands apart; on all of them
(`contamination=0`); and told the share. The ranking is that of `pad clean`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import exit_status
from photographs import of_rows, quick_detector, with_nothing_varied
from provenance import markdown, plain, provenance, write_json
from sklearn.metrics import roc_auc_score

from pad.detector import Detector
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.calibration import Calibration
from pad.judging.fusion import Fusion
from pad.learning.cleaning import judged
from pad.learning.quick import Looked, fit_quick, look, quick_of
from pad.views.features import Features, joined_features

TASKS = ["dogs-cats:dog:cat", "dogs-cats:cat:dog"]
RATE = 0.05  # of false alarms, asked
AMONG = 1.2  # times as many images as there are strangers


def images_of(root: Path, data: str, kind: str, split: str) -> ImageSet:
    """The images of one class."""
    if data == "fashion-mnist":
        found = resolve([f"{data}:{kind}"], "train" if split == "train" else "evaluate", root)
        return found.normal_only()
    return resolve([root / data / split / kind], "evaluate")


def joined_looked(normal: Looked, strangers: Looked) -> Looked:
    """What was seen of both, the normal ones first."""
    return Looked(
        joined_features([normal.features, strangers.features]),
        joined_features([each.varied for each in (normal, strangers) if each.varied is not None]),
        torch.cat([normal.thumbnails, strangers.thumbnails]),
        list(range(len(normal.indices) + len(strangers.indices))),
        np.concatenate([normal.hashes, strangers.hashes]),
        [],
    )


def drawn(looked: Looked, count: int, draw: int) -> Looked:
    order = np.random.default_rng(draw).permutation(len(looked.indices))
    return of_rows(looked, np.sort(order[:count]))


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each share, draw and setting."""
    data, normal_kind, strange_kind = name.split(":")
    kinds, root = (normal_kind, strange_kind), arguments.data_root
    images = [images_of(root, data, kind, "train") for kind in kinds]
    detector = quick_detector(images[0], arguments.device)
    normal, strange = (look(detector, each, progress=True) for each in images)
    judge = with_nothing_varied(detector)
    tests = [look(judge, images_of(root, data, kind, "test"), progress=True).features for kind in kinds]
    total = min(arguments.images, len(normal.indices))
    rows = []
    for share in arguments.shares:
        count = round(share * total)
        for draw in range(arguments.draws):
            train = drawn(normal, total - count, draw)
            if count:
                train = joined_looked(train, drawn(strange, count, draw))
            is_strange = np.arange(total) >= total - count
            common = {"task": name, "images": total, "share": share, "draw": draw}
            for setting in dict.fromkeys([None, 0.0, share]):
                row = {**common, "contamination": setting}
                rows.append(row | trained(detector, train, tests, is_strange, setting, draw))
            if count:
                rows.append({**common, "ranked": ranked(detector, train, is_strange, draw)})
            print(rows[-1], file=sys.stderr)
    return rows


def trained(
    detector: Detector,
    train: Looked,
    tests: list[Features],
    is_strange: np.ndarray,
    contamination: float | None,
    seed: int,
) -> dict[str, Any]:
    """What a model fitted and calibrated on `train` is worth on normal and strange test images."""
    detector.config = detector.config.replace(contamination=contamination, seed=seed)
    quick, found = quick_of(detector), fit_quick(detector, train)
    fusion = Fusion.fit(quick.names, found.scores[found.belonging], likeness=quick.likeness)
    calibration = Calibration(fusion.fuse(found.scores[found.calibrating]).astype(np.float64))
    normal, strange = (fusion.fuse(quick.scores(test).numpy()).astype(np.float64) for test in tests)
    labels = np.repeat([0, 1], [len(normal), len(strange)])
    left_out = ~found.belonging
    return {
        "roc_auc": float(roc_auc_score(labels, np.concatenate([normal, strange]))),
        "false_alarms": float((calibration.p_values(normal) <= RATE).mean()),
        "found": float((calibration.p_values(strange) <= RATE).mean()),
        "left_out": int(left_out.sum()),
        "strangers_left_out": int((left_out & is_strange).sum()),
    }


def ranked(detector: Detector, train: Looked, is_strange: np.ndarray, seed: int) -> float:
    """The share of the strangers that is among the first of the ranking."""
    detector.config = detector.config.replace(contamination=None, seed=seed)
    scores, apart = judged(detector, train._replace(varied=None))
    order = np.lexsort((-np.array(scores), ~apart.numpy()))
    count = int(is_strange.sum())
    return float(is_strange[order[: round(AMONG * count)]].sum() / count)


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Means over draws, a line for each task and share."""
    header = ["task, share of strangers", "ROC AUC by default", "all learnt", "told the share"]
    header += [f"false alarms at {100 * RATE:g} % by default", "all learnt", "told the share"]
    header += ["left out by default, strangers among them", "strangers among the first of the ranking"]
    lines = []
    for task, share in dict.fromkeys((row["task"], row["share"]) for row in rows):
        group = [row for row in rows if (row["task"], row["share"]) == (task, share)]

        def mean(key: str, setting: float | None, group: list[dict[str, Any]] = group) -> float:
            return float(np.mean([r[key] for r in group if key in r and r["contamination"] == setting]))

        settings = (None, 0.0, share)
        line = [f"{task}, {100 * share:g} %", *(f"{mean('roc_auc', setting):.3f}" for setting in settings)]
        line += [f"{100 * mean('false_alarms', setting):.1f} %" for setting in settings]
        line.append(f"{mean('left_out', None):.0f}, {mean('strangers_left_out', None):.0f}")
        places = [row["ranked"] for row in group if "ranked" in row]
        lines.append([*line, f"{100 * np.mean(places):.0f} %" if places else ""])
    return header, lines


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    draws = 1 + max(row["draw"] for row in content["results"])
    note = f"Means over {draws} draws; the ranking: among the first {AMONG:g} times as many."
    return markdown(content, *table(content["results"]), note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="DATA:NORMAL:STRANGERS")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.05, 0.1, 0.2], metavar="SHARE")
    parser.add_argument("--images", type=int, default=500, metavar="N", help="to train on, at most")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    origin = provenance(arguments.device)
    for name in arguments.tasks:
        rows += measure(name, arguments)
        if arguments.out:
            write_json(arguments.out, {**origin, "results": rows})
    print(plain(*table(rows)))
    if arguments.markdown:
        arguments.markdown.write_text(page({**origin, "results": rows}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_status(main))
