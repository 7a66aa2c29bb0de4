"""All evidence in one run: every benchmark whose result the pages show, one after another, resumable.

    python benchmarks/run_all.py --data-root DIR --dry-run     # what would run, and for how many hours
    python benchmarks/run_all.py --data-root DIR [--out DIR] [--only NAME ...] [--again]
    python benchmarks/run_all.py --quick --out DIR             # minutes, on pictures in the tree

DIR holds the data sets as the benchmarks expect them (`dogs-cats`, `magnetic-tiles`, `cifar10-2000`, and the
files of Fashion-MNIST). A result is OUT/NAME.json; what this program has made with the same words is not made
again, but with --again, so that a run which was stopped goes on with the job that it was at. Without --out
the results are the tree's own (benchmarks/results), and `python benchmarks/tables.py --write` shows them. A
job that fails is told and does not stop the others; then the exit status is 1. What jobs print, and which are
done, is in OUT/.run_all. Hours are those on two cores of a server, estimated, to plan by. The numbers of
--quick mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import exit_status

from pad.errors import PadError
from pad.provenance import versions
from pad.store.files import atomic

ROOT = Path(__file__).resolve().parent.parent
STATE = ".run_all"  # in the folder of results


@dataclass(frozen=True)
class Job:
    """One result. In its words DATA is the data root, OUT the file that is written, TREE the source tree."""

    name: str
    hours: float
    script: str
    words: str
    quick: str | None = None  # words on pictures in the tree; None: not part of --quick
    after: str = "--out OUT"

    def command(self, data: Path | None, out: Path, quick: bool) -> list[str]:
        words = self.quick if quick else self.words
        assert words is not None
        places = {"DATA": str(data), "OUT": str(out), "TREE": str(ROOT)}
        filled = [
            part if (name := part.partition("/")[0]) not in places else places[name] + part[len(name) :]
            for part in f"{words} {self.after}".split()
        ]
        return [sys.executable, str(ROOT / "benchmarks" / f"{self.script}.py"), *filled]


BOOTS = "TREE/tests/data/fashion"
PHOTOGRAPHS = "--data-root DATA --tasks dogs cats tiles"
CLASSES = " ".join(f"fashion-mnist:{label}" for label in range(10))
JOBS = (
    Job("photographs", 1.2, "photographs", f"{PHOTOGRAPHS} --seeds 0 1 2 --few 16 60 200 --draws 5"),
    Job("promise", 3.0, "photographs", f"{PHOTOGRAPHS} --few 16 60 200 --splits 200"),
    Job("cifar10", 1.5, "photographs", "--data-root DATA --tasks cifar10"),
    Job("fashion-mnist", 2.5, "photographs", f"--data-root DATA --tasks {CLASSES}"),
    Job("localize", 0.6, "localize", "--data-root DATA --tasks magnetic-tiles"),
    Job(
        "lighting",
        0.7,
        "lighting",
        "--data-root DATA",
        "--tasks tool --images 20 --anomalies 6 --folds 2 --tolerate none",
    ),
    Job("contamination", 0.8, "contamination", "--data-root DATA --device cpu --draws 2"),
    Job(
        "stream",
        0.5,
        "stream",
        "--normal DATA/dogs-cats/train/dog --new DATA/dogs-cats/train/cat "
        "--strangers DATA/magnetic-tiles/test",
        f"--normal {BOOTS}/train/ankle-boot {BOOTS}/test/normal --new {BOOTS}/test/trouser "
        f"--strangers {BOOTS}/test/bag {BOOTS}/test/sandal --fit 100 --streams 8",
    ),
    Job(
        "contrast",
        0.1,
        "contrast",
        "TREE/tests/data/fashion/train TREE/tests/data/photographs",
        "TREE/tests/data/photographs",
    ),
    Job(
        "export",
        0.4,
        "export",
        "--models zoo:fashion-mnist/bag zoo:digits/three zoo:patches/retina zoo:surfaces/gravel "
        "--data fashion-mnist:8 TREE/tests/data --data-root DATA --images 1000 --repeats 20",
        "--models zoo:digits/three --data TREE/tests/data/fashion/test --images 4 --repeats 2",
    ),
    Job("serve", 0.1, "serve", "--clients 64 --seconds 60 --mutated 2000"),
    Job("cluster", 0.2, "cluster", "--data-root DATA"),
    Job("views-speed", 0.5, "views_speed", "--many 100000", "--images 16 --rounds 1 --many 40"),
    Job("speed", 1.0, "speed", "--data-root DATA --curve 5 --device cpu"),
)


def made_by(job: Job, quick: bool) -> dict[str, Any]:
    """What a result has to have been made by; and the commit, to be told."""
    words = job.quick if quick else job.words
    return {"script": job.script, "words": words, "commit": versions().get("commit", "unknown")}


def done_at(job: Job, folder: Path, quick: bool) -> str | None:
    """The commit at which its result was made, if that is there, whole, and made by the same words."""
    try:
        json.loads((folder / f"{job.name}.json").read_text(encoding="utf-8"))
        stamp = json.loads((folder / STATE / f"{job.name}.done").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp["commit"] if {**made_by(job, quick), "commit": stamp["commit"]} == stamp else None


def run_job(job: Job, data: Path | None, folder: Path, quick: bool) -> int:
    """Runs it into another place, from which its result is taken when it is whole: a benchmark of many tasks
    writes the first ones before it is done. Returns its exit status."""
    partial = folder / STATE / "partial" / f"{job.name}.json"
    partial.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command, environment = job.command(data, partial, quick), {**os.environ, "PYTHONPATH": path}
    with (folder / STATE / f"{job.name}.log").open("ab") as log:
        status = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
    if status == 0:
        partial.replace(folder / f"{job.name}.json")
        with atomic(folder / STATE / f"{job.name}.done") as file:
            file.write((json.dumps(made_by(job, quick), indent=1) + "\n").encode())
    return status


def chosen(arguments: argparse.Namespace) -> list[Job]:
    """The jobs asked for. Raises PadError for an unknown name."""
    jobs = {job.name: job for job in JOBS if not arguments.quick or job.quick is not None}
    names = arguments.only or list(jobs)
    for name in names:
        if name not in jobs:
            raise PadError(f"--only {name}: there is no such result; there are {', '.join(jobs)}")
    return [jobs[name] for name in names]


def run(arguments: argparse.Namespace) -> int:
    jobs = chosen(arguments)
    needs_data = not arguments.quick and any("DATA" in job.words for job in jobs)
    if needs_data and arguments.data_root is None:
        raise PadError("--data-root DIR: where the data sets lie; or say --quick")
    if arguments.quick and arguments.out is None:
        raise PadError("--quick takes --out DIR: its numbers mean nothing, and are no evidence")
    if arguments.data_root is not None and not arguments.data_root.is_dir():
        raise PadError(f"--data-root {arguments.data_root}: there is no such folder")
    data = arguments.data_root and arguments.data_root.resolve()
    folder = (arguments.out or ROOT / "benchmarks" / "results").resolve()
    done = {job: None if arguments.again else done_at(job, folder, arguments.quick) for job in jobs}
    missing = [job for job in jobs if done[job] is None]
    for job in jobs:
        hours = "a minute" if arguments.quick else f"about {job.hours:g} h"
        print(f"{job.name:14} {f'done at {done[job]}' if done[job] else hours}")
    if not arguments.quick:
        print(f"together about {sum(job.hours for job in missing):.1f} h", flush=True)
    if arguments.dry_run:
        return 0
    failed = 0
    for job in missing:
        begun = time.perf_counter()
        status = run_job(job, data, folder, arguments.quick)
        log = folder / STATE / f"{job.name}.log"
        told = f"failed with status {status}, see {log}" if status else "done"
        print(f"{job.name}: {told}, {(time.perf_counter() - begun) / 60:.1f} min", flush=True)
        failed += bool(status)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where all data sets lie")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(job.name for job in JOBS))
    parser.add_argument("--quick", action="store_true", help="a minute a job, on pictures in the tree")
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and how long")
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(exit_status(main))
