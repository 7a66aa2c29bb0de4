"""`pad export`: one graph that says what the model says, and is run without torch."""

from __future__ import annotations

import copy
import csv
import json
import os
import shutil
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
from scipy.special import logsumexp
from torch.nn import functional as F

import pad
from pad.config import Config
from pad.errors import PadError
from pad.export.chosen import with_views
from pad.export.graph import OUTPUTS, Graph
from pad.export.int8 import measure_loss, to_int8
from pad.export.onnx import to_onnx
from pad.export.parity import check_parity, made_up
from pad.export.program import Program
from pad.exported import Exported
from pad.images.decode import batch_tensor
from pad.images.resize import by_matrices
from pad.images.resolve import resolve
from pad.judging.calibration import Calibration

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


def test_openvino_says_the_same(graph: Path, detector: pad.Detector, boots: Path) -> None:
    """As docs/production.md has it: compared as an export is."""
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install openvino")
    judge = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [given.any_name for given in judge.inputs] == ["images"]
    count = len(detector.calibrated()) + 1

    class Runs:
        def run(
            self, images: np.ndarray, fpr: float | None = None, explain: bool = False
        ) -> dict[str, np.ndarray]:
            judged = judge({"images": images})
            said = {name: judged[name] for name in OUTPUTS}
            # It divides in single precision, as no other runtime does.
            in_double = (said["p_value"] * count).round() / count
            np.testing.assert_allclose(said["p_value"], in_double, rtol=1e-6)
            return {**said, "p_value": in_double}

    assert check_parity(Runs(), detector, [*made_up(), *pictures()]).other_p_values == 0
    batch = np.stack([np.asarray(Image.open(path)) for path in sorted(boots.glob("*.png"))[:12]])[..., None]
    ours, theirs = Exported(graph).run(batch, explain=True), Runs().run(batch)
    np.testing.assert_allclose(theirs["score"], ours["score"], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(theirs["anomalous"], ours["anomalous"])


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
    three = ("export", "zoo:digits/three", "--out")
    assert "ends in .onnx" in command(*three, "x.bin", status=2).stderr
    assert "ends in .onnx, or say --format torch-export" in command(*three, "x.pt2", status=2).stderr
    program = ("--format", "torch-export")
    assert "ends in .pt2, or say --format onnx" in command(*three, "x.onnx", *program, status=2).stderr
    assert "--opset is of ONNX" in command(*three, "x.pt2", *program, "--opset", 20, status=2).stderr
    assert "--int8 is of ONNX" in command(*three, "x.pt2", *program, "--int8", status=2).stderr


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


@pytest.fixture(scope="module")
def two_views(model: Path) -> Program:
    """Two of the views as a program of torch."""
    file = model.parent / "two.pt2"
    words = ["--format", "torch-export", "--views", "whole, generator"]
    told = command("export", model, "--out", file, *words).stdout
    assert "80 p-values are equal" in told
    assert "views: generator, whole, with a calibration of their own" in told
    assert "pad evaluate" not in told
    return Program(file.read_bytes())


def test_a_program_of_torch_says_what_the_model_says(
    two_views: Program, model: Path, detector: pad.Detector
) -> None:
    chosen = with_views(detector, ["generator", "whole"], "it")
    # Whoever has torch needs no `pad` to run it.
    extra = {"pad": ""}
    run = torch.export.load(model.parent / "two.pt2", extra_files=extra).module()
    assert json.loads(extra["pad"])["fingerprint"] == two_views.card["fingerprint"]
    assert json.loads(extra["pad"])["model"] == "model"
    for pixels in pictures():
        with torch.no_grad():
            said = run(torch.tensor(pixels)[None], torch.tensor(0.3, dtype=torch.float64))
        examined = chosen.examine(batch_tensor([pixels], chosen.config))
        torch.testing.assert_close(said["score"], examined.scores, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(said["anomaly_map"], examined.maps, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(said["p_value"], chosen.p_values(pixels[None]))
        assert bool(said["anomalous"]) == bool(chosen.predict(pixels[None], 0.3))
        np.testing.assert_array_equal(two_views.run(pixels[None], 0.3)["score"], said["score"])
    with pytest.raises(Exception, match="out of DATA bounds"):
        two_views.run(np.zeros((1, 9, 9, 2), np.uint8))


def test_int8_is_of_backbones_alone_and_its_loss_is_told(
    graph: Path, boots: Path, fashion: Path, tmp_path: Path
) -> None:
    def pixels(paths: list[Path]) -> list[np.ndarray]:
        return [np.asarray(Image.open(path))[..., None] for path in paths]

    original = onnx.load(graph)
    quantized = to_int8(original, pixels(sorted(boots.glob("*.png"))[:16]))
    assert original == onnx.load(graph)  # nothing was taken from it
    onnx.save(quantized, tmp_path / "int8.onnx")
    kinds = {t.name: t.data_type for t in quantized.graph.initializer}
    rounded = {name.removesuffix("_quantized") for name, k in kinds.items() if k == onnx.TensorProto.INT8}
    assert any("backbone.model.blocks" in name for name in rounded)
    assert any("similarity.backbone" in name for name in rounded)
    assert not any("networks" in name for name in rounded)
    assert not any("conv_stem" in name or "relu1_1" in name for name in rounded)  # they see pixels
    assert (tmp_path / "int8.onnx").stat().st_size < 0.7 * graph.stat().st_size

    single, int8 = Exported(graph), Exported(tmp_path / "int8.onnx")
    assert int8.card == single.card
    new = pixels(sorted((fashion / "test").rglob("*.png"))[::4])
    loss = measure_loss(int8, single, new)
    before, after = (graph.run(np.stack(new)) for graph in (single, int8))
    assert loss.pictures == 35
    assert loss.largest_change == pytest.approx(np.abs(before["p_value"] - after["p_value"]).max(), abs=0.02)
    changed = (before["anomalous"] != after["anomalous"]).mean()
    assert loss.other_verdicts == pytest.approx(changed, abs=1.5 / 35)  # batches differ in rounding
    known, moved = single.calibration.scores, (after["score"] - before["score"]).astype(np.float64)
    flagged = [((known >= c + d).sum() + 1) / 51 <= 0.05 for c in known for d in moved]
    assert loss.false_alarms == pytest.approx(np.mean(flagged), abs=0.01)
    assert loss.before == pytest.approx(1 / 50)  # the second of 50 has a p-value of 3 / 51
    assert np.corrcoef(before["score"], after["score"])[0, 1] > 0.95
    assert np.abs(moved).max() > 1e-3  # something was rounded
    # A graph that is not quantized loses nothing.
    assert measure_loss(single, single, new)[1:] == (0, 0, pytest.approx(1 / 50), pytest.approx(1 / 50))


def test_int8_through_the_command_line(fashion: Path, tmp_path: Path) -> None:
    file = tmp_path / "int8.onnx"
    model = copied_zoo_model("digits/three", tmp_path / "model")
    refused = command("export", model, "--out", file, "--int8", status=2).stderr
    assert "model keeps no pictures to measure the loss on" in refused
    assert "--samples DATA" in refused
    assert len(refused.splitlines()) == 1
    samples = ROOT / "zoo/digits/three/samples"
    told = command("export", model, "--out", file, "--int8", "--samples", samples).stdout
    count = len(list(samples.rglob("*.png")))
    assert f"compared on {count + 16} pictures" in told  # in single precision
    (said,) = [line for line in told.splitlines() if line.startswith("then int8: ")]
    loss = Exported(file).card["int8"]
    assert loss["pictures"] == count // 2
    said = said.removeprefix("then int8: ")
    assert said.startswith(f"of {count // 2} pictures p-values changed by up to ")
    assert f"{loss['verdicts_changed']:.1%} of the verdicts at 5%" in said
    # And wherever it is used.
    summary = command("evaluate", file, samples, "--out", tmp_path / "x").stdout
    assert f"the graph is of int8: {said}" in summary
    assert "this model's own rate" not in summary
    notes = json.loads((tmp_path / "x" / "summary.json").read_text())["notes"]
    assert f"the graph is of int8: {said}" in notes
    other = onnx.load(file)
    (entry,) = [entry for entry in other.metadata_props if entry.key == "pad"]
    entry.value = json.dumps({**json.loads(entry.value), "int8": {"pictures": 3}})
    onnx.save(other, tmp_path / "other.onnx")
    assert (
        "not a file of `pad export`" in command("evaluate", tmp_path / "other.onnx", samples, status=2).stderr
    )


def copied_zoo_model(name: str, place: Path) -> Path:
    """Without its samples."""
    place.mkdir()
    for file in (ROOT / "zoo" / name).iterdir():
        if file.is_file():
            shutil.copy(file, place)
    return place


def test_programs_of_torch_are_not_read_from_strangers(model: Path, two_views: Program, boots: Path) -> None:
    told = command("evaluate", model.parent / "two.pt2", boots, status=2).stderr
    assert "torch reads such files by pickle" in told
    assert len(told.splitlines()) == 1


def test_where_a_file_was_made_is_not_in_it(graph: Path, two_views: Program, model: Path) -> None:
    for file in (graph, model.parent / "two.pt2"):
        content = file.read_bytes()
        for place in (ROOT, torch.__path__[0], model.parent):
            assert str(place).encode() not in content, (file.name, place)


def test_some_views_are_calibrated_as_a_model_of_these_views(
    two_views: Program, boots: Path, fashion: Path
) -> None:
    """Trained with the same seed and only two of the views, a model has the same calibration images: the
    graph of these two says what it says."""
    images = sorted(boots.glob("*.png"))
    other = pad.fit(images, view_size=64, precision="float32", views=["generator", "whole"], **SMALL)
    new = sorted((fashion / "test").rglob("*.png"))[::4]
    said = two_views.run(np.stack([np.asarray(Image.open(path)) for path in new])[..., None])
    assert two_views.card["views"] == ["generator", "whole"]
    calibration = Calibration.from_dict(two_views.card["calibration"])
    np.testing.assert_array_equal(calibration.scores, other.calibrated().scores)
    np.testing.assert_array_equal(said["p_value"], other.p_values(new))
    np.testing.assert_allclose(said["score"], other.score(new), rtol=1e-5, atol=1e-5)
    p_values = calibration.view_p_values(("generator", "whole"), said["view_scores"])
    for name, expected in other.view_p_values(new).items():
        np.testing.assert_array_equal(p_values[name], expected)


@pytest.mark.parametrize("names", [("parts",), ("generator",), ("whole", "middle")])
def test_a_detector_of_some_views_of_its_own(
    names: tuple[str, ...], detector: pad.Detector, fashion: Path
) -> None:
    """Verdicts by scores and calibration of these views alone, computed here from what the model keeps."""
    chosen = with_views(detector, names, "it")
    new = resolve([fashion / "test"], "evaluate").subset(range(0, 140, 7))
    columns = [detector.views.index(name) for name in names]
    rows, fusion = detector.calibrated().rows(detector.views), detector.fusion
    views = torch.cat([*detector._each_batch(detector.score_views, new)]).numpy()
    if len(names) == 1:
        known, scores = rows[:, columns[0]], views[:, columns[0]]
    else:
        share = fusion.weights[columns] / fusion.weights[columns].sum()
        standardized = (
            (np.log(of.astype(np.float64)) - fusion.mean) / fusion.deviation for of in (rows, views)
        )
        known, scores = (logsumexp(u[:, columns], b=share, axis=1) for u in standardized)
    expected = (1 + (known >= scores[:, None] - 1e-6).sum(1)) / (len(known) + 1)
    np.testing.assert_allclose(chosen.p_values(new), expected, rtol=1e-12)
    assert chosen.views == names
    assert detector.views == ("generator", "whole", "middle", "parts")  # it is as it was
    assert ("map_scale" in chosen.calibrated().extra) == (names == ("parts",))


def test_views_that_cannot_be_calibrated_are_refused(
    model: Path, detector: pad.Detector, tmp_path: Path
) -> None:
    told = command("export", model, "--out", tmp_path / "x.onnx", "--views", "whole,part", status=2).stderr
    assert "--views: model has no view 'part', it has generator, whole, middle, parts; did you mean" in told
    assert len(told.splitlines()) == 1
    old = copy.copy(detector)
    extra = dict(detector.calibrated().extra)
    del extra["view_ranks"]
    old.calibration = Calibration(detector.calibrated().scores, extra)
    with pytest.raises(PadError, match=r"keeps the scores of each view apart.*pad calibrate") as error:
        with_views(old, ["whole", "parts"], "it")
    assert "\n" not in str(error.value)
    alone = with_views(old, ["whole"], "it")  # of one view, its scores are all that it takes
    np.testing.assert_array_equal(
        alone.calibrated().scores, np.sort(detector.calibrated().rows(["whole"])[:, 0])
    )
    # What does not add up to the scores that are kept is not believed.
    ranks = {**detector.calibrated().extra["view_ranks"]}
    ranks["parts"] = ranks["parts"][::-1]
    old.calibration = Calibration(detector.calibrated().scores, {**extra, "view_ranks": ranks})
    with pytest.raises(PadError, match="keeps the scores of each view apart"):
        with_views(old, ["whole", "parts"], "it")
    assert with_views(old, list(detector.views), "it") is old


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
