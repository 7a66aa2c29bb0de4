"""What the benchmarks share that look at finished runs of `benchmarks/ablation.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ablation import HELD_OUT, job_name
from protocol import Task, training_split_task
from provenance import markdown, plain, provenance

from pad.detector import Detector


def argument_parser(page: str | None) -> argparse.ArgumentParser:
    """Of a benchmark whose text is `page`: which runs, on which images, and where the table goes."""
    parser = argparse.ArgumentParser(description=(page or "").split("\n")[0])
    parser.add_argument("--ablation", type=Path, required=True, metavar="DIR", help="its --out")
    parser.add_argument("--dataset", choices=("fashion-mnist", "mnist", "cifar10"), default="fashion-mnist")
    parser.add_argument("--data-root", type=Path, metavar="DIR")
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 3], metavar="K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--anomalies", type=int, default=200, metavar="N", help="images of each other class")
    parser.add_argument("--held-out", type=float, default=HELD_OUT, metavar="SHARE")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    return parser


def task_of(arguments: argparse.Namespace, label: int) -> Task:
    """What the runs of a class were trained on and judged by."""
    return training_split_task(
        arguments.dataset, label, arguments.data_root, arguments.anomalies, arguments.held_out
    )


def detector_of(arguments: argparse.Namespace, row: str, label: int, seed: int) -> Detector:
    """The model of a finished run. Raises PadError if it is not there."""
    return Detector.load(arguments.ablation / "runs" / job_name(row, label, seed), arguments.device)


def report(
    arguments: argparse.Namespace, header: Sequence[str], rows: Sequence[Sequence[str]], note: str
) -> None:
    """Prints the table, and writes it if asked to."""
    print(plain(header, rows))
    if arguments.markdown:
        arguments.markdown.write_text(
            markdown(provenance(arguments.device), header, rows, note), encoding="utf-8"
        )
