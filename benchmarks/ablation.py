"""What each choice of the recipe is worth: rows of settings against classes named in advance.

    python benchmarks/ablation.py --out ablation [--rows "no critics" relu2_2 ...] [--classes 0 3] [--seeds 0]
        [--steps 400] [--jobs 2] [--settings benchmarks/ablation.yaml] [--markdown FILE]

Rows and classes are in a YAML file. Normal and anomalous images to judge by both come from the TRAINING
split: a fifth of the class, never trained on, and 200 images of each other class. The test split is never
opened, so that it can judge what is chosen here. Finished rows are not run again, and a row that changes
nothing but the scoring is scored from the networks of the first row that is trained the same way.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jobs import exit_status, side_by_side, use_share_of_processor
from protocol import train_and_score, training_split_task
from provenance import made_by, markdown, plain, provenance, stamp, write_json

from pad.config import SCORING_SETTINGS, parse_assignments
from pad.errors import PadError, did_you_mean

HELD_OUT = 0.2  # of the normal class

# The rows are about the generator: other views would only hide what a choice is worth.
ALONE = {"views": ["generator"], "fit": "crop", "input_size": None, "keep_normals": 0}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".yaml"), metavar="FILE")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="of the file (default: all)")
    parser.add_argument("--dataset", choices=("fashion-mnist", "mnist", "cifar10"), default="fashion-mnist")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where named datasets lie")
    parser.add_argument("--classes", type=int, nargs="+", metavar="K", help="(default: those of the file)")
    parser.add_argument("--anomalies", type=int, default=200, metavar="N", help="images of each other class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--steps", type=int, metavar="N")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value",
                        help="settings of every row, under its own")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes side by side")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # a job's own process: row, class, seed
    return parser.parse_args()


def read_rows(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """`{row: settings}` that were asked for; also sets the classes. Raises PadError for an unknown row."""
    try:
        content = yaml.safe_load(arguments.settings.read_text(encoding="utf-8"))
        rows = {str(name): dict(settings or {}) for name, settings in content["rows"].items()}
        arguments.classes = arguments.classes or [int(k) for k in content["classes"]]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise PadError(f"--settings {arguments.settings}: takes 'classes' and 'rows' ({reason})") from None
    for name in arguments.rows or ():
        if name not in rows:
            raise PadError(f"--rows: no '{name}' in {arguments.settings}{did_you_mean(name, rows)}")
    return {name: settings for name, settings in rows.items() if name in (arguments.rows or rows)}


def settings_of(arguments: argparse.Namespace, row: dict[str, Any], seed: int) -> dict[str, Any]:
    """The recipe's changes in a run of a row."""
    length = {"steps": arguments.steps} if arguments.steps else {}
    return {**ALONE, **parse_assignments(arguments.set), **length, **row, "seed": seed}


def training_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a row that the training depends on."""
    return {key: value for key, value in row.items() if key not in SCORING_SETTINGS}


def trained_row(rows: Mapping[str, Mapping[str, Any]], row: str) -> str:
    """The first row that is trained as this one is: itself, or one whose networks it takes."""
    return next(name for name, changes in rows.items() if training_of(changes) == training_of(rows[row]))


def job_name(row: str, label: int, seed: int) -> str:
    return f"{re.sub('[^a-z0-9]+', '-', row.lower()).strip('-')}-class{label}-seed{seed}"


def read_result(arguments: argparse.Namespace, row: str, label: int, seed: int) -> dict[str, Any] | None:
    path = arguments.out / "finished" / f"{job_name(row, label, seed)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def run_one(
    arguments: argparse.Namespace, rows: dict[str, dict[str, Any]], row: str, label: int, seed: int
) -> None:
    """Trains one row on one class with one seed, if there are no networks for it, and scores."""
    task = training_split_task(arguments.dataset, label, arguments.data_root, arguments.anomalies, HELD_OUT)
    settings = settings_of(arguments, rows[row], seed)
    name, runs = job_name(row, label, seed), arguments.out / "runs"
    found = train_and_score(
        task,
        None,
        settings,
        runs / name,
        arguments.device,
        data_root=arguments.data_root,
        trained=runs / job_name(trained_row(rows, row), label, seed),
    )
    result = {"row": row, "class": label, "seed": seed, "settings": settings, **found}
    result.update(stamp(arguments.device))
    write_json(arguments.out / "finished" / f"{name}.json", result)


def run_missing(arguments: argparse.Namespace, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Runs what is not finished, seed by seed: first what has to be trained, then what takes its networks.
    Returns the names of those that failed."""
    to_train: dict[str, list[str]] = {}
    to_score: dict[str, list[str]] = {}
    for seed in arguments.seeds:
        for row, changes in rows.items():
            for label in arguments.classes:
                done = read_result(arguments, row, label, seed)
                settings = json.loads(json.dumps(settings_of(arguments, changes, seed)))
                if done is not None and done["settings"] != settings:
                    raise PadError(
                        f"--out {arguments.out}: '{row}' was run with other settings; name another"
                    )
                if done is None:
                    commands = to_train if trained_row(rows, row) == row else to_score
                    command = [__file__, *sys.argv[1:], "--one", row, str(label), str(seed)]
                    commands[job_name(row, label, seed)] = command
    logs = arguments.out / "logs"
    return [name for jobs in (to_train, to_score) for name in side_by_side(jobs, arguments.jobs, logs)]


def table(
    arguments: argparse.Namespace, rows: dict[str, dict[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: ROC AUC per class and their mean, seconds a training step."""
    header = ["row", *(f"class {label}" for label in arguments.classes), "mean", "s/step"]
    lines = []
    for row in rows:
        per_class, seconds = [], []
        for label in arguments.classes:
            found = [r for seed in arguments.seeds if (r := read_result(arguments, row, label, seed))]
            per_class.append([r["roc_auc"]["value"] for r in found])
            seconds += [r["training"]["seconds"] / r["training"]["steps"] for r in found]
        even = len({len(values) for values in per_class}) == 1
        whole = [float(np.mean(v)) for v in zip(*per_class, strict=True)] if even else []
        step = f"{np.mean(seconds):.2f}" if seconds else "-"
        lines.append([row, *(_cell(values) for values in per_class), _cell(whole), step])
    return header, lines


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"


def main() -> int:
    arguments = parse_arguments()
    rows = read_rows(arguments)
    if arguments.one:
        use_share_of_processor()
        row, label, seed = arguments.one
        run_one(arguments, rows, row, int(label), int(seed))
        return 0
    failed = run_missing(arguments, rows)
    header, lines = table(arguments, rows)
    results = [
        found
        for row in rows
        for label in arguments.classes
        for seed in arguments.seeds
        if (found := read_result(arguments, row, label, seed))
    ]
    origin = made_by(provenance(arguments.device), results)
    write_json(arguments.out / "results.json", {**origin, "results": results})
    print(plain(header, lines))
    if arguments.markdown:
        note = (
            f"ROC AUC of {arguments.anomalies} training images of each other class against a fifth of "
            f"the class, never trained on; seeds {', '.join(map(str, arguments.seeds))}. Seconds a step are "
            f"those of {arguments.jobs} at a time, so only a rough measure of what a row costs."
        )
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(markdown(origin, header, lines, note), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
