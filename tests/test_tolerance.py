"""What is declared to be normal (`tolerate`): how it is written, what it does to images, that it holds."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pad_process import run
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import pad
from pad.config import Config, from_mapping
from pad.errors import PadError
from pad.images.variation import AT_THE_ENDS, Variation, draw, in_variation, varied
from pad.learning.cross_fit import fold_of_each, out_of_fold_scores
from pad.tolerance import describe_tolerance, parse_tolerance
from pad.views.features import Features
from pad.views.quick import QuickViews, build_quick

ROOT = Path(__file__).parent.parent


# How it is written


def test_text_and_mapping_say_the_same() -> None:
    text = parse_tolerance("rotation=5, flip,brightness=0.2,shift=0", "here")
    assert text == {"brightness": 0.2, "rotation": 5.0, "flip": 1.0}
    assert list(text) == ["brightness", "rotation", "flip"]
    assert parse_tolerance({"flip": True, "rotation": 5, "brightness": 0.2}, "here") == text
    assert describe_tolerance(text) == "brightness ±20 %, rotation ±5°, left-right flips"
    for nothing in ("none", None, {}, {"flip": False}, {"contrast": 0}):
        assert parse_tolerance(nothing, "here") == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("brightnes=0.2", "did you mean 'brightness'"),
        ("brightness", "brightness cannot be True; it takes a share"),
        ("brightness=0.95", "from 0 to 0.9"),
        ("contrast=-0.1", "from 0 to 0.9"),
        ("rotation=nan", "degrees, from 0 to 180"),
        ("shift=0.6", "from 0 to 0.5"),
        ("flip=0.5", "it takes no value"),
        ("", "knows no ''"),
        (7, "brightness=0.2,contrast=0.2"),
        ({3: 0.1}, "knows no 3"),
    ],
)
def test_what_cannot_be_tolerated_is_named(value: object, said: str) -> None:
    with pytest.raises(PadError, match="setting 'tolerate'") as error:
        from_mapping({"tolerate": value})
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_config_made_in_python_is_checked_too() -> None:
    with pytest.raises(PadError, match="rotation cannot be 200"):
        Config(tolerate={"rotation": 200})


# What it does to an image


@pytest.fixture(scope="module")
def photograph(photographs: Path) -> Tensor:
    """(3, 64, 64) in [-1, 1]."""
    with Image.open(photographs / "coffee.png") as image:
        pixels = np.asarray(image.convert("RGB").resize((64, 64)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


def test_brightness_scales_intensities_and_ends_at_white(photograph: Tensor) -> None:
    bytes_ = (photograph + 1) * 127.5
    for factor in (0.8, 1.3):
        found = (varied(photograph, Variation(brightness=factor)) + 1) * 127.5
        torch.testing.assert_close(found, (bytes_ * factor).clamp(0, 255), atol=1e-3, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_scales_the_distance_to_the_mean_grey(photograph: Tensor, channels: int) -> None:
    x = (photograph[:channels] + 1) / 2
    grey = x if channels == 1 else 0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    expected = ((x - grey.mean()) * 0.7 + grey.mean()).clamp(0, 1)
    found = (varied(photograph[:channels], Variation(contrast=0.7)) + 1) / 2
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_turns_shifts_and_flips_move_pixels(photograph: Tensor) -> None:
    assert torch.equal(varied(photograph, Variation(flip=True)), photograph.flip(2))
    quarter = varied(photograph, Variation(rotation=90.0))
    torch.testing.assert_close(quarter, torch.rot90(photograph, -1, (1, 2)), atol=1e-4, rtol=0)
    found = varied(photograph, Variation(shift=(4 / 64, -7 / 64)))
    padded = F.pad(photograph[None], (8,) * 4, mode="reflect")[0]
    expected = padded[:, 8 + 7 : 8 + 7 + 64, 8 - 4 : 8 - 4 + 64]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert varied(photograph, Variation(rotation=33.0, shift=(0.5, 0.5))).shape == photograph.shape


def test_draws_keep_to_what_is_tolerated_and_lie_at_its_ends_in_three_of_four() -> None:
    random = torch.Generator().manual_seed(0)
    drawn = [draw({"brightness": 0.2, "rotation": 5.0, "flip": 1.0}, random) for _ in range(4000)]
    light = np.array([d.brightness for d in drawn])
    turns = np.array([d.rotation for d in drawn])
    assert (abs(light - 1) <= 0.2 + 1e-6).all()
    assert (abs(turns) <= 5).all()
    error = 4 / math.sqrt(len(drawn))
    for values in ((light - 1) / 0.2, turns / 5):
        ends = np.isclose(abs(values), 1, atol=1e-5)
        assert ends.mean() == pytest.approx(AT_THE_ENDS, abs=error)
        assert (values[ends] > 0).mean() == pytest.approx(0.5, abs=error)
        assert abs(values[~ends]).mean() == pytest.approx(0.5, abs=error)
    assert np.mean([d.flip for d in drawn]) == pytest.approx(0.5, abs=error)
    assert abs(np.corrcoef(light, turns)[0, 1]) < error
    assert all(d.contrast == 1 and d.shift == (0, 0) for d in drawn)


def test_a_variation_depends_on_image_and_seed_alone(photograph: Tensor) -> None:
    tolerate = {"brightness": 0.3, "contrast": 0.3, "rotation": 10.0}
    x = torch.stack([photograph, photograph.flip(1), photograph.flip(2)])
    together = in_variation(x, tolerate, 0)
    for i in range(3):
        assert torch.equal(in_variation(x[i : i + 1], tolerate, 0)[0], together[i])
    assert torch.equal(in_variation(x.flip(0), tolerate, 0), together.flip(0))
    assert not torch.equal(in_variation(x, tolerate, 1), together)
    assert torch.equal(in_variation(x, {}, 0), x)


# What is fitted and calibrated


@pytest.fixture(scope="module")
def views() -> QuickViews:
    return build_quick(Config(views=("whole", "middle", "parts"), steps=0, view_size=64))


def features_of_boots(views: QuickViews, boots: Path, light: float) -> Features:
    files = sorted(boots.glob("*.png"))[:24]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).float()
    x = (pixels * light).clamp(0, 255)[:, None] / 127.5 - 1
    return views.features(F.interpolate(x, size=64, mode="bilinear"))


def test_an_image_and_its_variation_are_in_one_fold(views: QuickViews, boots: Path) -> None:
    """Scores out of fold against fits made by hand on all that is not of the fold; and a stranger in the
    place of one variation looks strange, which it would not to a fit that saw it."""
    normal, varied = (features_of_boots(views, boots, light) for light in (1.0, 0.7))
    hashes = np.arange(24, dtype=np.uint64)
    fold = fold_of_each(hashes, seed=3)
    scores = out_of_fold_scores(views, normal, hashes, 3, varied)

    def both(others: list[int]) -> Features:
        return Features(
            [torch.cat([a[others], b[others]]) for a, b in zip(normal.deep, varied.deep, strict=True)],
            torch.cat([normal.middle[others], varied.middle[others]]),
            torch.cat([normal.local[others], varied.local[others]]),
        )

    on_all = QuickViews(views.names, views.backbone).fit(both(list(range(24))))
    for held_out in fold.unique():
        others = [i for i in range(24) if fold[i] != held_out]
        judged = varied.take(fold == held_out)
        fitted = views.fit(both(others), on_all)
        torch.testing.assert_close(scores[fold == held_out], fitted.scores(judged))
    stranger = features_of_boots(views, boots, -5.0)  # black
    varied.middle[7] = stranger.middle[7]
    strange = out_of_fold_scores(views, normal, hashes, 3, varied)
    assert strange[:, 1].argmax() == 7
    assert strange[7, 1] > 1.5 * scores[:, 1].max()


def test_calibration_judges_each_image_in_its_variation(boots: Path) -> None:
    files = sorted(boots.glob("*.png"))
    detector = pad.fit(files[:40], steps=0, device="cpu", tolerate="brightness=0.5,flip", view_size=64,
                       precision="float32")  # fmt: skip
    assert detector.config.tolerate == {"brightness": 0.5, "flip": 1.0}
    detector.calibrate(files[40:60])
    assert detector.calibration is not None
    x = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files[40:60]])
    x = x[:, None].float() / 127.5 - 1
    expected = (
        detector.score_batch(in_variation(x, {"brightness": 0.5, "flip": 1.0}, 0)).double().sort().values
    )
    np.testing.assert_allclose(detector.calibration.scores, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert abs(np.sort(detector.score(files[40:60])) - detector.calibration.scores).max() > 0.05


# Through the command line


def verdicts(path: Path) -> list[bool]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row["verdict"] == "anomaly" for row in csv.DictReader(file)]


def write(folder: Path, pictures: list[np.ndarray], light: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    for i, pixels in enumerate(pictures):
        bright = (pixels * light).round().clip(0, 255).astype(np.uint8)
        Image.fromarray(bright).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def steady(photographs: Path) -> list[np.ndarray]:
    """A cup of coffee 72 times under a steady lamp: moved by a pixel, with a camera's noise."""
    with Image.open(photographs / "coffee.png") as image:
        scene = np.asarray(image.convert("RGB"), dtype=np.float64)
    rng = np.random.default_rng(0)
    height, width = scene.shape[0] - 2, scene.shape[1] - 2
    pictures = []
    for _ in range(72):
        y, x = rng.integers(0, 3, 2)
        cut = scene[y : y + height, x : x + width]
        pictures.append((cut + rng.normal(0, 2, cut.shape)).clip(0, 255))
    return pictures


