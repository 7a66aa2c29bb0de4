"""What `evaluate --report --explain` draws, and that drawing changes no score."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pad.commands.parser import main
from pad.config import Config
from pad.detector import Detector
from pad.networks import build_networks
from pad.showing.explanation import make_explanation, scale_of
from pad.similarity.build import build_similarity


@pytest.fixture(scope="module")
def detector(boots: Path) -> Detector:
    """Untrained networks with a pixel similarity: quick, and all that drawing needs."""
    torch.manual_seed(0)
    config = Config(size=32, channels=1, similarity="l1", precision="float32")
    found = Detector(config, build_networks(config), build_similarity(config), torch.device("cpu"))
    found.calibrate(sorted(boots.glob("*.png"))[:60])
    return found


@pytest.fixture(scope="module")
def model(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "model"
    detector.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def mvtec(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MVTec layout: white squares pasted on boots, with their masks; one file is no image."""
    root = tmp_path_factory.mktemp("mvtec")
    for folder in ("train/good", "test/good", "test/square", "ground_truth/square"):
        (root / folder).mkdir(parents=True)
    for i, path in enumerate(sorted(boots.glob("*.png"))[60:80]):
        pixels = np.array(Image.open(path).convert("L"))
        if i < 10:
            Image.fromarray(pixels).save(root / f"test/good/{i}.png")
            Image.fromarray(pixels).save(root / f"train/good/{i}.png")
            continue
        mask = np.zeros_like(pixels)
        mask[2:9, 3:9] = 255
        Image.fromarray(np.maximum(pixels, mask)).save(root / f"test/square/{i}.png")
        Image.fromarray(mask).save(root / f"ground_truth/square/{i}_mask.png")
    (root / "test/square/broken.png").write_bytes(b"junk")
    return root


def test_examine_gives_what_one_by_one_gives(detector: Detector):
    x = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scores, nearest, maps, latents = detector.examine(x)
    assert torch.equal(scores, detector.score_batch(x))
    assert torch.equal(nearest, detector.reconstruct(x))
    assert torch.equal(maps, detector.anomaly_map(x))
    assert torch.equal(latents, detector.encode(x))
    torch.testing.assert_close(maps.mean((1, 2)), scores)


def test_calibration_keeps_the_scale_of_maps(detector: Detector, model: str):
    loaded = Detector.load(model)
    scale = scale_of(loaded.calibration)
    assert scale is not None
    assert scale == scale_of(detector.calibration)
    assert 0 < scale.low < scale.high


def test_explain_takes_what_score_takes(detector: Detector, boots: Path):
    paths = sorted(boots.glob("*.png"))[:3]
    pictures = [Image.open(path).convert("L") for path in paths]
    arrays = np.stack([np.array(p) for p in pictures])
    wanted = detector.score(paths)
    for images in (paths, pictures, arrays, arrays[..., None]):
        explained = detector.explain(images)
        np.testing.assert_allclose([e.score for e in explained], wanted, rtol=1e-6)
        np.testing.assert_array_equal([e.p_value for e in explained], detector.p_values(paths))
        assert all(e.anomaly_map.shape == (28, 28) for e in explained)
    tensor = torch.rand(2, 1, 40, 40) * 2 - 1
    np.testing.assert_allclose([e.score for e in detector.explain(tensor)], detector.score(tensor), rtol=1e-6)
    assert detector.explain(tensor)[0].anomaly_map.shape == (40, 40)
    assert len(detector.explain(paths[0])) == 1


def test_evaluate_draws_and_scores_alike(model: str, mvtec: Path, tmp_path: Path):
    plain, drawn = tmp_path / "plain", tmp_path / "drawn"
    assert main(["evaluate", model, str(mvtec), "--out", str(plain)]) == 0
    command = ["evaluate", model, str(mvtec), "--out", str(drawn), "--report", "--explain", "4"]
    assert main([*command, "--batch-size", "7"]) == 0
    rows = list(csv.DictReader((plain / "scores.csv").open()))
    drawn_rows = list(csv.DictReader((drawn / "scores.csv").open()))
    assert [(r["path"], r["verdict"], r["error"]) for r in rows] == [
        (r["path"], r["verdict"], r["error"]) for r in drawn_rows
    ]
    scores = [[float(r["score"] or 0) for r in part] for part in (rows, drawn_rows)]
    np.testing.assert_allclose(*scores, rtol=1e-5)  # the batch size moves the last bits
    assert sorted(p.name for p in plain.iterdir()) == ["scores.csv", "summary.json"]
    assert sorted(p.name for p in drawn.iterdir()) == [
        "explanations",
        "report.html",
        "scores.csv",
        "summary.json",
    ]

    ranked = sorted(range(len(rows)), key=lambda i: -scores[0][i])[:4]
    wanted = {f"{i + 1:06d}-{Path(rows[i]['path']).stem}.montage.png" for i in ranked}
    assert {p.name for p in (drawn / "explanations").glob("*.montage.png")} == wanted
    text = (drawn / "report.html").read_text("utf-8")
    assert "broken.png" in text
    assert "similarity: l1" in text
    summary = json.loads((drawn / "summary.json").read_text())
    assert set(summary["pixels"]) == {"pixel_roc_auc", "aupro"}
    assert "pixels" not in json.loads((plain / "summary.json").read_text())


def test_masks_are_compared_at_the_images_own_resolution(
    detector: Detector, mvtec: Path, model: str, tmp_path: Path
):
    """The pixel ROC AUC of the command, against maps and masks read here."""
    from sklearn.metrics import roc_auc_score

    maps, masks = [], []
    for path in sorted((mvtec / "test").glob("*/[0-9]*.png")):
        image, mask = Image.open(path), mvtec / "ground_truth/square" / f"{path.stem}_mask.png"
        examined = detector.examine(detector_input(image, detector.config))
        explanation = make_explanation(image, examined.nearest[0], examined.maps[0], detector.config, 1.0)
        maps.append(explanation.anomaly_map.ravel())
        defective = path.parent.name == "square"
        masks.append(np.array(Image.open(mask)).ravel() > 0 if defective else np.zeros(28 * 28, bool))
    main(["evaluate", model, str(mvtec), "--out", str(tmp_path), "--explain", "1"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    wanted = roc_auc_score(np.concatenate(masks), np.concatenate(maps))
    assert summary["pixels"]["pixel_roc_auc"] == pytest.approx(wanted, abs=2e-3)


def detector_input(image: Image.Image, config: Config) -> torch.Tensor:
    from pad.images.decode import to_tensor

    return to_tensor(image, config)[None]


@pytest.mark.parametrize("option", ["--report", "--explain"])
@pytest.mark.parametrize("out", [[], ["--out", "-"]])
def test_drawing_needs_a_folder(
    model: str, mvtec: Path, option: str, out: list[str], capsys: pytest.CaptureFixture
):
    assert main(["evaluate", model, str(mvtec), option, *out]) == 2
    error = capsys.readouterr().err
    assert f"{option} writes files: name a folder for them with --out" in error
    assert error.count("\n") == 1
