"""How well the quick views tell anomalous photographs, beside what else the same backbone could be used for.

    python benchmarks/photographs.py --data-root DIR [--tasks dogs cats tiles cifar10] [--seeds 0 1 2]
                                     [--few 8 16 32 64] [--out FILE] [--markdown FILE]
    python benchmarks/photographs.py --data-root DIR --tasks dogs fashion-mnist:9 --few 16 60 200 --splits 200

DIR holds the folders dogs-cats (train/dog, train/cat, test/dog, test/cat), magnetic-tiles (the MVTec
layout) and cifar10-2000 (train/CLASS, test/CLASS), or Fashion-MNIST (fashion-mnist:CLASS). Features are
computed once a task, as `pad train --steps 0` computes them; every method then sees the same images, those of
the peers on embeddings the same features of unit length as the view *whole*. A seed chooses folds, and of few
images which. No setting looks at a test image.

Peers: k nearest neighbours, LOF and ECOD (PyOD's where it is installed, `pip install pyod`) and a Mahalanobis
distance on the embeddings; an isolation forest on HSV histograms; kNN on 32x32 pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import hsv_histograms, isolation_forest, knn
from jobs import exit_status
from provenance import markdown, plain, provenance, write_json
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from pad.detector import Detector
from pad.devices import pick_device
from pad.images.imageset import ImageSet, joined_sets
from pad.images.resolve import resolve
from pad.learning.quick import Looked, fit_quick, look, quick_of
from pad.recipes import build_config
from pad.views.features import Features, joined_features
from pad.views.quick import build_quick

RATES = (0.05, 0.1, 0.2)
NEIGHBOURS = 5


@dataclass
class Task:
    """Normal images to fit on, and a test set: normal ones first."""

    name: str
    normal: ImageSet
    test: ImageSet
    test_normals: int


def tasks(root: Path, names: list[str]) -> Iterator[Task]:
    """The tasks by name; `cifar10` is ten of them."""

    def of(name: str, train: Path, normal: list[Path], anomalous: list[Path]) -> Task:
        good, bad = resolve(normal, "evaluate"), resolve(anomalous, "evaluate")
        return Task(name, resolve([train], "train"), joined_sets(good, bad), len(good))

    for name in names:
        if name in ("dogs", "cats"):
            kind, other = ("dog", "cat") if name == "dogs" else ("cat", "dog")
            place = root / "dogs-cats"
            yield of(name, place / "train" / kind, [place / "test" / kind], [place / "test" / other])
        elif name == "tiles":
            place = root / "magnetic-tiles"
            kinds = sorted(p for p in (place / "test").iterdir() if p.name != "good")
            yield of(name, place / "train" / "good", [place / "test" / "good"], kinds)
        elif name.startswith("fashion-mnist:"):
            normal, everything = resolve([name], "train", root), resolve([name], "evaluate", root)
            good = everything.subset(i for i, s in enumerate(everything.samples) if not s.anomalous)
            bad = everything.subset(i for i, s in enumerate(everything.samples) if s.anomalous)
            yield Task(name, normal, joined_sets(good, bad), len(good))
        elif name == "cifar10":
            place = root / "cifar10-2000"
            kinds = sorted((place / "test").iterdir())
            for kind in kinds:
                others = [other for other in kinds if other != kind]
                yield of(f"cifar10 {kind.name}", place / "train" / kind.name, [kind], others)


def quick_detector(images: ImageSet, device: str) -> Detector:
    """As `pad train --steps 0` sets it up for these images, not yet fitted."""
    config = build_config(None, {"steps": 0}, images)
    return Detector(config, None, build_quick(config), pick_device(device))


def of_rows(looked: Looked, rows: np.ndarray) -> Looked:
    """What was seen of some of the images."""
    chosen = torch.from_numpy(rows)
    return Looked(
        looked.features.take(chosen),
        None if looked.varied is None else looked.varied.take(chosen),
        looked.thumbnails[chosen],
        [looked.indices[row] for row in rows],
        looked.hashes[rows],
        [],
    )


def by_pad(detector: Detector, train: Looked, test: Features, rows: np.ndarray, seed: int) -> dict[str, Any]:
    """Scores of the test images, fused and in each view, and their p-values, after fitting on some rows."""
    quick, detector.config = quick_of(detector), detector.config.replace(seed=seed)
    begun = time.perf_counter()
    fitted = fit_quick(detector, of_rows(train, rows))
    seconds = time.perf_counter() - begun
    judges = fitted.take(np.flatnonzero(fitted.calibrating).tolist())
    calibration = detector.calibrate_on(judges.scores, None, {}, belonging=judges.belonging)
    views = quick.scores(test)
    fused = detector.fused(views).numpy()
    found: dict[str, Any] = {f"view {name}": views[:, i].numpy() for i, name in enumerate(quick.names)}
    return {"pad": fused, **found, "p_values": calibration.p_values(fused), "seconds": seconds}


def on_embeddings() -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Peers on vectors (n, c) of unit length: train, test -> scores of the test images."""

    def mahalanobis(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return LedoitWolf().fit(train).mahalanobis(test)

    def pyod(name: str, module: str, **settings: Any) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        def scores(train: np.ndarray, test: np.ndarray) -> np.ndarray:
            from importlib import import_module

            few = {k: min(v, len(train) - 1) for k, v in settings.items() if k == "n_neighbors"}
            model = getattr(import_module(module), name)(**{**settings, **few}).fit(train)
            return model.decision_function(test)

        return scores

    return {
        "kNN of embeddings": lambda train, test: knn(train, test, 0),
        "Mahalanobis of embeddings": mahalanobis,
        "PyOD kNN": pyod("KNN", "pyod.models.knn", n_neighbors=NEIGHBOURS),
        "PyOD LOF": pyod("LOF", "pyod.models.lof", n_neighbors=20),
        "PyOD ECOD": pyod("ECOD", "pyod.models.ecod"),
    }


def pixels(looked: Looked) -> np.ndarray:
    """Thumbnails at 32x32 as vectors in [0, 1]."""
    small = F.interpolate(looked.thumbnails.float() / 255, size=(32, 32), mode="bilinear", antialias=True)
    return small.flatten(1).numpy()


def colours(looked: Looked) -> np.ndarray:
    """HSV histograms of the thumbnails."""
    return hsv_histograms(looked.thumbnails.expand(-1, 3, -1, -1).float().numpy() / 127.5 - 1)


_SEEN: dict[str, tuple[Looked, list[str]]] = {}  # and the names of the images


def looked_at_once(detector: Detector, images: ImageSet) -> Looked:
    """What is seen of test images; of those that were looked at for the task before, only once (ten classes
    have the same test images in another order)."""
    config = detector.config
    key = json.dumps([sorted(s.name for s in images.samples), config.view_size, config.input_size])
    if key not in _SEEN:
        _SEEN.clear()
        seen = look(with_nothing_varied(detector), images, progress=True)
        _SEEN[key] = seen, [images.samples[i].name for i in seen.indices]
    seen, names = _SEEN[key]
    place = {name: row for row, name in enumerate(names)}
    present = [i for i, s in enumerate(images.samples) if s.name in place]
    rows = np.array([place[images.samples[i].name] for i in present])
    return of_rows(seen, rows)._replace(indices=present)


def with_nothing_varied(detector: Detector) -> Detector:
    """The same for images that are only judged."""
    return Detector(detector.config.replace(tolerate={}), None, detector.quick, detector.device)


def measure(task: Task, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each method, number of normal images and seed."""
    detector = quick_detector(task.normal, arguments.device)
    begun = time.perf_counter()
    train = look(detector, task.normal, progress=True)
    seconds = time.perf_counter() - begun
    test = looked_at_once(detector, task.test)
    anomalous = np.array(test.indices) >= task.test_normals
    n = len(train.indices)
    rows = []
    for count in [n, *(c for c in arguments.few if c < n)]:
        draws = arguments.seeds if count == n else range(arguments.draws)
        for seed in draws:
            chosen = np.sort(np.random.default_rng(seed).permutation(n)[:count])
            found = by_pad(detector, train, test.features, chosen, seed)
            p_values, fitting = found.pop("p_values"), found.pop("seconds")
            if not arguments.no_peers:
                deep = train.features.deep[-1].numpy()[chosen], test.features.deep[-1].numpy()
                found |= {name: peer(*deep) for name, peer in on_embeddings().items()}
                found["isolation forest on HSV"] = isolation_forest(
                    colours(train)[chosen], colours(test), seed
                )
                found["kNN on pixels"] = knn(pixels(train)[chosen], pixels(test), seed)
            common = {"task": task.name, "normals": int(count), "seed": seed, "images": len(anomalous)}
            for method, scores in found.items():
                rows.append({**common, "method": method, "roc_auc": float(roc_auc_score(anomalous, scores))})
            rows[-len(found)] |= {
                "false_alarms": {str(r): float((p_values[~anomalous] <= r).mean()) for r in RATES},
                "found": {str(r): float((p_values[anomalous] <= r).mean()) for r in RATES},
                "looking_seconds": seconds,
                "fitting_seconds": fitting,
            }
            print(f"{task.name} {count} seed {seed}: {rows[-len(found)]['roc_auc']:.4f}", file=sys.stderr)
    return rows


def keep_promise(task: Task, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of normal images: false alarms among all others, of random splits."""
    detector = quick_detector(task.normal, arguments.device)
    train = look(detector, task.normal, progress=True)
    good = task.test.subset(range(task.test_normals))
    test = look(with_nothing_varied(detector), good, progress=True).features
    rows = []
    for count in arguments.few:
        rates = []
        for split in range(arguments.splits):
            order = np.random.default_rng(split).permutation(len(train.indices))
            others = train.features.take(torch.from_numpy(order[count:][: arguments.judged]))
            judged = joined_features([others, test])
            p_values = by_pad(detector, train, judged, np.sort(order[:count]), split)["p_values"]
            rates.append([float((p_values <= rate).mean()) for rate in RATES])
        for_rate = {str(rate): [r[i] for r in rates] for i, rate in enumerate(RATES)}
        rows.append({"task": task.name, "normals": count, "splits": arguments.splits, "rates": for_rate})
        print(plain(*promise_table(rows[-1:])), file=sys.stderr)
    return rows


def promise_table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Mean false alarms of splits, with their standard error."""
    lines = []
    for row in rows:
        line = [f"{row['task']}, {row['normals']}", str(row["splits"])]
        for rate in RATES:
            shares = np.array(row["rates"][str(rate)])
            error = shares.std(ddof=1) / len(shares) ** 0.5
            line.append(f"{100 * shares.mean():.1f} % ± {100 * error:.1f}")
        lines.append(line)
    header = ["task, normal images", "splits", *(f"false alarms at {100 * r:g} %" for r in RATES)]
    return header, lines


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Mean ROC AUC of each method, a column a task and number of normal images."""
    columns = list(dict.fromkeys((row["task"], row["normals"]) for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells: dict[Any, list[float]] = {}
    for row in rows:
        cells.setdefault((row["method"], row["task"], row["normals"]), []).append(row["roc_auc"])
    whole = [c for c in columns if c[0].startswith("cifar10") and c[1] > 1000]
    header = ["ROC AUC", *(f"{task}, {n}" for task, n in columns), *(["cifar10, mean"] if whole else [])]
    lines = []
    for method in methods:
        means = {c: np.mean(cells[(method, *c)]) for c in columns if (method, *c) in cells}
        line = [method, *(f"{means[c]:.3f}" if c in means else "" for c in columns)]
        lines.append(line + ([f"{np.mean([means[c] for c in whole]):.3f}"] if whole else []))
    return header, lines


def promises(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """False alarms at each rate asked, and what was found: means over draws, with their standard error."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        if "false_alarms" in row:
            groups.setdefault((row["task"], row["normals"]), []).append(row)

    def cell(group: list[dict[str, Any]], key: str, rate: float) -> str:
        shares = np.array([row[key][str(rate)] for row in group])
        error = shares.std(ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else None
        return f"{100 * shares.mean():.1f} %" + (f" ± {100 * error:.1f}" if error is not None else "")

    header = ["task, normal images", "draws", *(f"false alarms at {100 * r:g} %" for r in RATES)]
    header += [f"found at {100 * r:g} %" for r in RATES]
    lines = [
        [f"{task}, {n}", str(len(group))]
        + [cell(group, key, rate) for key in ("false_alarms", "found") for rate in RATES]
        for (task, n), group in groups.items()
    ]
    return header, lines


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    rows = content["results"]
    if any("rates" in row for row in rows):
        return markdown(content, *promise_table(rows), "Means over splits and their standard errors.")
    text = markdown(content, *table(rows), "")
    return text + "\n" + markdown(content, *promises(rows), "Means over draws and their standard errors.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tasks", nargs="+", default=["dogs", "cats", "tiles"], metavar="TASK")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument(
        "--few", nargs="*", type=int, default=[], metavar="N", help="numbers of normal images"
    )
    parser.add_argument("--draws", type=int, default=5, help="of each of these numbers")
    parser.add_argument("--splits", type=int, default=0, metavar="N", help="false alarms over so many random "
                        "splits of each of these numbers, and nothing else")  # fmt: skip
    parser.add_argument("--judged", type=int, default=200, help="training images judged beside in a split")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    origin = provenance(arguments.device)
    for task in tasks(arguments.data_root, arguments.tasks):
        rows += keep_promise(task, arguments) if arguments.splits else measure(task, arguments)
        if arguments.out:
            write_json(arguments.out, {**origin, "results": rows})
    if arguments.splits:
        print(plain(*promise_table(rows)))
    else:
        print(plain(*table(rows)), plain(*promises(rows)), sep="\n\n")
    if arguments.markdown:
        arguments.markdown.write_text(page({**origin, "results": rows}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_status(main))
