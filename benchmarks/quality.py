"""How well `pad` tells anomalies from normal images, beside what it has to beat; a table, JSON and a figure.

    python benchmarks/quality.py --out results [--dataset fashion-mnist] [--data-root DIR] [--classes 0 1 2]
        [--seeds 0 1 2] [--jobs 2] [--methods pad knn ...] [--config NAME] [--set key=value ...] [--steps N]
        [--markdown table.md] [--figure figure.svg]
    python benchmarks/quality.py --out results --folder LABELLED_FOLDER

Standard one-vs-rest protocol: train on a class's training split, judge on the whole test split. There is one
JSON file for each method, class and seed under `--out`; what is there is not run again, and a training that
was cut short goes on from its checkpoint. `paper` is the published recipe, which takes hours a class on a
CPU: it runs only when asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from baselines import (
    BASELINES,
    COLOURS,
    FEATURES,
    PIXELS,
    POOLED,
    TITLES,
    default_features,
    hsv_histograms,
    pooled_features,
)
from jobs import exit_status, side_by_side, use_share_of_processor
from protocol import Task, dataset_task, folder_task, metrics, raw_pixels, tensors, train_and_score
from provenance import made_by, markdown, plain, provenance, stamp, write_json

from pad.config import load_recipe, parse_assignments
from pad.errors import PadError
from pad.images.imageset import ImageSet
from pad.recipes import build_config

TRAINED = {"pad": "pad", "reconstruction": "reconstruction only", "paper": "the paper's recipe"}
METHODS = {**TRAINED, **TITLES}
SEEDED = (
    "pad",
    "reconstruction",
    "paper",
    "isolation-forest",
    "hsv-isolation-forest",
)  # the rest never differ
GREY = tuple(name for name in METHODS if name not in ("paper", *COLOURS))  # run when none are named


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dataset", choices=("fashion-mnist", "mnist", "cifar10"), default="fashion-mnist")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where named datasets lie")
    parser.add_argument("--folder", type=Path, help="a labelled folder instead of a dataset")
    parser.add_argument("--classes", type=int, nargs="+", default=list(range(10)), metavar="K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help=", ".join(METHODS))
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps")
    parser.add_argument("--config", metavar="FILE|NAME", help="recipe of `pad` and `reconstruction`")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N")
    length.add_argument("--minutes", type=float, metavar="M", help="of training a class")
    parser.add_argument(
        "--paper-config", metavar="NAME", help="the published recipe (default: the dataset's)"
    )
    parser.add_argument("--paper-set", nargs="+", default=[], metavar="key=value",
                        help="such as backbone=vgg16-st where vgg19 cannot be downloaded")  # fmt: skip
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw it: FILE.svg and FILE-dark.svg")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)  # a job's own process
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.classes = [0]
    if arguments.methods is None:
        colour = arguments.dataset == "cifar10" and arguments.folder is None
        arguments.methods = [*GREY, *(COLOURS if colour else ())]
    return arguments


# One job ------------------------------------------------------------------------------------------


def find_task(arguments: argparse.Namespace, label: int) -> Task:
    if arguments.folder is not None:
        return folder_task(arguments.folder)
    return dataset_task(arguments.dataset, label, arguments.data_root)


def asked_for(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """What a result depends on beside its class and seed; a finished one is only used if it fits."""
    data = {"data": f"folder {arguments.folder.name}" if arguments.folder else arguments.dataset}
    if method not in TRAINED:
        return data
    if method == "paper":
        name = arguments.paper_config or ("fashion-mnist" if arguments.folder else arguments.dataset)
        return {**data, "config": name, "settings": parse_assignments(arguments.paper_set), "minutes": None}
    settings = parse_assignments(arguments.set)
    if arguments.steps:
        settings["steps"] = arguments.steps
    if method == "reconstruction":
        settings.update(image_critic=False, latent_critic=False)
    return {**data, "config": arguments.config, "settings": settings, "minutes": arguments.minutes}


def run_baseline(task: Task, method: str, seed: int, test_features: dict[str, Any]) -> dict[str, Any]:
    """A baseline's metrics on a task. `test_features` keeps those of the test images for the next class,
    which judges by the same ones."""
    config = build_config(None, {}, task.train)

    size, channels = config.size, config.channels
    kinds: tuple[tuple[Any, Callable[[ImageSet], Any]], ...] = (
        (PIXELS, lambda images: raw_pixels(images, size, channels)),
        (POOLED, lambda images: pooled_features(tensors(images, size, channels))),
        (FEATURES, lambda images: default_features(tensors(images, size, channels))),
        (COLOURS, lambda images: hsv_histograms(tensors(images, size, 3))),
    )
    kind, features = next((i, of) for i, (group, of) in enumerate(kinds) if method in group)
    key = f"{kind} {task.test.fingerprint()['sha256']}"
    if key not in test_features:
        test_features[key] = features(task.test)
    train, test = features(task.train), test_features[key]
    begun = time.perf_counter()
    scores = BASELINES[method](train, test, seed)
    return {
        **metrics(scores, task.labels()),
        "train_images": len(train),
        "test_images": len(test),
        "seconds": round(time.perf_counter() - begun, 2),
    }


def run_baselines(arguments: argparse.Namespace) -> None:
    """All baselines that are not finished, one after the other."""
    test_features: dict[str, Any] = {}
    for label in arguments.classes:
        missing = [
            (method, seed)
            for method, k, seed in wanted(arguments)
            if method in BASELINES and k == label and read_result(arguments, method, k, seed) is None
        ]
        task = find_task(arguments, label) if missing else None
        for method, seed in missing:
            assert task is not None
            write_result(
                arguments, method, label, seed, task, run_baseline(task, method, seed, test_features)
            )


def run_training(arguments: argparse.Namespace, method: str, label: int, seed: int) -> None:
    """Trains by a method's recipe on a class, and writes its result."""
    task, asked = find_task(arguments, label), asked_for(arguments, method)
    folder = arguments.out / "runs" / result_name(method, label, seed)
    settings = {**asked["settings"], "seed": seed}
    found = train_and_score(
        task, asked["config"], settings, folder, arguments.device, asked["minutes"], arguments.data_root
    )
    write_result(arguments, method, label, seed, task, found)


