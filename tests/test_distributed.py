"""Training on two processes: the model that one process trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import pad

ROOT = Path(__file__).parent.parent
SMALL = [
    "views=[generator]",
    "precision=float32",
    "latent_dim=8",
    "generator_channels=[8,8,8]",
    "encoder_channels=[8,8,8]",
    "critic_channels=[8,8,8]",
    "latent_critic_channels=[16]",
    "batch_size=16",
    "log_every=1",
    "sample_every=0",
    "schedule=constant",
]
# At the default rates adversarial training makes a thousand times as much of a rounding error in five steps;
# one thread and two differ as much then as one process and two.
SLOW = ["learning_rate=2e-5", "critic_learning_rate=2e-5"]


def words(boots: Path, out: Path, *settings: str, steps: int, more: tuple[str, ...] = ()) -> list[str]:
    given = ["--data", str(boots), "--set", *SMALL, *settings]
    if "--resume" in more:
        given = []
    return [
        str(ROOT / "train.py"),
        "--out",
        str(out),
        *given,
        "--steps",
        str(steps),
        "--device",
        "cpu",
        *more,
    ]


def start(arguments: list[str], processes: int) -> subprocess.Popen[str]:
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def train(arguments: list[str], processes: int) -> str:
    with start(arguments, processes) as process:
        out, error = process.communicate(timeout=280)
    assert process.returncode == 0, error
    return out


def losses(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_near(one: Path, other: Path, tolerance: float) -> None:
    ours, theirs = losses(one), losses(other)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
    for a, b in zip(ours, theirs, strict=True):
        names = [name for name in a if name.endswith("_loss")]
        assert len(names) == 5
        for name in names:
            assert a[name] == pytest.approx(b[name], abs=tolerance), (a["step"], name)


def test_two_processes_train_as_one_and_one_goes_on(boots: Path, tmp_path: Path) -> None:
    train(words(boots, tmp_path / "one", *SLOW, steps=50), 1)
    told = train(words(boots, tmp_path / "two", *SLOW, steps=50), 2)
    assert told.count("training on") == 1  # the first one speaks
    assert_near(tmp_path / "one", tmp_path / "two", 1e-3)

    # What two have begun one finishes.
    run = tmp_path / "both"
    train(words(boots, run, *SLOW, steps=25), 2)
    train(words(boots, run, steps=50, more=("--resume",)), 1)
    assert_near(tmp_path / "one", run, 1e-3)

    one, two = (pad.load(tmp_path / name, device="cpu") for name in ("one", "two"))
    assert one.trained_on is not None
    assert two.trained_on is not None
    assert (one.trained_on == two.trained_on).all()
    assert two.score(boots) == pytest.approx(one.score(boots), rel=0.02)


@pytest.mark.parametrize("tolerate", ["none", "brightness=0.2,flip,rotation=5"])
def test_a_step_is_the_same_at_any_rate(boots: Path, tmp_path: Path, tolerate: str) -> None:
    for count in (1, 2):
        train(words(boots, tmp_path / str(count), f"tolerate={tolerate}", steps=2), count)
    assert_near(tmp_path / "1", tmp_path / "2", 5e-5)


def test_a_killed_process_ends_the_run_which_one_finishes(boots: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = words(boots, run, "checkpoint_every=5", steps=100_000)
    with start(arguments, 2) as process:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "step-00000005.pt").is_file():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(int(workers[-1]), signal.SIGKILL)
        _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "another process of this training has ended; go on with --resume" in error
    assert not (run / "model").exists()
    reached = int(sorted((run / "checkpoints").iterdir())[-1].stem[-8:])
    train(words(boots, run, steps=reached + 3, more=("--resume",)), 1)
    assert [entry["step"] for entry in losses(run)] == list(range(1, reached + 4))
    assert pad.load(run, device="cpu").card["training"]["steps"] == reached + 3


def test_what_processes_cannot_share(boots: Path, tmp_path: Path) -> None:
    with start(words(boots, tmp_path / "a", "batch_size=15", steps=2), 2) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "15 images cannot be shared by 2 processes" in error


def test_quick_views_take_one_process(boots: Path, tmp_path: Path) -> None:
    arguments = [str(ROOT / "train.py"), "--out", str(tmp_path / "a"), "--data", str(boots), "--steps", "0",
                 "--set", "view_size=32", "--device", "cpu"]  # fmt: skip
    assert train(arguments, 2).count("fitting the views") == 1
    assert len(pad.load(tmp_path / "a", device="cpu").calibrated()) == 120
