"""Writes the README's tables: `python docs/tables.py`.

The zoo's come from the `summary.json` that the evaluation of a model wrote beside it, the others from the
pages that benchmarks wrote.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
MARKS = re.compile(r"(<!-- written by docs/tables.py: (\S+) -->\n).*?(<!-- / -->)", re.S)


def results() -> str:
    """A Markdown table of all models of the zoo that have been evaluated."""
    lines = [
        "| model | ROC AUC [95 % interval] | average precision | FPR at 95 % TPR | false alarms at 5 % | "
        "training | commit |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "zoo").glob("*/*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        card = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        training, versions = card["training"], card["versions"]
        commit = f"`{versions.get('commit', '?')}`"
        if "commit" in training:
            commit += f", trained at `{training['commit']}`"
        auc = summary["roc_auc"]
        name = path.parent.relative_to(ROOT / "zoo").as_posix()
        lines.append(
            f"| [{name}](zoo/{name}) | {auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}] | "
            f"{summary['average_precision']['value']:.3f} | {summary['fpr_at_95_tpr']['value']:.3f} | "
            f"{summary['false_alarm_rate']['value']:.1%} | {training['steps']} steps, "
            f"{training['seconds'] / 60:.1f} min, {training['hardware']} | {commit} |"
        )
    return "\n".join(lines)


def block(what: str) -> str:
    """The text between the marks of `what`: "zoo", or a page."""
    return results() if what == "zoo" else (ROOT / what).read_text(encoding="utf-8").rstrip()


def main() -> None:
    """Replaces what lies between the marks in README.md."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(MARKS.sub(lambda found: f"{found[1]}{block(found[2])}\n{found[3]}", text), "utf-8")


if __name__ == "__main__":
    main()
