"""The quick views through the command line: fitted alone, beside a generator, and before one is added."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pad_process import run
from PIL import Image
from safetensors.torch import load_file

import pad
from pad.images.tiles import as_seen
from pad.judging.map_scale import scale_of

SMALL = [
    "latent_dim=8", "generator_channels=[8,8,8]", "encoder_channels=[8,8,8]", "critic_channels=[8,8,8]",
    "latent_critic_channels=[16]", "layers=relu2_2", "batch_size=8", "view_size=32",
]  # fmt: skip
VIEWS = ("whole", "middle", "parts")


def config_of(folder: Path) -> dict:
    return yaml.safe_load((folder / "model" / "config.yaml").read_text())


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def few(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "few"
    folder.mkdir()
    for file in sorted(boots.glob("*.png"))[:24]:
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def quick(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The default recipe on 24 images; and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "quick"
    return folder, run("train", "--data", few, "--out", folder, "--set", *SMALL).stdout


def test_few_images_are_fitted_without_a_generator_and_told_so_before(quick: tuple[Path, str]) -> None:
    folder, said = quick
    before, _, after = said.partition("fitted in")
    assert "fitting the views whole, middle, parts on 24 images in few" in before
    assert "no generator: --resume --steps N adds one" in before
    assert "false-alarm rates can be held from --fpr 0.04 up" in before
    assert "calibrated on 24 normal images" in after  # every image counts
    assert config_of(folder)["recipe"]["steps"] == 0
    assert {key.split(".")[0] for key in tensors_of(folder)} == {"views", "fusion"}
    assert not list((folder / "checkpoints").glob("*"))


def test_maps_are_drawn_on_what_new_normal_images_have(quick: tuple[Path, str], fashion: Path) -> None:
    """Not on maps of images by views that were fitted on them, which are far too low."""
    detector = pad.load(quick[0], device="cpu")
    scale = scale_of(detector.calibration)
    assert scale is not None

    def maps(kind: str) -> torch.Tensor:
        files = sorted((fashion / "test" / kind).glob("*.png"))
        return detector.examine(as_seen(files, detector.config)).maps

    normal = maps("normal")
    assert (normal > scale.low).float().mean() < 0.1  # 5 % of the pixels of normal images
    assert (normal.amax((1, 2)) > scale.high).float().mean() < 0.1  # 1 % of such images
    assert (maps("bag").amax((1, 2)) > scale.high).float().mean() > 0.5


def test_evaluation_of_quick_views(quick: tuple[Path, str], fashion: Path, tmp_path: Path) -> None:
    done = run(
        "evaluate", quick[0], fashion / "test", "--out", tmp_path, "--fpr", 0.1, "--report", "--explain", 2
    )
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "score", "p_value", "verdict", "error"]
    assert len(rows) == 140
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["roc_auc"]["value"] > 0.9
    assert (tmp_path / "report.html").stat().st_size > 100_000
    pictures = [Image.open(file) for file in (tmp_path / "explanations").glob("*.montage.png")]
    assert len(pictures) == 2
    table = done.stdout.splitlines()
    assert table[0].split() == ["score", "p-value", "verdict", "seen", "by", "image"]
    assert "ANOMALY" in table[1]
    assert any(view in table[1] for view in VIEWS)
    assert table[0].index("image") == table[1].index(str(fashion))


def test_rows_carry_the_p_value_of_each_view(quick: tuple[Path, str], fashion: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    good = sorted((fashion / "test" / "bag").glob("*.png"))[:3]
    done = run("evaluate", quick[0], tmp_path / "broken.png", *good, "--out", "-", "--format", "json")
    broken, *rows = json.loads(done.stdout)
    assert set(broken) == {"path", "score", "p_value", "verdict", "error", "views"}
    assert broken["error"]
    assert broken["views"] == {}
    expected = pad.load(quick[0], "cpu").view_p_values(good)
    for i, row in enumerate(rows):
        assert tuple(row["views"]) == VIEWS
        for name, p in row["views"].items():
            assert p == pytest.approx(expected[name][i], abs=1 / 25 + 1e-9)  # batches differ in rounding
            assert round(p * 25) == pytest.approx(p * 25)  # k / (n + 1)


def test_calibrating_quick_views_on_new_images(
    quick: tuple[Path, str], few: Path, fashion: Path, tmp_path: Path
) -> None:
    folder, _ = quick
    message = run("calibrate", folder, few, "--out", tmp_path / "model", status=2).stderr
    assert "trained on 24 of the 24 images" in message
    assert not (tmp_path / "model").exists()
    run("calibrate", folder, fashion / "test" / "normal", "--out", tmp_path / "model")
    calibration = json.loads((tmp_path / "model" / "calibration.json").read_text())
    assert len(calibration["scores"]) == 40
    assert {name: len(known) for name, known in calibration["extra"]["views"].items()} == dict.fromkeys(
        VIEWS, 40
    )
    assert "cross_fitted" not in calibration["extra"]
    assert "40 normal images never trained on" in (tmp_path / "model" / "README.md").read_text()
    ours, theirs = tensors_of(tmp_path), tensors_of(folder)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs if not key.startswith("fusion."))


def test_a_generator_is_added_later(quick: tuple[Path, str], fashion: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(quick[0], folder)
    said = run("train", "--resume", "--out", folder, "--steps", 4).stdout
    assert "for 4 steps; 12 more are kept for calibration" in said
    assert "--fpr 0.077 up" in said
    detector = pad.load(folder, "cpu")
    assert detector.views == ("generator", *VIEWS)
    assert config_of(folder)["training"]["steps"] == 4
    assert len(detector.calibration or ()) == 12
    # What the generator learnt from and what the views were fitted on are told apart.
    assert (len(detector.trained_on), len(detector.fitted_on)) == (12, 24)
    files = [
        *sorted((fashion / "test" / "normal").glob("*.png"))[:5],
        *sorted((fashion / "test" / "bag").glob("*.png"))[:5],
    ]
    scores = detector.score(files)
    assert scores[5:].min() > scores[:5].max()
    assert detector.explain(files[5:6], fpr=0.1)[0].nearest.size == (28, 28)  # what the generator makes


def test_a_time_trains_a_generator_or_is_refused(quick: tuple[Path, str], few: Path, tmp_path: Path) -> None:
    words = ["train", "--data", few, "--out", tmp_path / "none", "--minutes", 1, "--set", *SMALL]
    assert "--minutes trains a generator" in run(*words, "steps=0", status=2).stderr
    assert not (tmp_path / "none" / "run.yaml").exists()
    folder = tmp_path / "run"
    shutil.copytree(quick[0], folder)
    run("train", "--resume", "--out", folder, "--minutes", 0.01)
    assert config_of(folder)["training"]["steps"] > 0
    assert pad.load(folder, "cpu").views == ("generator", *VIEWS)


def test_no_steps_on_many_images_and_the_same_from_python(boots: Path, fashion: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = run("train", "--data", boots, "--out", folder, "--steps", 0, "--set", *SMALL).stdout
    assert "--fpr 0.0083 up" in said
    assert yaml.safe_load((folder / "run.yaml").read_text())["steps"] == 0
    files = sorted((fashion / "test").rglob("*.png"))[::7]
    expected = pad.load(folder, "cpu").score(files)
    images = sorted(boots.glob("*.png"))
    of_files = pad.fit(images, steps=0, view_size=32, device="cpu")
    np.testing.assert_allclose(of_files.score(files), expected, rtol=1e-3, atol=1e-3)
    arrays = np.stack([np.asarray(Image.open(file)) for file in images])
    of_arrays = pad.fit(arrays, steps=0, view_size=32, device="cpu")
    np.testing.assert_allclose(of_arrays.score(files), expected, rtol=1e-3, atol=1e-3)
    assert of_arrays.config == of_files.config


def test_the_default_is_generator_and_views(boots: Path, fashion: Path, tmp_path: Path) -> None:
    folder, again = tmp_path / "run", tmp_path / "again"
    said = run(
        "train", "--data", boots, "--out", folder, "--steps", 3, "--set", *SMALL, "checkpoint_every=1"
    ).stdout
    assert "70 images in ankle-boot" in said
    assert "50 more are kept for calibration" in said
    detector = pad.load(folder, "cpu")
    assert detector.views == ("generator", *VIEWS)
    assert len(detector.calibration or ()) == 50
    assert sum(file.stat().st_size for file in (folder / "model").iterdir()) < 3e6
    weights = tensors_of(folder)["fusion.weights"]
    assert weights.shape == (4,)
    assert weights.sum().item() == pytest.approx(1)
    p_values = detector.view_p_values(sorted((fashion / "test" / "bag").glob("*.png"))[:3])
    assert tuple(p_values) == detector.views

    # As if it had been stopped after the second step.
    shutil.copytree(folder, again)
    shutil.rmtree(again / "model")
    (again / "checkpoints" / "step-00000003.pt").unlink()
    assert "from step 2" in run("train", "--resume", "--out", again).stdout
    ours, theirs = tensors_of(again), tensors_of(folder)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    first, second = ((f / "model" / "calibration.json").read_bytes() for f in (folder, again))
    assert first == second
