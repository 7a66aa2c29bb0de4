"""The contract through the command line, as a user meets it: every command is a process of its own."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from pad import load

ROOT = Path(__file__).parent.parent
SMALL = [
    "latent_dim=8", "generator_channels=[8,8,8]", "encoder_channels=[8,8,8]", "critic_channels=[8,8,8]",
    "latent_critic_channels=[16]", "layers=relu2_2", "batch_size=8", "warm_up=0.2", "log_every=5",
]  # fmt: skip


def command(script: str, *arguments: object) -> list[str]:
    return [str(ROOT / script), *map(str, arguments)]


def raw(script: str, *arguments: object, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return forked.run(command(script, *arguments), env=environment, fresh=fresh)


def run(
    script: str, *arguments: object, status: int = 0, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    done = raw(script, *arguments, fresh=fresh)
    assert done.returncode == status, done.stderr
    if status:
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    return done


def train(
    data: Path, out: Path, *more: object, status: int = 0, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    words = ["--data", data, "--out", out, "--device", "cpu", "--set", *SMALL, *more]
    return run("train.py", *words, status=status, fresh=fresh)


@pytest.fixture(scope="module")
def trained(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "boots"
    train(boots, folder, "--steps", 20, "--set", "checkpoint_every=10", "sample_every=10", fresh=True)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# train.py


def test_a_run_folder_holds_what_the_contract_says(trained: Path) -> None:
    model = trained / "model"
    assert {p.name for p in model.iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "calibration.json",
        "README.md",
    }
    tensors = load_file(model / "model.safetensors")
    networks = {name.split(".")[0] for name in tensors}
    assert networks == {
        "encoder", "generator", "image_critic", "latent_critic", "similarity", "views", "fusion"
    }  # fmt: skip
    config = yaml.safe_load((model / "config.yaml").read_text())
    assert config["recipe"]["size"] == 28
    assert config["recipe"]["backbone"] == "vgg16-st"
    assert config["data"]["images"] == 70
    assert config["training"]["steps"] == 20
    assert "torch" in config["versions"]
    scores = json.loads((model / "calibration.json").read_text())["scores"]
    assert len(scores) == 50
    assert scores == sorted(scores)
    assert [p.name for p in sorted((trained / "checkpoints").iterdir())] == [
        "step-00000010.pt",
        "step-00000020.pt",
    ]
    for step in (1, 10, 20):
        with Image.open(trained / "samples" / f"step-{step:08d}.png") as grid:
            assert grid.size == (8 * 30 + 2, 3 * 30 + 2)
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [5, 10, 15, 20]
    assert {
        "rec_loss",
        "encoder_loss",
        "generator_loss",
        "w_encoder",
        "w_generator",
        "images_per_second",
    } <= set(log[-1])


def test_training_is_quiet_when_piped(boots: Path, tmp_path: Path) -> None:
    done = train(boots, tmp_path / "run", "--steps", 2)
    assert done.stderr == ""
    assert "\r" not in done.stdout
    assert len(done.stdout.splitlines()) == 5  # among them the rates that can be held


def killed_at(checkpoint: Path, number: int, *arguments: object) -> int:
    """Starts train.py, and sends the signal once the checkpoint is there. Returns the exit status."""
    process = forked.Process(command("train.py", *arguments))
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_resumed_equals_one_that_never_stopped(
    boots: Path, tmp_path: Path, trained: Path, number: int
) -> None:
    out = tmp_path / "run"
    arguments = ["--data", boots, "--out", out, "--device", "cpu", "--steps", 20,
                 "--set", *SMALL, "checkpoint_every=10", "sample_every=10"]  # fmt: skip
    status = killed_at(out / "checkpoints" / "step-00000010.pt", number, *arguments)
    assert status == (-9 if number == signal.SIGKILL else 128 + number)
    run("train.py", "--out", out, "--resume", "--device", "cpu")
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (out, trained))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert (out / "model" / "calibration.json").read_bytes() == (
        trained / "model" / "calibration.json"
    ).read_bytes()
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == [5, 10, 15, 20]


def test_resuming_refuses_other_settings_and_other_images(trained: Path, boots: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(trained, run_folder)
    assert (
        "learning_rate"
        in run("train.py", "--out", run_folder, "--resume", "--set", "learning_rate=0.5", status=2).stderr
    )
    other = tmp_path / "other"
    shutil.copytree(boots, other)
    next(other.glob("*.png")).unlink()
    assert (
        "other images" in run("train.py", "--data", other, "--out", run_folder, "--resume", status=2).stderr
    )
    assert "--resume" in train(boots, run_folder, status=2).stderr


def test_a_damaged_checkpoint_falls_back_to_the_one_before(trained: Path, tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    shutil.copytree(trained, run_folder)
    newest = run_folder / "checkpoints" / "step-00000020.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    run("train.py", "--out", run_folder, "--resume", "--device", "cpu")
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (run_folder, trained))
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_minutes(boots: Path, tmp_path: Path) -> None:
    train(boots, tmp_path / "run", "--minutes", 0.05)
    config = yaml.safe_load((tmp_path / "run" / "model" / "config.yaml").read_text())
    assert config["training"]["finished"]
    assert config["training"]["steps"] >= 1


def test_training_on_colour_photographs_picks_colour(photographs: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(3):
        for path in photographs.glob("*.png"):
            with Image.open(path) as image:
                image.resize((80, 80)).rotate(i).save(data / f"{path.stem}-{i}.png")
    (data / "broken.png").write_bytes(b"junk")
    done = run("train.py", "--data", data, "--out", tmp_path / "run", "--device", "cpu", "--steps", 1,
               "--set", "layers=relu1_2", "batch_size=2")  # fmt: skip
    assert "skipped" in done.stderr
    assert "broken.png" in done.stderr
    recipe = yaml.safe_load((tmp_path / "run" / "model" / "config.yaml").read_text())["recipe"]
    assert (recipe["size"], recipe["channels"], len(recipe["generator_channels"])) == (64, 3, 5)


def test_fine_tuning_goes_on_from_a_model(trained: Path, boots: Path, tmp_path: Path) -> None:
    run("train.py", "--from", trained, "--data", boots, "--out", tmp_path / "run", "--device", "cpu",
        "--steps", 2, "--set", "learning_rate=1e-9", "critic_learning_rate=1e-9")  # fmt: skip
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (tmp_path / "run", trained))
    np.testing.assert_allclose(
        ours["generator.stem.weight"].numpy(), theirs["generator.stem.weight"].numpy(), atol=1e-4
    )
    assert (
        "channels"
        in run(
            "train.py",
            "--from",
            trained,
            "--data",
            boots,
            "--out",
            tmp_path / "other",
            "--set",
            "channels=3",
            status=2,
        ).stderr
    )


def test_a_loss_that_explodes_stops_with_the_last_good_checkpoint(boots: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    diverging = ["checkpoint_every=1", "learning_rate=1e18", "precision=float32", "schedule=constant"]
    words = ["--data", boots, "--out", out, "--device", "cpu", "--steps", 30, "--set", *SMALL, *diverging]
    done = raw("train.py", *words)
    assert done.returncode == 2
    assert "training stopped at step" in done.stderr
    assert "Traceback" not in done.stderr
    assert "last good checkpoint" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "stepz=3"], "unknown setting 'stepz'; did you mean 'steps'"),
        (["--set", "steps=many"], "'steps' cannot be 'many'"),
        (["--set", "size=50"], "16, 20, 24 or 28 pixels, or one of these doubled up to 256"),
        (["--set", "size=64", "generator_channels=[8,8]"], "takes 5"),
        (["--set", "layers=relu9_1"], "no 'relu9_1'"),
        (["--set", "steps"], "key=value"),
        (["--set", "backbone=vgg19", "backbone_weights=missing.pth"], "missing.pth"),
        (["--config", "fashon-mnist"], "did you mean 'fashion-mnist'"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--steps", "-1"], "from 0 to"),
        (["--steps", "5", "--minutes", "1"], "not allowed with"),
        (["--device", "tpu"], "auto, cpu, cuda or mps"),
        (["--from", "zoo:fashion-mnist/ankle-boat"], "ankle-boat"),
    ],
)
def test_unusable_arguments_of_training(
    boots: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run("train.py", "--data", boots, "--out", tmp_path / "run", *arguments, status=2)
    assert message in done.stderr
    assert not (tmp_path / "run" / "model").exists()


def test_unusable_data_of_training(boots: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(boots.glob("*.png"))[:5]:
        shutil.copy(path, few)
    message = run("train.py", "--data", few, "--out", tmp_path / "run", status=2).stderr
    assert "at least 8" in message
    assert "found 5 images in few" in message
    assert (
        "no such file"
        in run("train.py", "--data", tmp_path / "no", "--out", tmp_path / "run", status=2).stderr
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty" in run("train.py", "--data", empty, "--out", tmp_path / "run", status=2).stderr
    for i in range(9):
        (empty / f"{i}.png").write_bytes(b"junk")
    done = raw("train.py", "--data", empty, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "junk" not in done.stdout
    assert done.stderr.splitlines()[-1].startswith("train.py: ")
    assert (
        "data-root"
        in run(
            "train.py", "--data", "cifar10:cat", "--data-root", empty, "--out", tmp_path / "run", status=2
        ).stderr
    )
    assert "--data is missing" in run("train.py", "--out", tmp_path / "run", status=2).stderr


# evaluate.py


def test_a_labelled_folder_is_scored_and_measured(trained: Path, fashion: Path, tmp_path: Path) -> None:
    words = [trained, fashion / "test", "--out", tmp_path / "out", "--device", "cpu"]
    done = run("evaluate.py", *words, fresh=True)
    table = rows(tmp_path / "out" / "scores.csv")
    assert list(table[0]) == ["path", "score", "p_value", "verdict", "error"]
    assert len(table) == 140
    assert {row["verdict"] for row in table} <= {"normal", "anomaly"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"]["images"] == 140
    for name in ("roc_auc", "average_precision", "fpr_at_95_tpr"):
        value = summary[name]
        assert value["low"] <= value["value"] <= value["high"]
    assert set(summary["kinds"]) == {"bag", "sandal", "shirt", "sneaker", "trouser"}
    from sklearn.metrics import roc_auc_score

    labels = [Path(row["path"]).parent.name != "normal" for row in table]
    expected = roc_auc_score(labels, [float(row["score"]) for row in table])
    assert summary["roc_auc"]["value"] == pytest.approx(expected, abs=1e-9)
    for row in table:
        assert (row["verdict"] == "anomaly") == (float(row["p_value"]) <= 0.05)
    assert "ROC AUC" in done.stdout
    assert "trouser" in done.stdout


def test_the_same_answer_twice_and_in_other_batches(trained: Path, fashion: Path, tmp_path: Path) -> None:
    for name, size in (("a", 64), ("b", 64), ("c", 7)):
        run("evaluate.py", trained, fashion / "test", "--out", tmp_path / name, "--batch-size", size)
    first, again, other = (tmp_path / name / "scores.csv" for name in "abc")
    assert first.read_bytes() == again.read_bytes()
    ours = [float(row["score"]) for row in rows(first)]
    np.testing.assert_allclose([float(row["score"]) for row in rows(other)], ours, rtol=0.02)


def test_broken_files_are_named_and_the_rest_is_scored(trained: Path, fashion: Path, tmp_path: Path) -> None:
    data = tmp_path / "images"
    data.mkdir()
    source = sorted((fashion / "test" / "normal").glob("*.png"))
    shutil.copy(source[0], data / "good, one.png")
    (data / "empty.png").touch()
    (data / "junk.jpg").write_bytes(b"no image at all")
    (data / "cut.png").write_bytes(source[1].read_bytes()[:150])
    Image.fromarray(np.asarray(Image.open(source[2])).astype(np.uint16) * 257).save(data / "deep.png")
    done = run("evaluate.py", trained, data, "--out", tmp_path / "out")
    table = {Path(row["path"]).name: row for row in rows(tmp_path / "out" / "scores.csv")}
    assert set(table) == {"good, one.png", "empty.png", "junk.jpg", "cut.png", "deep.png"}
    for name in ("empty.png", "junk.jpg", "cut.png"):
        assert table[name]["error"]
        assert table[name]["score"] == ""
        assert name in done.stderr
    for name in ("good, one.png", "deep.png"):
        assert math.isfinite(float(table[name]["score"]))
    assert "roc_auc" not in json.loads((tmp_path / "out" / "summary.json").read_text())


def test_no_usable_image_is_an_error(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    message = run("evaluate.py", trained, tmp_path / "junk.png", "--out", tmp_path / "out", status=2).stderr
    assert "no usable image" in message
    assert "junk.png" in message
    assert rows(tmp_path / "out" / "scores.csv")[0]["error"]


def test_one_image_a_glob_and_several(trained: Path, fashion: Path, tmp_path: Path) -> None:
    folder = fashion / "test"
    one = sorted((folder / "normal").glob("*.png"))[0]
    done = run("evaluate.py", trained / "model", one)
    assert one.name in done.stdout
    run("evaluate.py", trained, one, f"{folder}/sandal/*.png", "--out", tmp_path / "out")
    assert len(rows(tmp_path / "out" / "scores.csv")) == 1 + len(list((folder / "sandal").glob("*.png")))


def test_standard_output_and_other_formats(trained: Path, fashion: Path, tmp_path: Path) -> None:
    normal = fashion / "test" / "normal"
    done = run("evaluate.py", trained, normal, "--out", "-", "--format", "jsonl")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 40
    assert set(lines[0]) == {"path", "score", "p_value", "verdict", "error", "views"}
    run("evaluate.py", trained, normal, "--out", tmp_path / "out", "--format", "json")
    assert len(json.loads((tmp_path / "out" / "scores.json").read_text())) == 40


def test_fail_on_anomaly_and_fdr(trained: Path, fashion: Path, tmp_path: Path) -> None:
    data = fashion / "test"
    loose = raw("evaluate.py", trained, data, "--fpr", 0.9, "--fail-on-anomaly", fresh=True)
    assert loose.returncode == 3
    run("evaluate.py", trained, data, "--fdr", 0.2, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["fdr"] == 0.2


@pytest.fixture(scope="module")
def uncalibrated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uncalibrated") / "model"
    shutil.copytree(trained / "model", folder)
    (folder / "calibration.json").unlink()
    return folder


def test_what_could_not_be_judged_has_a_status_of_its_own(
    trained: Path, uncalibrated: Path, fashion: Path, tmp_path: Path
) -> None:
    data, broken = fashion / "test" / "normal", tmp_path / "broken.png"
    broken.write_bytes(b"junk")
    calm = ["--fpr", 0.02]  # 50 calibration images hold 1 / 51
    table = rows_of(trained, data, tmp_path)
    normal = [row["path"] for row in table if float(row["p_value"]) > 0.05][:5]
    highest = max(table, key=lambda row: float(row["score"]))["path"]
    for option in ("--fail-on-anomaly", "--fail-on-error"):
        message = run("evaluate.py", uncalibrated, data, option, status=4).stderr
        assert message == "not all could be judged: the model has no calibration (exit status 4)\n"
        message = run("evaluate.py", trained, data, "--fpr", 0.001, option, status=4).stderr
        assert "50 calibration images cannot hold a rate of 0.001" in message
        run("evaluate.py", trained, *normal, *calm, option)
        done = raw("evaluate.py", trained, *normal, broken, *calm, option)
        assert done.returncode == 4
        assert done.stderr.splitlines() == [
            f"skipped {broken}: not an image of a supported format",
            "not all could be judged: 1 of 6 images could not be scored (exit status 4)",
        ]
    # Anomalies win over what could not be judged, where they were asked for.
    flagged = [trained, highest, broken, "--fpr", 0.9]
    assert raw("evaluate.py", *flagged, "--fail-on-anomaly", "--fail-on-error").returncode == 3
    assert raw("evaluate.py", *flagged, "--fail-on-anomaly").returncode == 3
    assert raw("evaluate.py", *flagged, "--fail-on-error").returncode == 4
    assert raw("evaluate.py", *flagged).returncode == 0
    run("evaluate.py", uncalibrated, data)


def rows_of(model: Path, data: Path, folder: Path) -> list[dict[str, str]]:
    run("evaluate.py", model, data, "--out", folder / "scored")
    return rows(folder / "scored" / "scores.csv")


def stopped_while_scoring(number: int, out: Path, *arguments: object) -> tuple[int, str]:
    """Starts evaluate.py and sends the signal once some rows are there: its status and standard error."""
    process = forked.Process(
        command("evaluate.py", *arguments, "--out", out, "--batch-size", 8), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        p.stat().st_size > 2000 for p in out.glob("scores.partial*")
    ):
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(timeout=60), process.stderr.read()


@pytest.mark.parametrize("fdr", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_evaluation_keeps_its_rows(
    trained: Path, fashion: Path, tmp_path: Path, number: int, fdr: bool
) -> None:
    data, out = tmp_path / "many", tmp_path / "out"
    data.mkdir()
    source = sorted((fashion / "test").glob("*/*.png"))
    for i in range(8000):
        (data / f"{i:05d}.png").symlink_to(source[i % len(source)])
    extra = ["--fdr", 0.1] if fdr else []
    status, message = stopped_while_scoring(number, out, trained, data, *extra)
    assert len(list(out.iterdir())) == 1, list(out.iterdir())
    (partial,) = out.iterdir()
    kept = rows(partial)
    assert 0 < len(kept) < 8000
    if number == signal.SIGKILL:
        assert status == -number
        assert partial.name.startswith("scores.partial-")
    else:
        assert status == 128 + number
        assert partial.name == "scores.partial.csv"
        assert message == (
            f"evaluate.py: stopped by {signal.Signals(number).name}; "
            f"the {len(kept)} rows so far are kept in {partial}\n"
        )
    whole = rows_of(trained, fashion / "test", tmp_path)
    expected = {row["path"]: row["score"] for row in whole}
    for i, row in enumerate(kept[: -1 if number == signal.SIGKILL else None]):
        assert row["path"] == str(data / f"{i:05d}.png")
        assert float(row["score"]) == pytest.approx(float(expected[str(source[i % len(source)])]), rel=0.02)
        assert (row["verdict"] == "") == fdr


def test_rows_are_printed_as_they_come(trained: Path, fashion: Path) -> None:
    many = [fashion / "test"] * 40
    words = ["--out", "-", "--format", "jsonl", "--batch-size", 8]
    process = forked.Process(
        command("evaluate.py", trained, *many, *words), stdout=subprocess.PIPE, text=True
    )
    assert json.loads(process.stdout.readline())["error"] == ""
    assert process.poll() is None  # 5,600 images take longer than a line does
    process.terminate()
    assert len(process.stdout.read().splitlines()) < 5599
    assert process.wait(timeout=60) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "missing-folder"], "missing-folder"),
        (["missing-model", "DATA"], "missing-model"),
        (["zoo:nothing/like-it", "DATA"], "zoo"),
        (["MODEL", "DATA", "--fpr", "2"], "between 0 and 1"),
        (["MODEL", "DATA", "--batch-size", "0"], "at least 1"),
        (["MODEL", "DATA", "--device", "cuda"], "cuda"),
        (["MODEL"], "DATA"),
        (["MODEL", "DATA", "--nonsense"], "--nonsense"),
    ],
)
def test_unusable_arguments_of_evaluation(
    trained: Path, fashion: Path, arguments: list[str], message: str
) -> None:
    known = {"MODEL": str(trained), "DATA": str(fashion / "test")}
    assert message in run("evaluate.py", *[known.get(a, a) for a in arguments], status=2).stderr


def test_a_pickle_is_refused_as_a_model(trained: Path, fashion: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x80\x04.")
    assert "model.safetensors" in run("evaluate.py", tmp_path / "model", fashion / "test", status=2).stderr


# calibrate


def test_calibrate_changes_the_calibration_and_nothing_else(
    trained: Path, fashion: Path, tmp_path: Path
) -> None:
    pad = [sys.executable, "-m", "pad"]
    done = subprocess.run(
        [*pad, "calibrate", trained, fashion / "test" / "normal", "--out", tmp_path / "model"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = trained / "model", tmp_path / "model"
    ours, theirs = load_file(after / "model.safetensors"), load_file(before / "model.safetensors")
    same = [k for k in theirs if not k.startswith("fusion.")]  # how views are fused is calibrated, too
    assert all(torch.equal(ours[k], theirs[k]) for k in same)
    assert len(json.loads((after / "calibration.json").read_text())["scores"]) == 40
    assert "note: " not in done.stderr
    done = subprocess.run([*pad, "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("pad ")


def calibrate(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["-m", "pad", "calibrate", *map(str, arguments), "--device", "cpu"]
    done = forked.run(words, cwd=ROOT, env=environment)
    assert done.returncode == status, done.stderr
    return done


def test_calibrating_on_images_trained_on_stops_unless_told_otherwise(
    trained: Path, boots: Path, fashion: Path, tmp_path: Path
) -> None:
    # All 120: 70 by the generator, and by its views those that calibrate as well.
    others = tmp_path / "others"  # the same pictures under other names, in another format, and new ones
    others.mkdir()
    for i, path in enumerate(sorted(boots.glob("*.png"), reverse=True)):
        Image.open(path).save(others / f"{i:04d}.bmp")
    for path in sorted((fashion / "test" / "normal").glob("*.png"))[:20]:
        shutil.copy(path, others)
    out = tmp_path / "model"
    before = (trained / "model" / "calibration.json").read_bytes()
    done = calibrate(trained, others, status=2)
    assert len(done.stderr.splitlines()) == 1
    assert "the model was trained on 120 of the 140 images given" in done.stderr
    assert "--skip-trained" in done.stderr
    assert (trained / "model" / "calibration.json").read_bytes() == before

    done = calibrate(trained, others, "--skip-trained", "--out", out)
    assert "left out 120 of 140" in done.stderr
    assert len(json.loads((out / "calibration.json").read_text())["scores"]) == 20
    assert "never trained on" in (out / "README.md").read_text()
    calibrate(out, others, status=2)  # still knows

    done = calibrate(trained, others, "--allow-trained", "--out", out)
    assert "warning: the model was trained on 120 of the 140 images given" in done.stderr
    assert "95% sure" not in done.stdout
    assert len(json.loads((out / "calibration.json").read_text())["scores"]) == 140
    assert "120 of which it was trained on" in (out / "README.md").read_text()
    done = run("evaluate.py", out, fashion / "test", "--out", tmp_path / "results")
    assert "note: the model was trained on 120 of its 140 calibration images" in done.stdout
    assert json.loads((tmp_path / "results" / "summary.json").read_text())["worst_fpr"] is None
    calibrate(trained, others, "--allow-trained", "--skip-trained", status=2)

    alone = next(path for path in boots.glob("*.png") if load(trained, "cpu").trained_among(path)[0])
    done = calibrate(trained, alone, "--skip-trained", "--out", out, status=2)
    assert "the model was trained on 1 of the 1 images given" in done.stderr


def test_damaged_hashes_are_refused_by_name(trained: Path, fashion: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "model", tmp_path / "model")
    path = tmp_path / "model" / "calibration.json"
    content = json.loads(path.read_text())
    for damaged in ("AAAA", "no base64 ", 7, {"a": 1}):
        content["extra"]["trained_on"] = damaged
        path.write_text(json.dumps(content))
        done = run("evaluate.py", tmp_path / "model", fashion / "test", status=2)
        assert "calibration.json: 'trained_on' must hold hashes" in done.stderr


def test_a_confidence_lifts_the_threshold(trained: Path, fashion: Path, tmp_path: Path) -> None:
    results = {}
    for name, more in {"average": (), "sure": ("--confidence", 0.9)}.items():
        out = tmp_path / name
        done = run("evaluate.py", trained, fashion / "test", "--out", out, "--report", "--fpr", 0.1, *more)
        summary = json.loads((out / "summary.json").read_text())
        report = (out / "report.html").read_text()
        data = json.loads(report.split('id="data">')[1].split("</script>")[0])
        assert data["threshold"] == summary["threshold"]
        assert data["confidence"] == summary["confidence"]
        flagged = [row for row in rows(out / "scores.csv") if row["verdict"] == "anomaly"]
        assert all(float(row["score"]) >= summary["threshold"] for row in flagged)
        assert summary["counts"]["flagged"] == len(flagged)
        results[name] = summary, done.stdout, report
    average, sure = results["average"], results["sure"]
    # Of 50 calibration images, 5 may lie above at 10 % on average: binom.sf(k - 1, 50, 0.1) >= 0.9 for k = 2.
    scores = json.loads((trained / "model" / "calibration.json").read_text())["scores"]
    assert scores[-5] < average[0]["threshold"] < scores[-4] or scores[-5] == scores[-4]
    assert scores[-2] < sure[0]["threshold"] < scores[-1] or scores[-2] == scores[-1]
    assert (average[0]["confidence"], sure[0]["confidence"]) == (None, 0.9)
    assert average[0]["worst_fpr"] > 0.1
    assert "at most 0.1 on average" in average[1]
    assert "at most 0.1 with a probability of 90%" in sure[1]
    assert "by this very model" in sure[2].split("How to read it")[1].split("<script")[0]
    assert "by this very model" not in average[2].split("How to read it")[1].split("<script")[0]

    few = run("evaluate.py", trained, fashion / "test", "--confidence", 0.95)
    assert (
        "50 calibration images cannot hold a false-alarm rate of 5 % with a confidence of 95 %" in few.stdout
    )
    assert "at least 59 normal images" in few.stdout
    refused = run("evaluate.py", trained, fashion / "test", "--confidence", 0.9, "--fdr", 0.1, status=2)
    assert "--confidence goes with --fpr" in refused.stderr
    run("evaluate.py", trained, fashion / "test", "--confidence", 1, status=2)

    detector = load(trained, device="cpu")
    images = sorted((fashion / "test" / "normal").glob("*.png"))
    wanted = detector.score(images) >= sure[0]["threshold"]
    np.testing.assert_array_equal(detector.predict(images, 0.1, confidence=0.9), wanted)
    verdicts = [e.verdict == "anomaly" for e in detector.explain(images[:4], 0.1, confidence=0.9)]
    assert verdicts == wanted[:4].tolist()
    shown = calibrate(trained, fashion / "test" / "normal", "--out", tmp_path / "m", "--confidence", 0.8)
    again = load(tmp_path / "m", device="cpu").calibration
    assert f"rate 10%: {again.threshold(0.1, 0.8):.6g}" in shown.stdout
    assert "held with a probability of 80%" in shown.stdout


def test_garbage_is_collected_while_a_command_runs() -> None:
    code = (
        "import gc, io, contextlib\n"
        "from pad.commands.parser import main\n"
        "def run():\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        return main(['zoo', 'list'])\n"
        "assert run() == 0 and gc.isenabled()\n"
        "frozen = gc.get_freeze_count()\n"
        "assert frozen > 1000 and run() == 0\n"
        "assert gc.get_freeze_count() <= frozen, 'what later calls make may be garbage'\n"
        "gc.disable()\n"
        "assert main(['zoo', 'show', 'fashion-mnist/bag']) == 0 and not gc.isenabled()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
