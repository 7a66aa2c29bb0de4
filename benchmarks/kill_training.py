"""Whether a training that is killed, again and again, comes to the same bytes as one that is not.

    python benchmarks/kill_training.py [--data NORMAL_IMAGES] [--kills 100] [--seed 0] [--out FILE.json]

One run is trained in one go. Others are killed (SIGKILL) one to four times each, and go on with `--resume`
until they are finished. The moments are random: one in five within the first second, two in five within the
time that the run in one go took, two in five within what that took from its first step on, counted from the
first step. Of each run the model's tensors, its calibration and its config (but for the seconds that it took
and the versions, which may change meanwhile) must be the same, no line of the log twice, and nothing left
behind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from provenance import plain, provenance, write_json

from pad.store.model_folder import present
from pad.store.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
BOOTS = ROOT / "tests" / "data" / "fashion" / "train" / "ankle-boot"
MOST_KILLS = 4  # of one run
KINDS = ("first second", "stepping", "any time", "stepping", "any time")  # of moments, in turn
STEPS = 24
SETTINGS = (
    f"steps={STEPS}", "latent_dim=8", "generator_channels=[8,8,8]", "encoder_channels=[8,8,8]",
    "critic_channels=[8,8,8]", "latent_critic_channels=[16]", "layers=relu1_2", "batch_size=8", "log_every=1",
    "checkpoint_every=4", "sample_every=8", "views=generator",
)  # fmt: skip
STATES = ("nothing yet", "no checkpoint yet", "training", "trained, no model yet", "model written")


def start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    """`train.py WORDS` on one thread of a CPU."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), *words, "--device", "cpu"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def state_of(folder: RunFolder) -> str:
    """How far a run has come, as its folder shows it: one of STATES."""
    if not (folder.path / "run.yaml").exists():
        return STATES[0]
    if not folder.checkpoints():
        return STATES[1]
    if folder.checkpoints()[-1].stem != f"step-{STEPS:08d}":
        return STATES[2]
    return STATES[4] if present(folder.model) else STATES[3]


def content_of(folder: Path) -> dict[str, Any]:
    """What has to be the same of a finished run."""
    config = yaml.safe_load((folder / "model" / "config.yaml").read_text(encoding="utf-8"))
    del config["training"]["seconds"], config["versions"]
    log = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "model.safetensors": (folder / "model" / "model.safetensors").read_bytes(),
        "calibration.json": (folder / "model" / "calibration.json").read_bytes(),
        "config.yaml": config,
        "log.jsonl": [json.loads(line)["step"] for line in log],
        "files": sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()),
    }


def finish(process: subprocess.Popen[bytes], what: str) -> None:
    """Waits for a run that must end well or was killed."""
    _, err = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"{what}: exit status {process.returncode}\n{err.decode(errors='replace')}")


def stepping(process: subprocess.Popen[bytes], folder: RunFolder) -> bool:
    """Waits for the next line of the log, or for the end. Returns whether the process goes on."""
    lines = folder.log.stat().st_size if folder.log.exists() else 0
    while process.poll() is None:
        if folder.log.exists() and folder.log.stat().st_size > lines:
            return True
        time.sleep(0.01)
    return False


def killed_run(number: int, words: list[str], path: Path, most: int, draw: Moments) -> list[dict[str, Any]]:
    """Kills a run up to `most` times and lets it finish. Returns the kills."""
    kills: list[dict[str, Any]] = []
    folder = RunFolder(path)
    while True:
        resuming = (path / "run.yaml").exists()
        process = start(["--resume", "--out", str(path)] if resuming else [*words, "--out", str(path)])
        if len(kills) < most:
            kind, seconds = draw()
            if kind != "stepping" or stepping(process, folder):
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    process.kill()
        finish(process, f"run {number} after {len(kills)} kills")
        if process.returncode == 0:
            return kills
        kills.append({"run": number, "kind": kind, "second": round(seconds, 2), "state": state_of(folder)})


class Moments:
    """Draws when to kill: (kind, seconds)."""

    def __init__(self, seed: int, whole: float, steps: float) -> None:
        self.random, self.count = random.Random(seed), 0
        self.within = {"first second": 1.0, "any time": whole, "stepping": steps}

    def __call__(self) -> tuple[str, float]:
        kind = KINDS[self.count % len(KINDS)]
        self.count += 1
        return kind, self.random.uniform(0, self.within[kind])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", default=[str(BOOTS)])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("kill_training.json"))
    args = parser.parse_args()

    words = ["--data", *args.data, "--set", *SETTINGS]
    kills: list[dict[str, Any]] = []
    different: list[dict[str, Any]] = []
    runs = 0
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        begun = time.monotonic()
        process = start([*words, "--out", str(whole)])
        stepping(process, RunFolder(whole))
        first_step = time.monotonic() - begun
        finish(process, "the run in one go")
        seconds = time.monotonic() - begun
        expected = content_of(whole)
        print(
            f"in one go: {seconds:.1f} s, of which {seconds - first_step:.1f} s from the first step on",
            flush=True,
        )
        draw = Moments(args.seed, seconds, seconds - first_step)
        chance = random.Random(args.seed)
        while len(kills) < args.kills:
            folder = Path(temporary) / f"run-{runs}"
            most = min(chance.randint(1, MOST_KILLS), args.kills - len(kills))
            kills += killed_run(runs, words, folder, most, draw)
            found = content_of(folder)
            if unequal := [key for key in expected if found[key] != expected[key]]:
                different.append({"run": runs, "unequal": unequal})
            shutil.rmtree(folder)
            runs += 1
            print(f"{len(kills)} kills, {runs} runs finished, {len(different)} not equal", flush=True)
    count = Counter(kill["state"] for kill in kills)
    first = Counter(kill["state"] for kill in kills if kill["kind"] == KINDS[0])
    rows = [(state, str(count[state]), str(first[state])) for state in STATES]
    rows.append(("all", str(len(kills)), str(sum(first.values()))))
    print(plain(("killed with", "kills", "within the first second"), rows))
    print(f"{runs} runs finished after {len(kills)} kills; not equal to the one in one go: {len(different)}")
    result = {"seconds": round(seconds, 1), "runs": runs, "different": different, "kills": kills}
    write_json(args.out, {**provenance(), "settings": list(SETTINGS), **result})
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
