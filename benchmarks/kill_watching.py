"""A watcher that is killed at random moments, and what of its events is lost or doubled.

    python benchmarks/kill_watching.py [--model MODEL] [--images DIR] [--kills 100] [--pictures 600] [--out
    FILE]

Pictures appear in a folder, one after the other, while `pad watch` is started, killed with SIGKILL and
started again. Some are flagged and proposed, and by `--adopt after:20` become normal. At the end it is left
to finish, and then every picture must have one event in the state and one line in the output, in the same
order, the same in both; every flagged picture must be in the buffer or in a proposal, once; and alarms
(`--online-fdr`) must be those of the rule that sees each event once. Exits with status 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jobs import exit_status
from provenance import provenance, write_json

import pad
from pad.images.resolve import resolve
from pad.watching.online_fdr import OnlineFdr
from pad.watching.state import FILE, State

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data" / "fashion"
RATE = 0.2  # of false alarms


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: quick views of the tests' boots")
    parser.add_argument("--images", type=Path, default=DATA / "test", metavar="DIR")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("kill_watching.json"), metavar="FILE")
    return run(parser.parse_args())


def run(arguments: argparse.Namespace) -> int:
    origin, chance = provenance(), random.Random(arguments.seed)
    with TemporaryDirectory() as folder:
        work = Path(folder)
        model = arguments.model
        if model is None:
            model = work / "model"
            pad.fit(DATA / "train" / "ankle-boot", steps=0, device="cpu").save(model)
        (work / "in").mkdir()
        coming = threading.Thread(target=_come, args=(arguments, work / "in"), daemon=True)
        coming.start()
        kills, lives = 0, []
        while kills < arguments.kills:
            process = _start(model, work, once=False)
            if chance.random() < 0.25:  # while it starts
                time.sleep(chance.uniform(0, 4))
            else:  # while it judges
                known, limit = _events(work / "state"), time.monotonic() + 60
                while _events(work / "state") == known and coming.is_alive() and time.monotonic() < limit:
                    time.sleep(0.002)
                time.sleep(chance.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            lives.append(_events(work / "state"))
        coming.join()
        while _start(model, work, once=True).wait() != 0:
            pass
        found = _compare(work)
    results = {"kills": kills, "lives that judged something": len(set(lives) - {0}), **found}
    write_json(arguments.out, {**origin, "seed": arguments.seed, "results": results})
    for name, value in results.items():
        print(f"{name}: {value}")
    return int(any(found[name] for name in found if name not in ("pictures", "version")))


def _come(arguments: argparse.Namespace, folder: Path) -> None:
    """Pictures appear, most of them by renaming."""
    paths = [
        content for content in resolve([arguments.images], "evaluate").contents if isinstance(content, Path)
    ]
    chance = random.Random(arguments.seed)
    for number in range(arguments.pictures):
        path = chance.choice(paths)
        shutil.copy(path, folder / f".{number}")
        (folder / f".{number}").rename(folder / f"{number:05d}-{path.parent.name}{path.suffix}")
        time.sleep(arguments.kills * 5 / arguments.pictures)


def _start(model: Path, work: Path, once: bool) -> subprocess.Popen[bytes]:
    words: list[Any] = ["watch", model, work / "in", "--state", work / "state", "--out", work / "lines.jsonl"]
    words += ["--adopt", "after:20", "--online-fdr", RATE, "--device", "cpu"]
    words += ["--once"] if once else []
    command = [sys.executable, "-m", "pad", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def _events(state: Path) -> int:
    try:
        with sqlite3.connect(f"file:{state / FILE}?mode=ro", uri=True) as database:
            return int(database.execute("SELECT COUNT(*) FROM events").fetchone()[0])
    except sqlite3.Error:
        return 0


def _compare(work: Path) -> dict[str, int]:
    """What is wrong, in numbers: all are 0 but `pictures` and `version`."""
    state = State(work / "state")
    events = state.events(limit=10**6)
    names = [event.path for event in events]
    there = {str(path) for path in (work / "in").iterdir()}
    lines = [json.loads(line) for line in (work / "lines.jsonl").read_bytes().splitlines()]
    # A line says of the cluster what was known when it was written.
    told = [{**line, "cluster": 0} for line in lines]
    kept = [*state.buffered(), *(e for p in state.proposals() for e in state.member_events(p.id))]
    flagged = [event.id for event in events if event.verdict == "anomaly"]
    proposed = sum(p.pictures for p in state.proposals())
    rule = OnlineFdr(RATE, json.loads(state.fact("online_fdr"))["n"])
    alarms = [rule.see(event.p_value, event.verdict == "anomaly") if event.p_value is not None else None
              for event in events]  # fmt: skip
    return {
        "pictures": len(there),
        "events lost": len(there - set(names)),
        "events doubled": len(names) - len(set(names)),
        "ids missing": (events[-1].id if events else 0) - len(events),
        "lines that differ": int(told != [{**json.loads(event.line()), "cluster": 0} for event in events]),
        "flagged and kept twice": len(kept) - len(set(kept)),
        "flagged and not accounted for": abs(len(flagged) - len(state.buffered()) - proposed),
        "alarms that differ": sum(event.alarm != alarm for event, alarm in zip(events, alarms, strict=True)),
        "learnt and not there": sum(not state.generator(p).is_file() for p in state.version().learnt),
        "integrity": int(state.database.execute("PRAGMA integrity_check").fetchone() != ("ok",)),
        "version": state.version().id,
    }


if __name__ == "__main__":
    sys.exit(exit_status(main))