def write_result(
    arguments: argparse.Namespace, method: str, label: int, seed: int, task: Task, found: dict[str, Any]
) -> None:
    result = {"method": method, "class": label, "name": task.name, "seed": seed}
    path = result_path(arguments.out, method, label, seed)
    write_json(path, {**result, "asked": asked_for(arguments, method), **found, **stamp(arguments.device)})


def result_name(method: str, label: int, seed: int) -> str:
    return f"{method}-class{label}-seed{seed}"


def result_path(out: Path, method: str, label: int, seed: int) -> Path:
    return out / "finished" / f"{result_name(method, label, seed)}.json"


# All jobs -----------------------------------------------------------------------------------------


def wanted(arguments: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Every (method, class, seed), the trained ones first: they take longest."""
    return [
        (method, label, seed)
        for method in METHODS
        if method in arguments.methods
        for seed in (arguments.seeds if method in SEEDED else arguments.seeds[:1])
        for label in arguments.classes
    ]


def read_result(arguments: argparse.Namespace, method: str, label: int, seed: int) -> dict[str, Any] | None:
    """A finished result, or None. Raises PadError if it is one of other settings."""
    path = result_path(arguments.out, method, label, seed)
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    asked = json.loads(json.dumps(asked_for(arguments, method)))
    if result["asked"] != asked:
        raise PadError(f"{path} is of other settings ({result['asked']}, not {asked}); name another --out")
    return result


def run_missing(arguments: argparse.Namespace) -> list[str]:
    """Runs what is not finished yet. Returns the names of those that failed."""
    script = str(Path(__file__).resolve())
    missing = [job for job in wanted(arguments) if read_result(arguments, *job) is None]
    start = [script, *sys.argv[1:], "--one"]
    commands = {result_name(*job): [*start, *map(str, job)] for job in missing if job[0] in TRAINED}
    if any(method in BASELINES for method, _, _ in missing):
        commands["baselines"] = [*start, "baselines"]
    return side_by_side(commands, arguments.jobs, arguments.out / "logs") if commands else []


# The table ----------------------------------------------------------------------------------------


def summarize(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each method the ROC AUC per class over seeds, and of the mean over classes.

    Deviations are sample deviations over seeds, None for a single seed. The mean over classes is taken for
    each seed that has every class, and its deviation is that of these means.
    """
    summary: dict[str, dict[str, Any]] = {}
    labels = sorted({result["class"] for result in results})
    for method in dict.fromkeys(result["method"] for result in results):
        table: dict[int, dict[int, float]] = {}
        for result in results:
            if result["method"] == method:
                table.setdefault(result["seed"], {})[result["class"]] = result["roc_auc"]["value"]
        whole = [float(np.mean(list(row.values()))) for row in table.values() if len(row) == len(labels)]
        per_class = {str(k): _spread([row[k] for row in table.values() if k in row]) for k in labels}
        summary[method] = {"classes": per_class, "mean": _spread(whole)}
    return summary


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    mean = float(np.mean(values)) if values else None
    return {"value": mean, "deviation": deviation, "seeds": len(values)}


def _cell(spread: dict[str, Any] | None) -> str:
    if not spread or spread["value"] is None:
        return "-"
    text = f"{spread['value']:.3f}"
    return text if spread["deviation"] is None else f"{text} ± {spread['deviation']:.3f}"


def table_rows(
    summary: dict[str, dict[str, Any]], names: dict[int, str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: one a class, then the mean."""
    header = ["ROC AUC", *(METHODS[method] for method in summary)]
    rows = [
        [name if len(names) == 1 else f"{label} {name}"]
        + [_cell(found["classes"].get(str(label))) for found in summary.values()]
        for label, name in sorted(names.items())
    ]
    if len(names) > 1:
        rows.append(["mean", *(_cell(found["mean"]) for found in summary.values())])
    return header, rows


def remarks(summary: dict[str, dict[str, Any]], names: dict[int, str], results: list[dict[str, Any]]) -> str:
    """How long `pad` trained, and where it is not ahead of kNN, in a sentence each."""
    sentences = []
    trained = [result["training"] for result in results if result["method"] == "pad"]
    if trained:
        minutes = [training["seconds"] / 60 for training in trained]
        machines = "; ".join(dict.fromkeys(training["hardware"] for training in trained))
        sentences.append(
            f"pad trained for {min(minutes):.1f} to {max(minutes):.1f} minutes a class ({machines})."
        )
    if {"pad", "knn"} <= summary.keys():
        ours, theirs = summary["pad"]["classes"], summary["knn"]["classes"]
        pairs = {k: (ours.get(k, {}).get("value"), knn["value"]) for k, knn in theirs.items()}
        behind = [names[int(k)] for k, (a, b) in pairs.items() if a is not None and b is not None and a < b]
        sentences.append(f"Behind kNN on pixels: {', '.join(behind) or 'no class'}.")
    return " ".join(sentences)


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    results, seeds, summary = content["results"], content["seeds"], content["roc_auc"]
    names = {result["class"]: result["name"] for result in results}
    several = len(seeds) > 1
    note = f"Seed{'s' if several else ''} {', '.join(map(str, seeds))}"
    note += "; mean ± standard deviation over seeds" if several else ""
    return markdown(content, *table_rows(summary, names), f"{note}. {remarks(summary, names, results)}")


def report(arguments: argparse.Namespace) -> None:
    """results.json, the table, and what else was asked for."""
    results = [found for job in wanted(arguments) if (found := read_result(arguments, *job))]
    if not results:
        raise PadError(f"nothing is finished; see {arguments.out / 'logs'}")
    summary = summarize(results)
    names = {result["class"]: result["name"] for result in results}
    header, rows = table_rows(summary, names)
    origin = made_by(provenance(arguments.device), results)
    content = {**origin, "seeds": arguments.seeds, "roc_auc": summary, "results": results}
    write_json(arguments.out / "results.json", content)
    note = remarks(summary, names, results)
    print(f"{plain(header, rows)}\n{note}")
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(page(content), encoding="utf-8")
    if arguments.figure:
        from figure import draw_quality

        draw_quality(summary, names, METHODS, arguments.figure)


def main() -> int:
    arguments = parse_arguments()
    if arguments.one:
        use_share_of_processor()
        if arguments.one == ["baselines"]:
            run_baselines(arguments)
        else:
            method, label, seed = arguments.one
            run_training(arguments, method, int(label), int(seed))
        return 0
    if arguments.config:
        load_recipe(arguments.config)  # a wrong name is better known before ten processes start
    failed = run_missing(arguments)
    report(arguments)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
