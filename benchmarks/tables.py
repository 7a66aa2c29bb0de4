"""The tables and numbers in README.md and docs/, written from what is in benchmarks/results/, or compared.

    python benchmarks/tables.py --write    # after a new result has been put there
    python benchmarks/tables.py            # fails on a difference, and on a number that comes from nowhere

A page marks what comes from a result; what stands between the marks is written from it:

    <!-- from: photographs -->
    ...
    <!-- / -->
    found <!-- from: photographs task=dogs method=pad found.0.05 .0% -->94 %<!-- / --> of them

Between marks on lines of their own stand the tables of benchmarks/results/photographs.json, by `page` of the
benchmark that wrote it, or a table that is made here (TABLES); where there is no such result, that it is not
measured yet. In a line of text it is one number: the mean of what is named, over the results that are as
said, in Python's format. What looks measured and stands outside of marks is refused (`unfounded`), unless
STATED says where it comes from. Pages of the first release, of which only tables are left, are in ARCHIVED;
each of them names its commit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jobs import exit_status

from pad.errors import PadError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- from: ([^>]*?) -->)(.*?)(<!-- / -->)", re.S)
MISSING = "*Not measured yet at this version.*"
ARCHIVED = ("ablation.md", "ablation-earlier.md", "channels.md", "samples.md")  # of docs/

# What looks measured: a share with three digits, or a number with the unit of a measurement.
_UNITS = r"(?:images/s|pictures/s|seconds?|minutes?|hours?|min|ms|s|MB|GB|times)"
LOOKS_MEASURED = re.compile(rf"(?<![\w.])(?:\d*\.\d{{3,}}|\d[\d,.]*\s{_UNITS})(?![\w/-])|\d[\d,.]*×(?!\d)")
NOT_LOOKED_AT = re.compile(r"```.*?```|`[^`]*`|<!--.*?-->|\]\([^)]*\)|arXiv:[\d.]+|<[^>]*>", re.S)

# Words before which a number is no measurement: what was asked for, a limit, a default, a computation.
STATED = (
    "within a second",
    "all ten classes (mean 0.951)",  # how the recipe of 0.1 was chosen; docs/how.md
    "came (mean 0.953)",
    "step (mean 0.957)",
    "has 60 seconds",
    "5.2 GB on Linux",  # docs/install.md says how these were taken
    "3.8 GB are there",
    "174 MB are enough",
    "1,600 processors × 50/s | 80,000 pictures/s | 21 minutes",  # docs/scale.md: on paper
    "say 20 µs; one thread | 33 minutes",
    "first**, at some 50,000 pictures/s",
    "1.3 kB a picture | 130 GB",
    "once a machine, 30 s",
    "a machine with 16 GB",
)


def result(name: str) -> Any:
    """What is in benchmarks/results/NAME.json; None where there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# Tables -------------------------------------------------------------------------------------------


def page_of(name: str) -> str:
    """The tables of a result, as the benchmark writes them that its `command` names."""
    content = result(name)
    if content is None:
        return MISSING
    script = re.match(r"python benchmarks/(\w+)\.py", content["command"])
    if script is None:
        raise PadError(f"{name}.json: 'command' names no benchmark")
    return importlib.import_module(script[1]).page(content).rstrip()


