"""What is asked for: typed, kept in run.yaml, and shown by --dry-run before anything is done."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path
from typing import Any

import forked
import pytest
import yaml
from test_cli import SMALL

from pad.errors import PadError
from pad.judging.request import EvaluateRequest
from pad.learning.request import RunRecord, TrainRequest

ROOT = Path(__file__).parent.parent
QUICK = ("views=generator", "size=28", *SMALL)


def train(*words: object) -> subprocess.CompletedProcess[str]:
    return forked.run(["train.py", *map(str, words), "--device", "cpu"], timeout=280, cwd=ROOT)


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Of all files: when they were written, and what is in them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def recipe_in(shown: str) -> dict[str, Any]:
    lines = shown.split("recipe:\n")[1].splitlines()
    return yaml.safe_load("\n".join(line for line in lines if line.startswith("  ")))


@pytest.fixture(scope="module")
def run(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = train("--data", boots, "--out", folder, "--steps", 4, "--set", *QUICK)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_dry_run_shows_what_the_run_then_does_and_writes_nothing(boots: Path, run: Path) -> None:
    before = everything(run.parent)
    dry = run.parent / "dry"
    shown = train("--data", boots, "--out", dry, "--steps", 4, "--set", *QUICK, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("training on 70 images in ankle-boot (read at 28x28, grey")
    assert (
        "50 more are kept for calibration\nfalse-alarm rates can be held from --fpr 0.02 up\n" in shown.stdout
    )
    assert "view generator: relative-perceptual-l1, of pictures of 28 pixels a side" in shown.stdout
    assert shown.stdout.endswith("dry run: nothing was written\n")
    assert not dry.exists()
    assert everything(run.parent) == before
    assert recipe_in(shown.stdout) == yaml.safe_load((run / "run.yaml").read_text())["recipe"]


def test_a_dry_run_of_what_would_be_resumed_or_refused(boots: Path, run: Path) -> None:
    before = everything(run.parent)
    resumed = train("--out", run, "--resume", "--steps", 9, "--dry-run")
    assert resumed.returncode == 0, resumed.stderr
    assert "for 9 steps, from step 4; " in resumed.stdout
    refused = train("--data", boots, "--out", run, "--dry-run")
    assert refused.returncode == 2
    assert "already holds a run; go on with --resume" in refused.stderr
    assert everything(run.parent) == before


def test_a_dry_run_of_quick_views_names_them(boots: Path, tmp_path: Path) -> None:
    shown = train("--data", boots, "--out", tmp_path / "run", "--steps", 0, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "fitting the views whole, middle, parts on 120 images in ankle-boot" in shown.stdout
    assert "view parts: features of efficientnet-lite2, of pictures of 96 pixels a side" in shown.stdout
    assert not (tmp_path / "run").exists()


def test_the_command_of_a_request_asks_for_it(boots: Path, tmp_path: Path) -> None:
    request = TrainRequest(
        out=str(tmp_path / "a run"),
        data=(str(boots),),
        config="folder",
        set=("layers={relu2_2: 1}", *QUICK),
        steps=7,
        seed=3,
        tolerate="brightness=0.1",
    )
    words = shlex.split(request.command())
    assert words[:2] == ["python", "train.py"]
    shown = train(*words[2:], "--dry-run")
    assert shown.returncode == 0, shown.stderr
    recipe = recipe_in(shown.stdout)
    assert (recipe["steps"], recipe["seed"], recipe["size"]) == (7, 3, 28)
    assert recipe["tolerate"] == {"brightness": 0.1}
    assert str(tmp_path / "a run") in words


@pytest.mark.parametrize(
    ("key", "value"), [("data", "boots"), ("minutes", "five"), ("set", [1]), ("from", 3), ("recipe", [])]
)
def test_a_record_that_pad_did_not_write_is_refused_by_its_key(
    key: str, value: object, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({key: value}))
    done = train("--out", tmp_path, "--resume")
    assert done.returncode == 2
    assert f"run.yaml: '{key}' is not what `pad train` writes there" in done.stderr


def test_a_record_comes_back_as_it_was_written() -> None:
    request = TrainRequest("run", ("a", "b"), set=("size=28",), minutes=2.5, start="zoo:x", replay=("c",))
    record = RunRecord().with_request(request, False)
    assert list(record.to_dict()) == [
        "data", "data_root", "config", "set", "steps", "minutes", "seed", "from", "from_sha256", "replay",
        "replay_sha256", "check", "recipe",
    ]  # fmt: skip
    written = yaml.safe_load(yaml.safe_dump(record.to_dict()))
    assert RunRecord.read(written, Path("run.yaml")) == record
    # What is asked for anew counts; what is not, is as it was.
    again = record.with_request(TrainRequest("run", steps=9, set=("seed=1",), resume=True), True)
    assert (again.data, again.steps, again.minutes) == (["a", "b"], 9, None)
    assert (again.set, again.start, again.replay) == (["size=28", "seed=1"], "zoo:x", ["c"])


def test_requests_are_frozen_and_say_what_does_not_go_together() -> None:
    request = EvaluateRequest("zoo:x", ("a",), out="-")
    assert request.to_stdout
    assert request.folder is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.fpr = 0.1  # type: ignore[misc]
    with pytest.raises(PadError, match="--confidence goes with --fpr, not with --fdr"):
        EvaluateRequest("zoo:x", ("a",), confidence=0.9, fdr=0.1)
    for out in (None, "-"):
        with pytest.raises(PadError, match="--report writes files: name a folder for them with --out"):
            EvaluateRequest("zoo:x", ("a",), out=out, report=True)
    with pytest.raises(PadError, match="--replay goes with --from"):
        RunRecord().with_request(TrainRequest("run", ("a",), replay=("b",)), False)
