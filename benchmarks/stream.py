"""What a watcher does with a stream: strangers among what is normal, then a new kind that becomes normal,
then drift.

    python benchmarks/stream.py --normal DIR [DIR ...] --new DIR --strangers DIR [DIR ...] [--fit 200]
                                [--work DIR] [--out FILE] [--markdown FILE]

A model of the quick views is fitted on `--fit` of the normal pictures (a random choice), and `pad watch` is
given the others with 5 % strangers among them. Then every fifth picture is of the new kind until that is
proposed; normal pictures are drawn again for this, since a watcher learns nothing from them. The proposal is
accepted on the command line, and the same mixture goes on, with the same strangers again. A second watcher,
with `--adopt never`, gets the new kind as well. Last, drift: from what was measured of the normal pictures
in the stream and of the same ones made darker, streams are drawn at random and shown to the test.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jobs import exit_status, use_share_of_processor
from PIL import Image, ImageEnhance
from provenance import markdown, plain, provenance, write_json

import pad
from pad.detector import Detector
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.watching.drift import DELTA, Drift
from pad.watching.rules import LEAST_MEMBERS
from pad.watching.state import Event, State

FPR = 0.05
SHARE = 5  # every fifth is of the new kind
STRANGERS = 0.05
DARKER = 0.8
PARTS = ("adoption", "never", "drift")


class Watched:
    """A running `pad watch -`, and the lines that it writes."""

    def __init__(self, model: Path, folder: Path, adopt: str, device: str) -> None:
        self.state, self.out, self.sent = folder / "state", folder / "lines.jsonl", 0
        words = [
            "watch",
            model,
            "-",
            "--state",
            self.state,
            "--out",
            self.out,
            "--adopt",
            adopt,
            "--fpr",
            FPR,
        ]
        command = [sys.executable, "-m", "pad", *map(str, words), "--device", device]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE)

    def show(self, pictures: Sequence[Path]) -> list[dict[str, Any]]:
        """The lines of some pictures, in order."""
        assert self.process.stdin is not None
        for picture in pictures:
            self.sent += 1
            self.process.stdin.write(json.dumps({"path": str(picture), "id": self.sent}).encode() + b"\n")
        self.process.stdin.flush()
        while len(lines := self._lines()) < self.sent:
            if self.process.poll() is not None:
                raise PadError("the watcher has ended")
            time.sleep(0.02)
        return lines[-len(pictures) :]

    def _lines(self) -> list[dict[str, Any]]:
        if not self.out.exists():
            return []
        return [json.loads(line) for line in self.out.read_bytes().splitlines(True) if line.endswith(b"\n")]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def files(folders: Sequence[Path]) -> list[Path]:
    """All pictures in some folders."""
    return [content for content in resolve(list(folders), "evaluate").contents if isinstance(content, Path)]


def flagged(lines: Sequence[dict[str, Any]]) -> float:
    """The share that is flagged."""
    return float(np.mean([line["verdict"] == "anomaly" for line in lines])) if lines else float("nan")


def mixture(one: Sequence[Path], other: Sequence[Path], rng: np.random.Generator) -> list[Path]:
    """Both in random order."""
    both = [*one, *other]
    return [both[i] for i in rng.permutation(len(both))]


def of(lines: Sequence[dict[str, Any]], among: Sequence[Path]) -> list[dict[str, Any]]:
    """The lines of some pictures."""
    names = set(map(str, among))
    return [line for line in lines if line["path"] in names]


def adoption(arguments: argparse.Namespace, model: Path, normal: list[Path], work: Path) -> dict[str, Any]:
    """Before, at and after the adoption of the new kind."""
    rng = np.random.default_rng(arguments.seed)
    kinds = [files([folder]) for folder in arguments.strangers]
    each = -(-round(STRANGERS * len(normal)) // len(kinds))
    strangers = [kind[i] for kind in kinds for i in rng.permutation(len(kind))[:each]]
    pool = files([arguments.new])
    new = [pool[i] for i in rng.permutation(len(pool))[: arguments.new_pictures]]
    watched = Watched(model, work, "ask", arguments.device)
    before = watched.show(mixture(normal, strangers, rng))
    lines, count = [], 0
    state = State(watched.state)
    while not (proposals := _of_new(state, lines, new)) and count < len(new):
        lines += watched.show([*(normal[i] for i in rng.integers(len(normal), size=SHARE - 1)), new[count]])
        count += 1
    if not proposals:
        raise PadError(f"{count} pictures of the new kind were shown, and it was not proposed")
    others = len(state.proposals()) - 1
    begun = time.perf_counter()
    words = ["watch", "accept", str(proposals[0]), "--state", str(watched.state)]
    subprocess.run([sys.executable, "-m", "pad", *words], check=True, stdout=subprocess.DEVNULL)
    accepted = state.decisions()[-1]["time"]
    again: list[dict[str, Any]] = []
    shown = count
    while not again or again[-1]["version"] < 2:
        again += watched.show([normal[int(rng.integers(len(normal)))]])
        if time.perf_counter() - begun > 60:
            raise PadError("the watcher did not take the decision")
    seconds = again[-1]["time"] - accepted
    rest = new[shown:]
    drawn = [normal[i] for i in rng.integers(len(normal), size=(SHARE - 1) * len(rest))]
    after = watched.show(mixture([*rest, *drawn], strangers, rng))
    watched.close()
    members = set(state.member_events(proposals[0]))
    core = [line for line in [*before, *lines] if line["id"] in members]
    found = {line["path"] for line in of(before, strangers) if line["verdict"] == "anomaly"}
    return {
        "normal pictures": len(normal),
        "strangers": len(strangers),
        "normal flagged before": flagged(of(before, normal)),
        "strangers found before": flagged(of(before, strangers)),
        "new kind flagged before": flagged(of(lines, new)),
        "new kind shown until proposed": count,
        "pictures in the proposal": len(members),
        "of them of the new kind": len(of(core, new)),
        "other proposals": others,
        "seconds from accepting to the first picture judged by it": seconds,
        "new kind after": len(rest),
        "new kind flagged after": flagged(of(after, rest)),
        "normal flagged after": flagged(of(after, normal)),
        "of strangers found before, found after": flagged([line for line in after if line["path"] in found]),
        "alarms of drift": [alarm["changed"] for alarm in state.alarms()],
    }


def _of_new(state: State, lines: Sequence[dict[str, Any]], new: Sequence[Path]) -> list[int]:
    """Proposals most of whose pictures are of the new kind."""
    ids = {line["id"] for line in of(lines, new)}
    return [
        p.id
        for p in state.proposals()
        if 2 * len(ids & set(events := state.member_events(p.id))) > len(events)
    ]


def never(arguments: argparse.Namespace, model: Path, work: Path) -> dict[str, Any]:
    """The new kind, where nothing may be adopted."""
    watched = Watched(model, work, "never", arguments.device)
    lines = watched.show(files([arguments.new])[: arguments.new_pictures])
    watched.close()
    state = State(watched.state)
    half = len(lines) // 2
    return {
        "flagged in the first half": flagged(lines[:half]),
        "flagged in the second half": flagged(lines[half:]),
        "versions": len(state.versions()),
        "proposals": len(state.proposals()),
    }


def drift(arguments: argparse.Namespace, model: Path, normal: list[Path], work: Path) -> dict[str, Any]:
    """False alarms of streams without drift, and how soon one is told."""
    darker = work / "darker"
    darker.mkdir(parents=True)
    for number, path in enumerate(normal):
        with Image.open(path) as picture:
            ImageEnhance.Brightness(picture.convert("RGB")).enhance(DARKER).save(darker / f"{number:05d}.png")
    measured = {}
    for name, pictures in (("as it is", normal), ("darker", sorted(darker.iterdir()))):
        watched = Watched(model, work / name.replace(" ", "-"), "never", arguments.device)
        watched.show(pictures)
        watched.close()
        measured[name] = State(watched.state).events(limit=len(pictures))
    calibration = Detector.load(model, arguments.device).calibration
    assert calibration is not None
    threshold = calibration.threshold(FPR)
    rng = np.random.default_rng(arguments.seed)

    def alarm(stream: Sequence[Event], number: int) -> tuple[int, str] | None:
        test = Drift(threshold)
        for place, event in enumerate(stream, 1):
            event.id = number * 10**6 + place  # which decides the random numbers
            if found := test.see(event):
                return place, found.changed
        return None

    def drawn(name: str, count: int) -> list[Event]:
        events = measured[name]
        return [Event(**vars(events[i])) for i in rng.permutation(len(events))[:count]]

    without = [alarm(drawn("as it is", len(normal)), number) for number in range(arguments.streams)]
    half = len(normal) // 2
    delays, words = [], []
    for number in range(arguments.streams // 4):
        first = drawn("as it is", half)
        found = alarm([*first, *drawn("darker", 300)], 10**4 + number)
        delays.append(found[0] - half if found and found[0] > half else None)
        words.append(found[1] if found else "")
    told = [delay for delay in delays if delay is not None]
    return {
        "delta": DELTA,
        "streams without drift": arguments.streams,
        "false alarms": sum(found is not None for found in without),
        "streams that become darker": len(delays),
        "pictures before": half,
        "told within 300 pictures": len(told),
        "pictures until told, median": float(np.median(told)) if told else None,
        "pictures until told, most": max(told, default=None),
        "named as darker": sum("darker" in text for text in words),
        "flagged as it is": float(np.mean([e.verdict == "anomaly" for e in measured["as it is"]])),
        "flagged darker": float(np.mean([e.verdict == "anomaly" for e in measured["darker"]])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--normal", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--new", type=Path, required=True, metavar="DIR")
    parser.add_argument("--strangers", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--fit", type=int, default=200, help="normal pictures that the model is fitted on")
    parser.add_argument("--new-pictures", type=int, default=150, help="of the new kind")
    parser.add_argument("--streams", type=int, default=200, help="without drift")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("stream.json"), metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    use_share_of_processor()
    normal = files(arguments.normal)
    if not LEAST_MEMBERS < arguments.fit < len(normal) - 20:
        raise PadError(f"--fit {arguments.fit} of {len(normal)} normal pictures leaves no stream of them")
    order = np.random.default_rng(arguments.seed).permutation(len(normal))
    origin, results = provenance(arguments.device), {}
    with TemporaryDirectory() as folder:
        work = Path(folder)
        begun = time.perf_counter()
        fitted = pad.fit(
            [normal[i] for i in order[: arguments.fit]], steps=0, seed=arguments.seed, device=arguments.device
        )
        fitted.save(work / "model")
        print(
            f"fitted on {arguments.fit} in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True
        )
        others = [normal[i] for i in order[arguments.fit :]]
        if "adoption" in arguments.parts:
            results["adoption"] = adoption(arguments, work / "model", others, work / "ask")
        if "never" in arguments.parts:
            results["never"] = never(arguments, work / "model", work / "never")
        if "drift" in arguments.parts:
            results["drift"] = drift(arguments, work / "model", others, work / "drift")
    content = {**origin, "seed": arguments.seed, "results": results}
    write_json(arguments.out, content)
    print(plain(*table(content)))
    if arguments.markdown:
        arguments.markdown.write_text(page(content), encoding="utf-8")


def table(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [f"{part}: {name}", _cell(value)]
        for part, values in content["results"].items()
        for name, value in values.items()
    ]
    return ["what", "found"], rows


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    return markdown(content, *table(content), f"At a false-alarm rate of {FPR:.0%}.")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return ", ".join(value) or "none" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(exit_status(main))
