"""Large pictures in tiles: how they are cut, what a picture's score and map are; one verdict a picture."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from pad_process import run
from PIL import Image

import pad
from pad.config import Config, from_mapping
from pad.detector import Detector
from pad.errors import PadError
from pad.images.canvas import SIDE, Canvas
from pad.images.decode import to_tensor
from pad.images.geometry import tile_boxes
from pad.images.tiles import Tiled, as_seen, tiled
from pad.images.variation import draw, varied
from pad.views.features import joined_features
from pad.views.quick import build_quick

ROOT = Path(__file__).parent.parent
TILE = 64
PATCH = 24  # pixels
ONE_VIEW = Config(size=64, channels=3, tile=64, fit="stretch", views=("whole",), steps=0)


# How a picture is cut


@pytest.mark.parametrize(
    ("width", "height", "tile", "columns", "rows"),
    [
        (256, 256, 256, 1, 1),
        (257, 256, 256, 2, 1),
        (1000, 448, 256, 5, 2),
        (448, 449, 256, 2, 3),
        (97, 640, 64, 2, 13),
    ],
)
def test_tiles_cover_the_picture_flush_with_its_edges_and_overlap_by_a_quarter(
    width: int, height: int, tile: int, columns: int, rows: int
) -> None:
    boxes = tile_boxes((10, 20, 10 + width, 20 + height), tile)
    assert len(boxes) == len(set(boxes)) == columns * rows
    assert all(right - left == tile and bottom - top == tile for left, top, right, bottom in boxes)
    for axis, start, length in ((0, 10, width), (1, 20, height)):
        starts = sorted({box[axis] for box in boxes})
        assert (starts[0], starts[-1] + tile) == (start, start + length)
        assert all(b - a <= tile - tile // 4 for a, b in pairwise(starts))


def test_a_picture_smaller_than_a_tile_is_one_tile() -> None:
    assert tile_boxes((0, 0, 100, 80), 256) == [(0, 0, 100, 80)]
    assert tile_boxes((0, 0, 400, 80), 256) == [(0, 0, 256, 80), (144, 0, 400, 80)]


def of_mode(mode: str, photographs: Path) -> Image.Image:
    """150x100 pixels."""
    with Image.open(photographs / "coffee.png") as image:
        picture = image.convert("RGB").resize((150, 100))
    if mode == "I;16":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 200)
    if mode == "F":
        return Image.fromarray(np.asarray(picture.convert("L")).astype(np.float32) / 300)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        return picture
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "F"])
def test_a_tile_is_the_part_of_the_picture_as_the_model_sees_it(mode: str, photographs: Path) -> None:
    picture = of_mode(mode, photographs)
    pictures = tiled(picture, ONE_VIEW)
    middle = to_tensor(picture, Config(size=64, channels=3, crop=64))
    torch.testing.assert_close(pictures.cut((43, 18, 107, 82)), middle, atol=1e-6, rtol=0)
    (boxes, first), (_, second) = pictures.batches(4)
    assert first.shape == (4, 3, 64, 64)
    assert len(first) + len(second) == len(pictures.boxes) == 6
    assert torch.equal(first[1], pictures.cut(boxes[1]))


def test_white_is_a_matter_of_the_whole_picture() -> None:
    """The left of a float picture in 0..255 has no value above 1, and by itself would pass for white."""
    pixels = np.zeros((64, 192), np.float32)
    pixels[:, :64], pixels[:, 64:] = 1.0, 200.0
    cut = tiled(Image.fromarray(pixels), ONE_VIEW).cut
    assert cut((0, 0, 64, 64)).max() == pytest.approx(2 / 255 - 1, abs=1e-6)


def test_arrays_and_tensors_are_cut_alike(photographs: Path) -> None:
    pixels = np.asarray(of_mode("RGB", photographs))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
    of_array, of_tensor = (as_seen(given[None], ONE_VIEW)[0] for given in (pixels, tensor))
    assert isinstance(of_array, Tiled)
    assert isinstance(of_tensor, Tiled)
    assert of_array.boxes == of_tensor.boxes
    for box in of_array.boxes:
        torch.testing.assert_close(of_array.cut(box), of_tensor.cut(box), atol=1e-6, rtol=0)
    with pytest.raises(PadError, match=r"images\[1\]"):
        as_seen([pixels, np.zeros((3, 3, 3, 3), np.uint8)], ONE_VIEW)


def test_all_tiles_of_a_picture_vary_alike(photographs: Path) -> None:
    picture = tiled(of_mode("RGB", photographs), ONE_VIEW)
    tolerate = {"brightness": 0.3, "flip": 1.0}
    variation = draw(tolerate, picture.random(5))
    for box in picture.boxes:
        assert torch.equal(picture.in_variation(tolerate, 5).cut(box), varied(picture.cut(box), variation))


# The map of the whole


def test_a_canvas_shows_no_seam_and_keeps_places() -> None:
    region = (100, 0, 900, 600)
    canvas = Canvas(2, region)
    for box in tile_boxes(region, 256):
        x = box[0] + (torch.arange(64) + 0.5) * 4
        canvas.add(box, torch.stack([torch.full((64, 64), 3.0), x.expand(64, 64)]))
    found = canvas.mean()
    assert found.shape == (2, SIDE, SIDE)
    torch.testing.assert_close(found[0], torch.full((SIDE, SIDE), 3.0))
    expected = 100 + (torch.arange(SIDE) + 0.5) * 800 / SIDE
    assert (found[1] - expected).abs().max() < 800 / SIDE  # a cell


def test_a_canvas_is_as_large_for_a_picture_of_any_size() -> None:
    region = (0, 0, 40_000, 700)
    canvas = Canvas(1, region)
    for box in tile_boxes(region, 64):
        canvas.add(box, torch.full((1, 64, 64), float(box[0] >= 20_000)))
    found = canvas.mean()
    assert found.shape == (1, SIDE, SIDE)
    assert found[0, :, : SIDE // 2 - 1].max() == 0
    assert found[0, :, SIDE // 2 + 1 :].min() == pytest.approx(1)


# Scores


@pytest.fixture(scope="module")
def scenes(photographs: Path) -> list[np.ndarray]:
    """32 pictures of 256x192 pixels: parts of photographs, each moved by a pixel or two, and noise."""
    sources = []
    for path in sorted(photographs.glob("*.png")):
        with Image.open(path) as image:
            sources.append(np.asarray(image.convert("RGB").resize((132, 102)), dtype=np.float64))
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(32):
        parts = []
        for source in sources[:3]:
            for top in (0, 34):
                for left in (0, 64):
                    y, x = rng.integers(0, 5, 2)
                    parts.append(source[top + y : top + y + 64, left + x : left + x + 64])
        scene = np.concatenate([np.concatenate(parts[i : i + 4], 1) for i in (0, 4, 8)])
        pictures.append((scene + rng.normal(0, 3, scene.shape)).round().clip(0, 255).astype(np.uint8))
    return pictures


@pytest.fixture(scope="module")
def defective(scenes: list[np.ndarray], boots: Path) -> list[tuple[np.ndarray, int, int]]:
    """The last eight with a small grey boot pasted on, and where: x and y of its corner."""
    rng = np.random.default_rng(1)
    with Image.open(min(boots.glob("*.png"))) as image:
        boot = np.asarray(image.convert("RGB").resize((PATCH, PATCH)))
    found = []
    for scene in scenes[24:]:
        x, y = int(rng.integers(0, 256 - PATCH)), int(rng.integers(0, 192 - PATCH))
        pixels = scene.copy()
        pixels[y : y + PATCH, x : x + PATCH] = boot
        found.append((pixels, x, y))
    return found


@pytest.fixture(scope="module")
def eight(scenes: list[np.ndarray]) -> Detector:
    """Of so few pictures that each is a fold of its own, and all tiles teach."""
    return pad.fit(scenes[:8], device="cpu", tile=TILE, tolerate="none", steps=0, view_size=64, input_size=64,
                   precision="float32")  # fmt: skip


def tensors(pixels: np.ndarray, config: Config) -> torch.Tensor:
    """The tiles of a picture, cut by hand."""
    boxes = tile_boxes((0, 0, pixels.shape[1], pixels.shape[0]), TILE)
    parts = [pixels[top:bottom, left:right] for left, top, right, bottom in boxes]
    return torch.stack([to_tensor(Image.fromarray(part), config.replace(tile=None)) for part in parts])


def test_a_picture_is_as_unusual_as_its_most_unusual_tile(
    eight: Detector, defective: list[tuple[np.ndarray, int, int]]
) -> None:
    pixels = defective[0][0]
    each = eight.score_views(tensors(pixels, eight.config))
    assert len(each) == 20
    assert eight.fusion is not None
    expected = eight.fusion.fuse(each.amax(0, keepdim=True).numpy())
    np.testing.assert_allclose(eight.score([pixels]), expected, rtol=1e-4)
    examined = eight.examine(as_seen([pixels], eight.config))
    np.testing.assert_allclose(examined.scores.numpy(), expected, rtol=1e-4)
    assert examined.maps.shape == (1, SIDE, SIDE)
    assert examined.nearest.shape == (1, 3, SIDE, SIDE)
    assert -1 <= examined.nearest.min() < examined.nearest.max() <= 1
    (explained,) = eight.explain([pixels])
    assert explained.anomaly_map.shape == (192, 256)


def test_pictures_are_calibrated_by_fits_that_saw_none_of_their_tiles(
    eight: Detector, scenes: list[np.ndarray]
) -> None:
    assert eight.calibration is not None
    assert len(eight.calibration.scores) == 8
    features = [eight.features(tensors(pixels, eight.config)) for pixels in scenes[:8]]
    views = build_quick(eight.config)
    scores = []
    for held_out in range(8):
        views.fit(joined_features([f for i, f in enumerate(features) if i != held_out]))
        scores.append(views.scores(features[held_out]).amax(0))
    for column, name in zip(torch.stack(scores).numpy().T, eight.views, strict=True):
        np.testing.assert_allclose(eight.calibration.extra["views"][name], np.sort(column), rtol=2e-3)


def test_tiles_are_for_the_quick_views() -> None:
    assert not Config(tile=64, views=("generator", "whole"), steps=100).has_generator
    with pytest.raises(PadError, match=r"setting 'tile'.*besides the generator"):
        from_mapping({"tile": 64, "views": ["generator"]})
    with pytest.raises(PadError, match="setting 'tile' cannot be 8"):
        from_mapping({"tile": 8, "views": ["whole"]})


# Through the command line


def write(folder: Path, pictures: list[np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for i, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def trained(scenes: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    data = write(folder / "normal", scenes[:24])
    done = run("train", "--data", data, "--out", folder / "run", "--tile", TILE, "--steps", 300, "--device",
               "cpu", "--set", "view_size=64", "input_size=64")  # fmt: skip
    assert "cut into overlapping tiles of 64 pixels" in done.stdout
    assert done.stdout.count("no generator: it does not look at tiles") == 1
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_one_verdict_a_picture_by_a_model_that_knows_its_tile(
    trained: Path, scenes: list[np.ndarray], defective: list[tuple[np.ndarray, int, int]], tmp_path: Path
) -> None:
    recipe = yaml.safe_load((trained / "run" / "model" / "config.yaml").read_text())["recipe"]
    assert recipe["tile"] == TILE
    calibration = json.loads((trained / "run" / "model" / "calibration.json").read_text())
    assert len(calibration["scores"]) == 24
    folder = tmp_path / "data"
    write(folder / "normal", scenes[24:])
    write(folder / "boot", [pixels for pixels, _, _ in defective])
    (folder / "boot" / "broken.png").write_bytes(b"junk")
    for out, batch in (("out", 128), ("again", 1)):
        run("evaluate", trained / "run", folder, "--out", tmp_path / out, "--fpr", 0.05,
            "--batch-size", batch, "--device", "cpu", "--report", "--explain", 3)  # fmt: skip
    found = rows(tmp_path / "out" / "scores.csv")
    assert [row["score"] for row in found] == [
        row["score"] for row in rows(tmp_path / "again" / "scores.csv")
    ]
    assert len(found) == 17
    (broken,) = [row for row in found if row["path"].endswith("broken.png")]
    assert broken["error"]
    boots = [row for row in found if "/boot/" in row["path"] and row is not broken]
    normal = [row for row in found if "/normal/" in row["path"]]
    assert sum(row["verdict"] == "anomaly" for row in boots) >= 7
    assert sum(row["verdict"] == "anomaly" for row in normal) <= 2
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(list((tmp_path / "out" / "explanations").glob("*.overlay.png"))) == 3


def test_the_map_of_the_whole_points_at_the_patch(
    trained: Path, defective: list[tuple[np.ndarray, int, int]]
) -> None:
    detector, hits = pad.load(trained / "run", device="cpu"), 0
    explanations = detector.explain([pixels for pixels, _, _ in defective])
    for explained, (_, x, y) in zip(explanations, defective, strict=True):
        row, column = np.unravel_index(explained.anomaly_map.argmax(), explained.anomaly_map.shape)
        hits += abs(column - x - PATCH / 2) <= PATCH and abs(row - y - PATCH / 2) <= PATCH
    assert hits >= 7


def test_a_model_of_tiles_is_recalibrated_like_any_other(
    trained: Path, scenes: list[np.ndarray], tmp_path: Path
) -> None:
    data = write(tmp_path / "others", scenes[24:])
    run("calibrate", trained / "run", data, "--out", tmp_path / "model", "--device", "cpu")
    detector = pad.load(tmp_path / "model", device="cpu")
    assert detector.calibration is not None
    assert len(detector.calibration.scores) == 8


def test_minutes_do_not_go_with_tiles(scenes: list[np.ndarray], tmp_path: Path) -> None:
    data = write(tmp_path / "normal", scenes[:8])
    done = run("train", "--data", data, "--out", tmp_path / "run", "--tile", 64, "--minutes", 1, status=2)
    assert "leave it or --tile away" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
