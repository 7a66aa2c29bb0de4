"""One rule for what is given as images, whatever function takes them; fine-tuning and tables in Python."""

from __future__ import annotations

import base64
import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from pad_process import run
from PIL import Image

import pad
from pad.errors import PadError

QUICK = {"steps": 0, "view_size": 32, "device": "cpu", "tolerate": "none"}
SMALL = {
    "views": ["generator"],
    "tolerate": "none",
    "latent_dim": 8,
    "generator_channels": [8, 8, 8],
    "encoder_channels": [8, 8, 8],
    "critic_channels": [8, 8, 8],
    "latent_critic_channels": [16],
    "batch_size": 16,
}


@pytest.fixture(scope="module")
def detector(boots: Path) -> pad.Detector:
    return pad.fit(sorted(boots.glob("*.png"))[:60], **QUICK)


@pytest.fixture(scope="module")
def bags(fashion: Path) -> list[Path]:
    return sorted((fashion / "test" / "bag").glob("*.png"))


def test_folders_globs_and_lists_are_one_to_every_function(
    detector: pad.Detector, bags: list[Path], tmp_path: Path
) -> None:
    folder = bags[0].parent
    expected = detector.score(bags)
    given = [folder, str(folder), f"{folder}/*.png", [folder], [f"{folder}/*.png", folder]]
    for images in given:
        np.testing.assert_array_equal(detector.score(images), expected)
        np.testing.assert_array_equal(detector.p_values(images), detector.p_values(bags))
        np.testing.assert_array_equal(detector.predict(images), detector.predict(bags))
        assert [e.score for e in detector.explain(images)] == [e.score for e in detector.explain(bags)]
        detector.save(tmp_path / "copy")
        again = pad.load(tmp_path / "copy", device="cpu")
        again.calibrate(images)
        np.testing.assert_allclose(again.calibrated().scores, np.sort(again.score(bags)), rtol=1e-6)
        fitted = pad.fit(images, **QUICK)
        np.testing.assert_array_equal(fitted.score(bags), pad.fit(bags, **QUICK).score(bags))


def test_files_count_as_often_as_they_are_named(detector: pad.Detector, bags: list[Path]) -> None:
    once = detector.score(bags[0])
    assert once.shape == (1,)
    np.testing.assert_array_equal(detector.score([bags[0]] * 3), np.repeat(once, 3))
    with pytest.raises(PadError, match="no image matches"):
        detector.score("nowhere/*.png")
    with pytest.raises(PadError, match=r"gone\.png: no such file|gone\.png\): no such file"):
        detector.score("gone.png")


def test_a_labelled_folder_calibrates_on_its_normal_images(detector: pad.Detector, fashion: Path) -> None:
    assert len(detector.score(fashion / "test")) == 140
    again = pad.fit(sorted((fashion / "train" / "ankle-boot").glob("*.png"))[:60], **QUICK)
    assert len(again.calibrate(fashion / "test")) == 40


def test_floats_in_zero_to_one(detector: pad.Detector, bags: list[Path]) -> None:
    arrays = np.stack([np.asarray(Image.open(path)) for path in bags])
    expected = detector.score(arrays)
    tensors = torch.from_numpy(arrays / 255)[:, None]
    for unit in (arrays / 255, (arrays / 255).astype(np.float32)[..., None], tensors, list(arrays / 255)):
        np.testing.assert_array_equal(detector.score(pad.from_unit_range(unit)), expected)
    colour = np.repeat(arrays[..., None], 3, 3)
    np.testing.assert_array_equal(pad.from_unit_range(colour / 255), colour)
    np.testing.assert_array_equal(
        pad.from_unit_range(torch.from_numpy(colour / 255).permute(0, 3, 1, 2)), colour
    )
    for wrong in (arrays / 100, arrays / 255 - 0.1, np.full((1, 8, 8), np.nan)):
        with pytest.raises(PadError, match=r"do not lie in \[0, 1\]"):
            pad.from_unit_range(wrong)
    with pytest.raises(PadError, match="takes floats"):
        pad.from_unit_range(arrays)


def test_fit_takes_floats_as_score_does(boots: Path, bags: list[Path]) -> None:
    arrays = np.stack([np.asarray(Image.open(path)) for path in sorted(boots.glob("*.png"))[:20]])
    expected = pad.fit(arrays, **QUICK).score(bags)
    floats = arrays[:, None] / 127.5 - 1
    for images in (floats, torch.from_numpy(floats)):
        np.testing.assert_array_equal(pad.fit(images, **QUICK).score(bags), expected)
    with pytest.raises(PadError, match=r"image 0: values from .* must lie in \[-1, 1\]"):
        pad.fit(3 * floats, **QUICK)