def flagged(run_folder: Path, images: Path) -> float:
    run("evaluate", run_folder, images, "--out", images.parent / f"{images.name}-{run_folder.name}", "--fpr",
        0.1, "--device", "cpu")  # fmt: skip
    return float(np.mean(verdicts(images.parent / f"{images.name}-{run_folder.name}" / "scores.csv")))


def train(data: Path, out: Path, *more: object) -> str:
    return run("train", "--data", data, "--out", out, "--steps", 0, "--device", "cpu", "--set",
               "view_size=96", *more).stdout  # fmt: skip


def test_light_that_is_tolerated_does_not_ring_and_by_default_a_tenth_is(
    steady: list[np.ndarray], tmp_path: Path
) -> None:
    normal = write(tmp_path / "normal", steady[:48])
    tenth = write(tmp_path / "tenth-up", steady[48:60], 1.1), write(tmp_path / "tenth-down", steady[60:], 0.9)
    fifth = write(tmp_path / "fifth-up", steady[48:60], 1.2), write(tmp_path / "fifth-down", steady[60:], 0.8)
    said = train(normal, tmp_path / "default")
    assert "as normal: brightness ±10 %" in said
    train(normal, tmp_path / "none", "--tolerate", "none")
    train(normal, tmp_path / "twenty", "--tolerate", "brightness=0.2")
    recipe = yaml.safe_load((tmp_path / "twenty" / "model" / "config.yaml").read_text())["recipe"]
    assert recipe["tolerate"] == {"brightness": 0.2}
    assert np.mean([flagged(tmp_path / "none", images) for images in tenth]) > 0.5
    # 24 images: at the rate asked two or three are flagged.
    assert np.mean([flagged(tmp_path / "default", images) for images in tenth]) <= 0.25
    assert np.mean([flagged(tmp_path / "default", images) for images in fifth]) > 0.5
    assert np.mean([flagged(tmp_path / "twenty", images) for images in fifth]) <= 0.25


def test_a_mirrored_scene_is_normal_where_flips_are(steady: list[np.ndarray], tmp_path: Path) -> None:
    mirrored = write(tmp_path / "mirrored", [pixels[:, ::-1] for pixels in steady[48:]])
    normal = write(tmp_path / "normal", steady[:48])
    train(normal, tmp_path / "plain")
    train(normal, tmp_path / "flips", "--tolerate", "flip,brightness=0.1")
    assert flagged(tmp_path / "plain", mirrored) > 0.9
    assert flagged(tmp_path / "flips", mirrored) <= 0.25


def test_a_mistyped_tolerance_is_answered_in_one_line(boots: Path, tmp_path: Path) -> None:
    done = run("train", "--data", boots, "--out", tmp_path / "run", "--tolerate", "rotatoin=5", status=2)
    assert "did you mean 'rotation'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "model").exists()
