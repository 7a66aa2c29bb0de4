"""What a result needs to be trusted: the command, the commit, the machine and the versions it came from."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pad.devices import pick_device
from pad.provenance import versions
from pad.store.files import atomic


def provenance(device: str = "cpu") -> dict[str, Any]:
    """`command`, `hardware` and `versions` (the commit among them; `+` after it: with changes)."""
    import sklearn

    return {
        "command": command(),
        "hardware": hardware(device),
        "versions": {**versions(), "scikit-learn": str(sklearn.__version__)},
    }


def command() -> str:
    """The command line, as it would be typed in the source tree. Of absolute paths only the end is shown: the
    rest says nothing on another machine."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def shown(path: Path) -> str:
    """A path as results name it: from the root of the source tree, or only its last part."""
    root = Path(__file__).resolve().parent.parent
    whole = path.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else whole.name


def hardware(device: str = "cpu") -> str:
    """`"AMD EPYC 9B14, 2 cores"`, and the graphics card if `device` is one."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    words = f"{name}, {os.cpu_count()} cores"
    chosen = pick_device(device)
    if chosen.type == "cuda":
        import torch

        words += f"; {torch.cuda.get_device_name(chosen)}"
    return words


def made_by(origin: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`origin` with the commits and machines of the results, which may be older than this process; and the
    commits of trainings that were finished before and only scored by these."""
    commits = dict.fromkeys(result["commit"] for result in results)
    machines = dict.fromkeys(result["hardware"] for result in results)
    trained = dict.fromkeys(result.get("training", {}).get("commit") or "" for result in results)
    earlier = [commit for commit in trained if commit and commit not in commits]
    note = f" (trained at {', '.join(earlier)})" if earlier else ""
    versions = {**origin["versions"], "commit": ", ".join(commits) + note}
    return {**origin, "hardware": "; ".join(machines), "versions": versions}


def stamp(device: str) -> dict[str, str]:
    """`commit` and `hardware` of one result."""
    return {"commit": versions().get("commit", "unknown"), "hardware": hardware(device)}


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    with atomic(path) as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def markdown(origin: dict[str, Any], header: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """A Markdown table under the command and commit that it came from."""
    versions = origin["versions"]
    commit = versions.get("commit", "unknown")
    lines = [
        f"`{origin['command']}`  ",
        f"commit {commit}, torch {versions['torch']}, {origin['hardware']}. {note}".strip(),
        "",
        "| " + " | ".join(header) + " |",
        "|---" + "|---:" * (len(header) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same table for a terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    )