def test_a_table_is_what_evaluate_writes(detector: pad.Detector, fashion: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(fashion / "test" / "normal", data / "good")
    shutil.copytree(fashion / "test" / "bag", data / "bag")
    (data / "bag" / "broken.png").write_bytes(b"no image")
    detector.save(tmp_path / "model")
    run("evaluate", tmp_path / "model", data, "--out", tmp_path / "out")
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    frame = pad.table(detector, data)
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.path) == [row["path"] for row in rows]
    assert list(frame.verdict) == [row["verdict"] for row in rows]
    assert list(frame.error) == [row["error"] for row in rows]
    for column in ("score", "p_value"):
        np.testing.assert_allclose(frame[column], [float(row[column] or "nan") for row in rows], rtol=1e-8)
    assert frame[frame.kind == "bag"].anomalous.all()
    assert (frame.p_whole.dropna() <= 1).all()
    assert frame.score.isna().sum() == 1
    files = [data / "good" / "none.png", *sorted((data / "good").glob("*.png"))[:2]]
    small = pad.table(tmp_path / "model", files)
    assert list(small.error) == ["no such file", "", ""]
    assert "anomalous" not in small


def test_repr_tells(detector: pad.Detector, fashion: Path) -> None:
    text = repr(detector)
    assert "whole+middle+parts" in text
    assert "28x28 in grey" in text or "32x32 in grey" in text
    assert "trained on 60 images" in text
    assert "calibrated on 60 images" in text
    assert "in colour" in repr(pad.load("zoo:patches/retina", device="cpu"))


def test_notebooks_show_pictures(
    detector: pad.Detector, bags: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    explanation = detector.explain(bags[:1])[0]
    shown = explanation._repr_html_()
    content = base64.b64decode(shown.partition("base64,")[2].partition('"')[0])
    with Image.open(io.BytesIO(content)) as picture:
        expected = explanation.montage()
        assert picture.size == expected.size
        assert picture.tobytes() == expected.tobytes()
    assert f"score {explanation.score:.4g}" in shown
    said = detector._repr_html_()
    assert said.count("data:image/png") == min(8, detector.config.keep_normals)
    assert "<td>60 images of" in said
    monkeypatch.setitem(detector.card["data"], "source", "<script>x</script>")
    assert "<script>" not in detector._repr_html_()
    assert "trained on 60 images" in repr(detector)


def test_fine_tuning_of_quick_views_in_python(
    detector: pad.Detector, fashion: Path, bags: list[Path], tmp_path: Path
) -> None:
    old = sorted((fashion / "train" / "ankle-boot").glob("*.png"))[:60]
    both = pad.fit(bags, start=detector, replay=old, device="cpu")
    assert both.predict(bags).mean() < detector.predict(bags).mean() - 0.5
    assert set(both.card["fine_tuning"]["quality"]) >= {"new", "pseudo"}
    detector.save(tmp_path / "start")
    again = pad.fit(bags, start=tmp_path / "start", replay=old, device="cpu")
    np.testing.assert_array_equal(again.score(bags), both.score(bags))
    forgets = pad.fit(bags, start=detector, replay="none", device="cpu")
    assert forgets.score(old).mean() > both.score(old).mean()
    with pytest.raises(PadError, match="no generator to replay"):
        pad.fit(bags, start=detector, device="cpu")
    with pytest.raises(PadError, match="replay goes with start"):
        pad.fit(bags, replay=old, **QUICK)


def test_fine_tuning_of_a_generator_in_python_is_that_of_the_command(
    boots: Path, fashion: Path, tmp_path: Path
) -> None:
    start = pad.fit(boots, steps=4, device="cpu", **SMALL)
    start.save(tmp_path / "start")
    new = fashion / "test" / "sneaker"
    tuned = pad.fit(new, start=start, replay=boots, steps=3, device="cpu")
    assert tuned.card["fine_tuning"]["replayed_images"] > 0
    run("train", "--from", tmp_path / "start", "--data", new, "--replay", boots, "--steps", 3,
        "--out", tmp_path / "run", "--device", "cpu", "-q")  # fmt: skip
    by_command = pad.load(tmp_path / "run", device="cpu")
    np.testing.assert_array_equal(tuned.score(new), by_command.score(new))
    with pytest.raises(PadError, match="cannot go on with"):
        pad.fit(new, start=start, latent_dim=16, device="cpu")
