"""`pad export`: one graph that says what the model says, and is run without torch."""

from __future__ import annotations

import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torch.nn import functional as F

import pad
from pad.config import Config
from pad.errors import PadError
from pad.export.graph import Graph
from pad.export.onnx import to_onnx
from pad.export.parity import check_parity, made_up
from pad.exported import Exported
from pad.images.decode import batch_tensor
from pad.images.resize import by_matrices

ROOT = Path(__file__).parent.parent
SMALL = {
    "latent_dim": 8,
    "generator_channels": [8, 8, 8],
    "encoder_channels": [8, 8, 8],
    "critic_channels": [8, 8, 8],
    "latent_critic_channels": [16],
    "batch_size": 16,
    "steps": 5,
    "device": "cpu",
    "tolerate": "none",
}


def command(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = forked.run(["-m", "pad", *map(str, words)], env=environment)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def model(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All views, with a generator."""
    folder = tmp_path_factory.mktemp("export") / "model"
    images = sorted(boots.glob("*.png"))
    pad.fit(images, view_size=64, precision="float32", **SMALL).save(folder)
    return folder


@pytest.fixture(scope="module")
def graph(model: Path) -> Path:
    file = model.parent / "model.onnx"
    told = command("export", model, "--out", file).stdout
    assert "p-values are equal" in told
    return file


@pytest.fixture(scope="module")
def detector(model: Path) -> pad.Detector:
    return pad.load(model, device="cpu", precision="float32")


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    photographs = [
        np.asarray(Image.open(path)) for path in sorted((ROOT / "tests/data/photographs").iterdir())
    ]
    noise = [random.integers(0, 256, size, np.uint8) for size in ((5, 7, 3), (200, 90, 1), (33, 28, 3))]
    return [p if p.ndim == 3 else p[..., None] for p in photographs] + noise


def test_the_graph_says_what_the_model_says(graph: Path, detector: pad.Detector) -> None:
    exported = Exported(graph)
    for pixels in pictures():
        said = exported.run(pixels[None], explain=True)
        np.testing.assert_allclose(said["score"], detector.score(pixels[None]), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(said["p_value"], detector.p_values(pixels[None]))
        assert said["anomalous"] == detector.predict(pixels[None])
        examined = detector.examine(batch_tensor([pixels], detector.config))
        np.testing.assert_allclose(said["view_scores"], examined.views, rtol=1e-4)
        np.testing.assert_allclose(said["anomaly_map"], examined.maps, rtol=1e-2, atol=1e-3)
        nearest = ((examined.nearest + 1) * 127.5).permute(0, 2, 3, 1)
        np.testing.assert_allclose(said["nearest_normal"], nearest, atol=1.5)


def test_batches_and_rates(graph: Path, detector: pad.Detector, boots: Path) -> None:
    exported = Exported(graph)
    batch = np.stack([np.asarray(Image.open(path)) for path in sorted(boots.glob("*.png"))[:12]])[..., None]
    alone = [float(exported.run(pixels[None])["score"][0]) for pixels in batch]
    said = exported.run(batch, explain=True)
    np.testing.assert_allclose(said["score"], alone, rtol=1e-5, atol=1e-5)
    assert said["anomaly_map"].shape[0] == 12
    for rate in (0.04, 0.2, 0.5, 0.9):
        np.testing.assert_array_equal(exported.run(batch, rate)["anomalous"], said["p_value"] <= rate)
    assert exported.run(batch)["anomaly_map"].shape[0] == 0  # costs nothing where it is not asked for
    given = exported._session.run(None, {"images": batch})  # the other inputs may be left away
    assert [len(output) for output in given] == [12] * len(given)
    np.testing.assert_array_equal(given[2], given[1] <= 0.05)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_refused(graph: Path, channels: int) -> None:
    with pytest.raises(Exception, match=r"(?i)out of.*bounds"):
        Exported(graph).run(np.zeros((1, 9, 9, channels), np.uint8))


NO_TORCH = """
import sys
from pad.commands.parser import main
status = main(sys.argv[1:])
assert status == 0
heavy = {"torch", "torchvision", "timm"} & set(sys.modules)
assert not heavy, heavy
"""


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "scores.csv").open() as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_evaluate_gives_the_same_rows_without_torch(
    graph: Path, model: Path, fashion: Path, photographs: Path, tmp_path: Path
) -> None:
    Image.new("I;16", (40, 30), 9000).save(tmp_path / "deep.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.new("RGBA", (20, 50), (200, 10, 30, 99)).save(tmp_path / "glass.png")
    Image.new("P", (31, 20), 3).save(tmp_path / "palette.gif")
    data = [
        fashion / "test",
        photographs,
        *(tmp_path / n for n in ("broken.png", "glass.png", "palette.gif")),
    ]
    words = ["--fpr", "0.1", "--format", "csv"]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, "evaluate", graph, *data, *words, "--out", tmp_path / "a"],
        capture_output=True, text=True, timeout=250, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    command("evaluate", model, *data, *words, "--out", tmp_path / "b", "--precision", "float32")
    ours, theirs = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert list(ours) == list(theirs)
    for path, row in ours.items():
        assert (row["p_value"], row["verdict"], row["error"]) == (
            theirs[path]["p_value"],
            theirs[path]["verdict"],
            theirs[path]["error"],
        ), path
        if row["score"]:
            assert float(row["score"]) == pytest.approx(float(theirs[path]["score"]), rel=1e-4, abs=1e-4)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab"]
    assert summaries[0]["counts"] == summaries[1]["counts"]
    assert summaries[0]["calibration"] == summaries[1]["calibration"]
    assert summaries[0]["roc_auc"]["value"] == pytest.approx(summaries[1]["roc_auc"]["value"], abs=1e-3)

    # What has more than 8 bits is no guess.
    deep = command("evaluate", graph, tmp_path / "deep.png", fashion / "test" / "bag", "--out", "-").stdout
    assert "more than 8 bits" in deep.splitlines()[1]


def test_views_travel_with_the_rows(graph: Path, fashion: Path) -> None:
    lines = command("evaluate", graph, fashion / "test" / "bag", "--out", "-", "--format", "jsonl").stdout
    views = [set(json.loads(line)["views"]) for line in lines.splitlines()]
    assert views == [{"generator", "whole", "middle", "parts"}] * 20


def test_options_of_an_exported_graph(graph: Path, fashion: Path, tmp_path: Path) -> None:
    bag = fashion / "test" / "bag"
    told = command("evaluate", graph, bag, "--out", tmp_path / "x", "--report", status=2).stderr
    assert "--report takes the model itself" in told
    assert "runs" not in told
    assert "run on the CPU" in command("evaluate", graph, bag, "--device", "cuda", status=2).stderr
    assert "no such file" in command("evaluate", tmp_path / "none.onnx", bag, status=2).stderr
    (tmp_path / "text.onnx").write_bytes(b"text")
    assert "cannot be read as ONNX" in command("evaluate", tmp_path / "text.onnx", bag, status=2).stderr
    other = onnx.load(graph)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / "other.onnx")
    assert "not a file of `pad export`" in command("evaluate", tmp_path / "other.onnx", bag, status=2).stderr
    command("evaluate", graph, bag, "--fail-on-anomaly", status=3)
    assert "ends in .onnx" in command("export", "zoo:digits/three", "--out", "x.bin", status=2).stderr


def test_what_the_file_says_of_itself(graph: Path, model: Path) -> None:
    card = Exported(graph).card
    assert card["model"] == model.name
    assert str(model.parent) not in json.dumps(card)
    assert card["views"] == ["generator", "whole", "middle", "parts"]
    assert card["data"]["images"] + card["data"]["calibration_images"] == 120
    assert set(card["versions"]) == {"pad", "torch"}
    # From the latents that a model keeps, likenesses of its normal images could be made.
    kept = json.loads((model / "calibration.json").read_text())
    assert kept["extra"]["replay"]
    assert "replay" not in card["calibration"]["extra"]
    assert kept["scores"] == card["calibration"]["scores"]


def test_a_graph_that_says_something_else_is_not_written(
    graph: Path, detector: pad.Detector, tmp_path: Path
) -> None:
    parity = check_parity(Exported(graph), detector, list(made_up()))
    assert parity.largest_difference < 1e-4
    assert parity.images == len(list(made_up()))
    original, scores = onnx.load(graph), detector.calibrated().scores.astype(np.float32)

    def changed(find: str, change: Any) -> Exported:
        other = copy.deepcopy(original)
        for tensor in other.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if find in tensor.name or (find == "calibration" and np.array_equal(values.ravel(), scores)):
                tensor.CopyFrom(numpy_helper.from_array(change(values), tensor.name))
                break
        else:
            raise AssertionError(find)
        onnx.save(other, tmp_path / "changed.onnx")
        return Exported(tmp_path / "changed.onnx")

    with pytest.raises(PadError, match=r"scores .* instead of"):
        check_parity(
            changed("whole.gaussians.0.rest", lambda v: v * np.float32(1.01)), detector, list(made_up())
        )
    with pytest.raises(PadError, match="gives the p-value"):
        check_parity(changed("calibration", lambda c: c + np.float32(10)), detector, list(made_up()))


def test_what_cannot_be_exported(detector: pad.Detector, boots: Path) -> None:
    bare = pad.Detector(detector.config, detector.generator, detector.quick, detector.device)
    with pytest.raises(PadError, match="no calibration"):
        Graph(bare)
    refining = detector.config.replace(refine_steps=2)
    with pytest.raises(PadError, match="refine_steps"):
        Graph(pad.Detector(refining, detector.generator, None, detector.device, detector.calibration))
    tiled = pad.fit(boots, steps=0, tile=32, view_size=32, device="cpu", tolerate="none")
    with pytest.raises(PadError, match="--tile"):
        Graph(tiled)
    with pytest.raises(PadError, match="--opset takes 18"):
        to_onnx(detector, "x", "y", opset=11)


@pytest.mark.parametrize(
    ("height", "width"), [(256, 406), (37, 1), (3000, 300), (28, 28), (128, 127), (1, 3)]
)
def test_matrices_resize_as_torch_does(height: int, width: int) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (1, 2, height, width), generator=random).float()
    for side in (28, 96, 224):
        expected = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
        torch.testing.assert_close(by_matrices(x, side), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": 1, "fit": "crop"},
        {"channels": 3, "fit": "stretch"},
        {"channels": 3, "fit": "crop", "crop": 50},
        {"channels": 1, "fit": "stretch", "crop": 20},
    ],
)
def test_pixels_of_the_graph_are_those_of_the_reader(
    settings: dict[str, Any], detector: pad.Detector
) -> None:
    config = Config(size=32, **settings)
    graph = Graph(detector)
    graph.config = config
    for pixels in pictures():
        seen = graph.seen(torch.tensor(pixels)[None])
        expected = batch_tensor([pixels], config)
        # Sums are rounded to a shade, and may fall on either side of its middle.
        assert (seen - expected).abs().max() <= 1.01 * 2 / 255
        assert ((seen - expected).abs() > 1e-4).float().mean() < 0.01
