"""What `evaluate --report --explain` draws, and that drawing changes no score."""

from __future__ import annotations

import csv
import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pad.commands.parser import main
from pad.config import Config
from pad.detector import Detector
from pad.judging.map_scale import scale_of
from pad.networks import build_networks
from pad.showing.explanation import make_explanation
from pad.similarity.build import build_similarity
from pad.views.generator import GeneratorView


@pytest.fixture(scope="module")
def detector(boots: Path) -> Detector:
    """Untrained networks with a pixel similarity: quick, and all that drawing needs."""
    torch.manual_seed(0)
    config = Config(size=32, channels=1, similarity="l1", precision="float32")
    device = torch.device("cpu")
    view = GeneratorView(config, build_networks(config), build_similarity(config), device)
    found = Detector(config, view, None, device)
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
    scores, nearest, maps, latents, views = detector.examine(x)
    assert torch.equal(scores, detector.score_batch(x))
    assert torch.equal(nearest, detector.reconstruct(x))
    assert torch.equal(maps, detector.anomaly_map(x))
    assert torch.equal(latents, detector.encode(x))
    assert torch.equal(views, detector.score_views(x))
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


# What fails in drawing never touches the scores


def scores_of(folder: Path) -> list[tuple[str, str]]:
    return [(Path(r["path"]).name, r["score"]) for r in csv.DictReader((folder / "scores.csv").open())]