def photographs_in_short() -> str:
    """Of each task what the first reader asks: how well, beside what, with how few, and is the rate held."""
    content = result("photographs")
    rows = content["results"]
    peers = ("kNN of embeddings", "PyOD LOF", "kNN on pixels")
    lines = [
        f"Means over draws, measured at commit {content['versions']['commit']}.",
        "",
        f"| normal pictures learnt from | pad | {' | '.join(peers)} | false alarms at 5 % | found |",
        "|---|---:" + "|---:" * (len(peers) + 2) + "|",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        counts = sorted({row["normals"] for row in rows if row["task"] == task})
        for count in (counts[-1], counts[1]):
            group = [row for row in rows if (row["task"], row["normals"]) == (task, count)]
            areas = [_mean([r for r in group if r["method"] == m], "roc_auc") for m in ("pad", *peers)]
            shares = [_mean([r for r in group if r["method"] == "pad"], key)
                      for key in ("false_alarms.0.05", "found.0.05")]  # fmt: skip
            cells = [f"{task}, {count}", *(f"{area:.3f}" for area in areas)]
            lines.append(f"| {' | '.join([*cells, *(_formatted(s, '.0%') for s in shares)])} |")
    return "\n".join(lines)


def published() -> str:
    """Figures of other papers."""
    rows = result("published")["results"]
    lines = ["| dataset | quoted | what it is | method of | mean ROC AUC |", "|---|---|---|---|---:|"]
    for row in rows:
        cells = [row["dataset"], row["method"], row["kind"], row["source"], f"{row['roc_auc']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def zoo() -> str:
    """All models of the zoo that have been evaluated, from the summary.json beside each."""
    lines = [
        "| model | ROC AUC [95 % interval] | average precision | FPR at 95 % TPR | false alarms at 5 % "
        "| made by | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "zoo").glob("*/*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        card = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        training, versions = card["training"], card["versions"]
        commit = f"`{versions.get('commit', '?')}`"
        if "commit" in training:
            commit += f", trained at `{training['commit']}`"
        steps = f"{training['steps']} steps, " if training["steps"] else "quick views, "
        auc = summary["roc_auc"]
        lines.append(
            f"| {path.parent.relative_to(ROOT / 'zoo').as_posix()} | {auc['value']:.3f} [{auc['low']:.3f}, "
            f"{auc['high']:.3f}] | {summary['average_precision']['value']:.3f} | "
            f"{summary['fpr_at_95_tpr']['value']:.3f} | {summary['false_alarm_rate']['value']:.1%} | {steps}"
            f"{training['seconds'] / 60:.1f} min, {training['hardware']} | {commit} |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "photographs-in-short": photographs_in_short,
    "published": published,
    "zoo": zoo,
}


# Numbers ------------------------------------------------------------------------------------------


def number(words: list[str]) -> str:
    """One number: NAME [KEY=VALUE ...] PATH FORMAT. Raises PadError if there is none."""
    name, *chosen, path, form = words
    content = result(name)
    if content is None:
        raise PadError(f"benchmarks/results/{name}.json is not there")
    pairs = [word.split("=", 1) for word in chosen]
    rows = [
        row for row in content["results"] if all(str(row.get(key)) == value for key, value in pairs)
    ] if pairs else [content]  # fmt: skip
    if not rows:
        raise PadError(f"{name}.json has no result that is {' '.join(chosen)}")
    return _formatted(_mean(rows, path), form)


def _mean(rows: list[dict[str, Any]], path: str) -> float:
    return float(np.mean([_at(row, path) for row in rows]))


def _at(value: Any, path: str) -> Any:
    """`found.0.05` of {"found": {"0.05": 0.94}}."""
    if not path:
        return value
    if isinstance(value, list):
        first, _, rest = path.partition(".")
        return _at(value[int(first)], rest)
    for key in sorted(value, key=len, reverse=True):
        if path == key or path.startswith(f"{key}."):
            return _at(value[key], path[len(key) + 1 :])
    raise PadError(f"there is no '{path}' in a result")


def _formatted(value: float, form: str) -> str:
    text = format(value, form)
    return f"{text[:-1]} %" if text.endswith("%") else text


# Pages --------------------------------------------------------------------------------------------


def pages(root: Path = ROOT) -> Iterator[Path]:
    yield root / "README.md"
    yield from (path for path in sorted((root / "docs").rglob("*.md")) if path.name not in ARCHIVED)


def rewritten(text: str) -> str:
    """`text` with everything between marks written anew."""

    def anew(found: re.Match[str]) -> str:
        words = found[2].split()
        if "\n" not in found[3]:
            return f"{found[1]}{number(words)}{found[4]}"
        made = TABLES[words[0]]() if words[0] in TABLES else page_of(words[0])
        return f"{found[1]}\n{made}\n{found[4]}"

    return MARKED.sub(anew, text)


def unfounded(text: str) -> list[str]:
    """What looks measured outside of marks, of code and of what is stated, with the words before it."""
    rest = MARKED.sub(lambda found: "\n" * found[0].count("\n") + " § ", text)
    rest = NOT_LOOKED_AT.sub(lambda found: "\n" * found[0].count("\n") + " § ", rest)
    for words in STATED:
        rest = rest.replace(words, "§")
    return [
        f"line {rest.count(chr(10), 0, found.start()) + 1}: "
        f"'{' '.join(rest[max(0, found.start() - 40) : found.end()].split())}'"
        for found in LOOKS_MEASURED.finditer(rest)
    ]


def faults(root: Path = ROOT) -> list[str]:
    """What is wrong, a line each."""
    found: list[str] = []
    shown: set[str] = set()
    for path in pages(root):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        shown |= {words.split()[0] for _, words, _, _ in MARKED.findall(text)}
        for old, new in zip(MARKED.findall(text), MARKED.findall(rewritten(text)), strict=True):
            if old != new:
                found.append(
                    f"{name}: '{old[1]}' is not what its result says; run benchmarks/tables.py --write"
                )
        found += [f"{name}, {where} comes from no result" for where in unfounded(text)]
    found += [
        f"benchmarks/results/{path.name} is shown nowhere"
        for path in sorted(RESULTS.glob("*.json"))
        if path.stem not in shown
    ]
    found += [
        f"docs/{name} names no commit"
        for name in ARCHIVED
        if not re.search(r"^commit [0-9a-f]{12}", (root / "docs" / name).read_text(encoding="utf-8"), re.M)
    ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write what stands between marks anew")
    arguments = parser.parse_args()
    if arguments.write:
        for path in pages():
            text = path.read_text(encoding="utf-8")
            if (new := rewritten(text)) != text:
                path.write_text(new, encoding="utf-8")
                print(f"written: {path.relative_to(ROOT)}")
    wrong = faults()
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
