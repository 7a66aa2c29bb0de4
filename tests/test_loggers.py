"""What a training tells TensorBoard, MLflow and W&B, read back from what they have written."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import signal
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import forked
import numpy as np
import pytest
from PIL import Image
from test_cli import SMALL

from pad.config import LOGGERS, Config, from_mapping, to_mapping
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.learning.loggers import Loggers
from pad.learning.plan import fresh_config

RECIPE = [*SMALL, "views=generator", "size=28", "layers=relu1_2", "tolerate=none", "log_every=2"]
INSTALLED = [name for name in LOGGERS if importlib.util.find_spec(name)]


def environment(**more: str) -> dict[str, str]:
    """No account and no server of whoever runs the tests is told of them."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "WANDB_"))}
    silent = {"WANDB_MODE": "offline", "WANDB_DATA_DIR": os.devnull, "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**clean, **silent, "OMP_NUM_THREADS": "1", **more}


def words(boots: Path, out: Path, steps: int, loggers: list[str]) -> list[str]:
    given = ["-m", "pad", "train", "--data", str(boots), "--out", str(out), "--steps", str(steps)]
    return [*given, "--device", "cpu", "--set", *RECIPE, "sample_every=4", f"loggers=[{','.join(loggers)}]"]


def needed(name: str) -> None:
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed: python -m pip install '.[{name}]'")


@pytest.fixture(scope="module")
def told(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that was told to all that are installed."""
    out = tmp_path_factory.mktemp("told") / "run"
    done = forked.run(words(boots, out, 4, INSTALLED), env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 5
    return out


def logged(run: Path) -> dict[str, dict[int, float]]:
    """By name and step, what the run's own log says."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        for name in line.keys() - {"step", "seconds"}:
            found.setdefault(name, {})[line["step"]] = line[name]
    return found


def same(found: Mapping[str, Mapping[int, float]], run: Path) -> None:
    """As the log says, which rounds."""
    expected = logged(run)
    assert {"rec_loss", "w_encoder", "images_per_second"} <= expected.keys() == found.keys()
    for name, values in expected.items():
        assert dict(found[name]) == pytest.approx(values, rel=1e-2 if name == "images_per_second" else 1e-4)
        assert list(values) == [2, 4]


def test_tensorboard(told: Path) -> None:
    needed("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(told / "tensorboard")).Reload()
    tags = events.Tags()
    same({tag: {e.step: e.value for e in events.Scalars(tag)} for tag in tags["scalars"]}, told)
    assert tags["images"] == ["samples"]
    shown = events.Images("samples")
    assert [image.step for image in shown] == [1, 4]
    assert shown[1].encoded_image_string[:4] == b"\x89PNG"
    assert (shown[1].width, shown[1].height) == Image.open(told / "samples" / "step-00000004.png").size


def test_mlflow(told: Path) -> None:
    needed("mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{told / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pad")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.tags["pad.from_step"] == "0"
    assert run.data.params["latent_dim"] == "8"
    assert run.data.params.keys() == to_mapping(Config()).keys()
    names = run.data.metrics
    same({n: {m.step: m.value for m in client.get_metric_history(run.info.run_id, n)} for n in names}, told)
    for name in ("step-00000001.png", "step-00000004.png"):
        ours, theirs = told / "samples" / name, client.download_artifacts(run.info.run_id, f"samples/{name}")
        np.testing.assert_array_equal(np.asarray(Image.open(theirs)), np.asarray(Image.open(ours)))


def records_of(file: Path) -> Iterator[bytes]:
    """The records of a W&B file: pieces in LevelDB's log format, none across a border of 32 KiB."""
    content, block = file.read_bytes(), 1 << 15
    place, record = 7, b""  # after the file's own header
    while place < len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def test_wandb(told: Path) -> None:
    needed("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    (folder,) = (told / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    records = [Record.FromString(data) for data in records_of(file)]
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name) == ("pad", "run")
    given = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert given["latent_dim"] == 8
    found: dict[str, dict[int, float]] = {}
    pictures = {}
    for record in records:
        items = {"/".join([i.key, *i.nested_key]).lstrip("/"): i.value_json for i in record.history.item}
        if "samples/path" in items:
            pictures[int(items["_step"])] = folder / "files" / json.loads(items["samples/path"])
        for name in (name for name in items if "/" not in name and not name.startswith("_")):
            found.setdefault(name, {})[int(items["_step"])] = json.loads(items[name])
    same(found, told)
    assert list(pictures) == [1, 4]
    ours = np.asarray(Image.open(told / "samples" / "step-00000004.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(pictures[4])), ours)
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]


def test_the_model_is_the_same_without(told: Path, boots: Path, tmp_path: Path) -> None:
    done = forked.run(words(boots, tmp_path / "run", 4, []), env=environment())
    assert done.returncode == 0, done.stderr
    ours, theirs = (run / "model" / "model.safetensors" for run in (tmp_path / "run", told))
    assert ours.read_bytes() == theirs.read_bytes()
    assert not {"tensorboard", "mlflow", "wandb"} & {path.name for path in (tmp_path / "run").iterdir()}


def test_a_stopped_run_says_so_and_goes_on_as_another(boots: Path, tmp_path: Path) -> None:
    needed("mlflow")
    from mlflow import MlflowClient

    out = tmp_path / "run"
    process = forked.Process(words(boots, out, 1_000_000, ["mlflow"]), env=environment())
    limit = time.monotonic() + 100
    while not (out / "log.jsonl").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 128 + signal.SIGTERM
    step = max(logged(out)["rec_loss"])
    resume = ["-m", "pad", "train", "--resume", "--out", str(out), "--steps", str(step + 2)]
    done = forked.run(resume, env=environment())
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{out / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pad").experiment_id
    runs = client.search_runs([experiment], order_by=["start_time"])
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]
    assert int(runs[1].data.tags["pad.from_step"]) >= step


def test_one_that_cannot_begin_is_told_in_a_line(boots: Path, tmp_path: Path) -> None:
    needed("mlflow")
    nowhere = environment(MLFLOW_TRACKING_URI="nothing://like.it")
    done = forked.run(words(boots, tmp_path / "run", 4, ["mlflow"]), env=nowhere)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pad: setting 'loggers': mlflow cannot begin: ")


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_named_before_anything_is_written(
    boots: Path, tmp_path: Path, name: str
) -> None:
    """Where the package would be there is a folder that holds another of its name, which does not import."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(f"raise ModuleNotFoundError('none', name='{name}')")
    path = os.pathsep.join([str(tmp_path), str(forked.ROOT)])
    env = environment(PYTHONPATH=path)
    done = forked.run(words(boots, tmp_path / "run", 4, [name]), env=env, fresh=True)
    assert done.returncode == 2
    extra = f"pad: setting 'loggers': {name} needs the extra: pip install 'pad-anomaly[{name}]'\n"
    assert done.stderr == extra
    assert not (tmp_path / "run").exists()


class Faulty:
    """A logger whose server is gone after `good` messages."""

    def __init__(self, good: int) -> None:
        self.good, self.got = good, []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if len(self.got) == self.good:
            raise ConnectionError("no answer\nfrom the server")
        self.got.append(step)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        self.got.append(step)

    def close(self, finished: bool) -> None:
        self.got.append(finished)


def test_one_that_fails_costs_neither_the_training_nor_the_others(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = Faulty(1), Faulty(9)
    loggers = Loggers({"bad": bad, "good": good})
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            loggers.scalars(step, {"loss": 1.0})
        loggers.images(3, "samples", np.zeros((2, 2, 3), np.uint8))
        loggers.close(True)
    assert bad.got == [1]
    assert good.got == [1, 2, 3, 3, True]
    assert caplog.messages == ["bad gets nothing more: no answer from the server"]


def test_recipes_of_one_logger_are_read(tmp_path: Path) -> None:
    plain = to_mapping(Config())
    del plain["loggers"]
    assert from_mapping({**plain, "tensorboard": True}).loggers == ("tensorboard",)
    assert from_mapping({**plain, "tensorboard": False}).loggers == ()
    for wrong in ({"tensorboard": 3}, {"loggers": ["tensorbored"]}, {"loggers": ["wandb", "wandb"]}):
        with pytest.raises(PadError, match=next(iter(wrong))):
            from_mapping({**plain, **wrong})


def test_a_model_does_not_say_whom_to_tell(told: Path, boots: Path, tmp_path: Path) -> None:
    """A stranger's model that is fine-tuned."""
    from pad.detector import Detector

    shutil.copytree(told / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.yaml"
    text = path.read_text()
    assert "loggers:" in text
    start = Detector.load(tmp_path / "model", "cpu")
    start.config = start.config.replace(loggers=["wandb"])
    assert fresh_config(start, None, {}, resolve([str(boots)], "train"), False).loggers == ()
    asked = fresh_config(start, None, {"loggers": "mlflow"}, resolve([str(boots)], "train"), False)
    assert asked.loggers == ("mlflow",)