def test_large_pictures_of_every_mode_are_drawn(model: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    """From 513 pixels on, palettes, 1-bit and 16-bit pictures once ended the report, and lost the scores."""
    data, plain, drawn = tmp_path / "data", tmp_path / "plain", tmp_path / "drawn"
    data.mkdir()
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).resize((600, 530))
    grey = np.asarray(picture.convert("L"))
    for name in ("RGB.png", "P.png", "1.png", "L.png", "LA.png", "RGBA.png", "CMYK.jpg", "CMYK.tif",
                 "LAB.tif", "YCbCr.tif", "P.gif"):  # fmt: skip
        picture.convert(name.split(".")[0]).save(data / name)
    picture.convert("P").save(data / "clear.png", transparency=3)
    Image.fromarray(grey.astype(np.uint16) * 257).save(data / "deep.png")
    Image.fromarray(grey.astype(">u2") * 257).save(data / "deep.tif")
    Image.fromarray(grey.astype(np.int32) * 257).save(data / "I.tif")
    Image.fromarray(grey.astype(np.float32) / 255).save(data / "F.tif")
    assert main(["evaluate", model, str(data), "--out", str(plain)]) == 0
    assert main(["evaluate", model, str(data), "--out", str(drawn), "--report", "--explain"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"report: {drawn / 'report.html'}\n" in out
    assert f"explanations: {drawn / 'explanations'}\n" in out
    assert [name for name, _ in scores_of(plain)] == [name for name, _ in scores_of(drawn)]
    assert len(list((drawn / "explanations").glob("*.png"))) == 3 * len(list(data.iterdir()))
    text = (drawn / "report.html").read_text("utf-8")
    assert "without a picture" not in text


def test_a_palette_picture_without_a_palette_costs_no_other_row(
    model: str, boots: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Found by benchmarks/mutate_images.py. It is square: cropped, Pillow would have given it a palette."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 40, 40, 8, 3, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(range(40)) for _ in range(40)))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    shutil.copy(sorted(boots.glob("*.png"))[0], tmp_path / "data" / "b.png")
    out = tmp_path / "out"
    assert main(["evaluate", model, str(tmp_path / "data"), "--out", str(out), "--report", "--explain"]) == 0
    (name, score), (other, value) = scores_of(out)
    assert (name, score, other) == ("a.png", "", "b.png")
    assert float(value) > 0
    assert "the file is damaged (no palette)" in capsys.readouterr().err


class Vanishing:
    """An image in a container that is lost once it was read."""

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data

    def read(self) -> bytes:
        data, self.data = self.data, b""
        assert data is not None
        return data


def test_a_picture_that_cannot_be_drawn_is_left_out_and_told(detector: Detector, boots: Path, tmp_path: Path):
    from pad.images.imageset import ImageSet, Sample
    from pad.judging.summary import summarize
    from pad.scoring import score_batches
    from pad.showing.report import ReportWriter
    from pad.showing.visuals import Visuals

    paths = sorted(boots.glob("*.png"))[:6]
    contents = [*paths[:5], Vanishing(paths[5].read_bytes())]
    images = ImageSet([Sample(f"{i}.png") for i in range(6)], contents, [str(i) for i in range(6)], "memory")
    rows = []
    with ReportWriter(
        tmp_path / "report.html", calibration=detector.calibration, fpr=0.05, config=detector.config
    ) as report:
        visuals = Visuals(detector.config, detector.calibration, images, report, 6)
        for batch in score_batches(detector, images, 0.05, 4, examine=True):
            rows += batch.rows.values()
            visuals.add(*batch)
        written = visuals.finish(rows, summarize(rows, detector.calibration, 0.05), tmp_path)
    assert visuals.failures == ["no picture of 5.png: the file is empty"]
    assert visuals.unwritten is None
    assert len(written) == 6
    assert len(list((tmp_path / "explanations").glob("*.montage.png"))) == 5
    assert all(row.score is not None for row in rows)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "1 of 6 images are without a picture: it could not be drawn" in text
    blocks = [
        line
        for block in text.split('class="thumbnails">')[1:]
        for line in block.split("</script>")[0].split("\n")
    ]
    assert sorted(map(bool, blocks)) == [False, *[True] * 5]


def test_masks_that_cannot_be_used_cost_no_score(
    model: str, mvtec: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    data = tmp_path / "data"
    shutil.copytree(mvtec, data)
    masks = sorted((data / "ground_truth/square").iterdir())
    masks[0].write_bytes(b"junk")
    Image.new("L", (20, 20)).save(masks[1])
    assert main(["evaluate", model, str(data), "--out", str(tmp_path / "out"), "--report"]) == 0
    err = capsys.readouterr().err
    assert f"{masks[0]}: not an image of a supported format" in err
    assert f"{masks[1]} is 20x20 pixels, but its image has 28x28" in err
    assert "Traceback" not in err
    assert len(scores_of(tmp_path / "out")) == len(scores_of_all(model, data, tmp_path))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "2 images count in no pixel metric: their masks cannot be used" in summary["notes"]
    assert set(summary["pixels"]) == {"pixel_roc_auc", "aupro"}


def scores_of_all(model: str, data: Path, folder: Path) -> list[tuple[str, str]]:
    assert main(["evaluate", model, str(data), "--out", str(folder / "plain")]) == 0
    return scores_of(folder / "plain")


@pytest.mark.parametrize("option", ["--report", "--explain"])
def test_a_full_disk_costs_the_pictures_and_no_score(model: str, tmp_path: Path, option: str):
    """No file may grow beyond 20 kB, as if the disk were full: enough for the scores, not for pictures."""
    resource = pytest.importorskip("resource")
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(rng.integers(0, 255, (200, 200), dtype=np.uint8)).save(data / f"{i}.png")
    command = [sys.executable, "-m", "pad", "evaluate", model, str(data), "--out", str(out), option]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert "cannot write" in done.stderr
    assert done.stderr.endswith("the scores are complete\n")
    assert len(scores_of(out)) == 30
    assert json.loads((out / "summary.json").read_text())["counts"]["scored"] == 30
    assert not (out / "report.html").exists()


def test_drawing_takes_little_memory(model: str, tmp_path: Path):
    """A palette picture of 40 million pixels: what drawing takes beside scoring is far below one RGB copy."""
    image = Image.new("P", (8000, 5000), 3)
    image.putpalette([i % 256 for i in range(768)])
    image.save(tmp_path / "large.png", compress_level=1)
    peaks = []
    program = (
        "import resource, sys; from pad.commands.parser import main; status = main(sys.argv[1:]);"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    )
    for name, extra in (("plain", []), ("drawn", ["--report", "--explain"])):
        arguments = ["evaluate", model, str(tmp_path / "large.png"), "--out", str(tmp_path / name), *extra]
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True, text=True, cwd=Path(__file__).parent.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split("peak ")[1]) / 1024)
    assert peaks[1] < peaks[0] + 100  # MB; an RGB copy takes 120, a map at its size 160
