"""`pad evaluate --ray` against `pad evaluate` on the same processors: rates, the same rows, a worker killed.

    python benchmarks/cluster.py [--model zoo:fashion-mnist/bag] [--data fashion-mnist:8] [--data-root DIR]
                                 [--images 20000] [--repeats 3] [--out FILE] [--markdown FILE]

The pictures are written as PNG files, again and again under other names until there are so many. Plain and
Ray take turns, each with all of the pictures and with a tenth of them: the rate is nine tenths of the
pictures over the difference of the times, which leaves out how long Ray and its workers take to start. In a
last run one worker gets SIGKILL half-way.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jobs import exit_status
from provenance import markdown, plain, provenance, write_json

from pad.errors import PadError
from pad.images.resolve import resolve

POLL = 0.02  # seconds


def write_pictures(arguments: argparse.Namespace, folder: Path, count: int) -> None:
    images = resolve(arguments.data, "evaluate", arguments.data_root)
    folder.mkdir()
    for number in range(count):
        images.open(number % len(images)).save(folder / f"{number:06d}.png")


def descendants(process: int) -> list[tuple[int, str]]:
    """All processes below one, with what they call themselves."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            parents[int(entry.name)] = parent, (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    found, below = [], {process}
    while new := {pid for pid, (parent, _) in parents.items() if parent in below} - below:
        below |= new
        found += [(pid, parents[pid][1]) for pid in new]
    return found


def workers(process: int) -> list[int]:
    """Those that score."""
    return [pid for pid, name in descendants(process) if name.startswith("ray::MapWorker")]


def scored(out: Path) -> int:
    """How many rows there are so far."""
    if (out / "scores.journal").is_file():
        return (out / "scores.journal").read_bytes().count(b'.png"')
    return sum(path.read_bytes().count(b".png,") for path in out.glob("scores*.csv"))


def evaluate(
    arguments: argparse.Namespace, pictures: Path, out: Path, ray: bool, kill: bool
) -> dict[str, Any]:
    """One run of the command, watched from outside."""
    command = [
        sys.executable,
        "-m",
        "pad",
        "evaluate",
        arguments.model,
        str(pictures),
        "--out",
        str(out),
        "-q",
    ]
    command += ["--device", arguments.device, *(["--ray"] if ray else [])]
    threads = {"OMP_NUM_THREADS": str(arguments.processors)}
    begun, killed = time.perf_counter(), 0
    process = subprocess.Popen(command, env={**os.environ, **threads}, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(POLL)
        if kill and not killed and scored(out) >= arguments.images / 2 and (found := workers(process.pid)):
            killed = found[0]
            os.kill(killed, signal.SIGKILL)
    if process.returncode:
        raise PadError(f"{'--ray' if ray else 'plain'} ended with status {process.returncode}")
    if kill and not killed:
        raise PadError("no worker was found to be killed: take more --images")
    return {
        "seconds": time.perf_counter() - begun,
        "rows": hashlib.sha256((out / "scores.csv").read_bytes()).hexdigest(),
    }


def run(arguments: argparse.Namespace) -> None:
    runs: dict[str, list[dict[str, Any]]] = {"plain": [], "Ray": [], "Ray, a worker killed": []}
    tenths: dict[str, list[dict[str, Any]]] = {"plain": [], "Ray": []}
    origin = provenance(arguments.device)
    with TemporaryDirectory() as place:
        pictures, tenth = Path(place) / "pictures", Path(place) / "tenth"
        write_pictures(arguments, pictures, arguments.images)
        write_pictures(arguments, tenth, arguments.images // 10)
        for number, kind in enumerate(["plain", "Ray"] * arguments.repeats + ["Ray, a worker killed"]):
            out, ray, kill = Path(place) / f"out{number}", kind != "plain", "killed" in kind
            if not kill:
                tenths[kind].append(evaluate(arguments, tenth, out / "tenth", ray, False))
            runs[kind].append(evaluate(arguments, pictures, out, ray, kill))
            print(f"{kind}: {runs[kind][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    same = {each["rows"] for of_kind in runs.values() for each in of_kind}
    content = {
        **origin,
        "images": arguments.images,
        "processors": arguments.processors,
        "runs": runs,
        "tenths": tenths,
        "same rows": len(same) == 1,
    }
    write_json(arguments.out, content)
    head, rows, note = table(content)
    print(plain(head, rows) + f"\n{note}")
    if arguments.markdown:
        arguments.markdown.write_text(page(content), encoding="utf-8")
    if len(same) > 1:
        raise PadError("rows differ")


def table(content: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Head, rows, and what is to be said below."""
    whole = {kind: median(found) for kind, found in content["runs"].items()}
    tenth = {kind: median(found) for kind, found in content["tenths"].items()}
    count = content["images"] - content["images"] // 10
    rates = {kind: count / (whole[kind] - tenth[kind]) for kind in tenth}
    rows = []
    for kind in whole:
        rate = [f"{rates[kind]:.0f}", f"{rates[kind] / rates['plain']:.0%}"] if kind in rates else ["", ""]
        rows.append([kind, *rate, f"{tenth[kind]:.1f}" if kind in tenth else "", f"{whole[kind]:.1f}"])
    same = "the same bytes" if content["same rows"] else "DIFFERENT"
    note = (
        f"{content['images']:,} pictures, {content['processors']} processors; medians of "
        f"{len(content['runs']['plain'])} runs. scores.csv of all runs: {same}."
    )
    return ["run", "pictures/s", "of plain", "a tenth of them, s", "all, s"], rows, note


def median(runs: list[dict[str, Any]]) -> float:
    """Seconds."""
    return float(np.median([run["seconds"] for run in runs]))


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    return markdown(content, *table(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="zoo:fashion-mnist/bag")
    parser.add_argument("--data", nargs="+", default=["fashion-mnist:8"])
    parser.add_argument("--data-root", metavar="DIR")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processors", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("cluster.json"), metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(exit_status(main))
