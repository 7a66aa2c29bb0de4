"""Strangers among the images: how they are told, what a training makes of them, and `pad clean`."""

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
from torch import Tensor
from torch.nn import functional as F

import pad
from pad.config import Config, from_mapping
from pad.errors import PadError
from pad.images.hashes import Hashes
from pad.images.resolve import resolve
from pad.learning.cleaning import rank
from pad.learning.quick import fitted_indices
from pad.learning.strangers import farthest, how_far, standing_apart
from pad.recipes import build_config
from pad.store.moves import LOG, move_aside

SMALL = ["view_size=96", "keep_normals=4"]
STRANGERS = 12


def ranking_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "ranking.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def names(rows: list[dict[str, str]]) -> list[str]:
    return [Path(row["path"]).name for row in rows]


@pytest.fixture(scope="module")
def dirty(fashion: Path, boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 ankle boots, 12 trousers among them, and a file that is no image."""
    folder = tmp_path_factory.mktemp("data") / "dirty"
    shutil.copytree(boots, folder / "some")
    (folder / "more").mkdir()
    for i, file in enumerate(sorted((fashion / "test" / "trouser").glob("*.png"))[:STRANGERS]):
        shutil.copy(file, folder / "more" / f"trouser-{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


# Which images are strangers


def cloud(count: int, centre: int, seed: int, spread: float = 1.0) -> Tensor:
    """Features (count, 32) of unit length around a direction."""
    centres = F.normalize(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), dim=1) * 8
    noise = torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))
    return F.normalize(centres[centre] + spread * noise, dim=1)


def distinct(count: int) -> Hashes:
    return np.arange(count).astype(np.uint64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strangers", [10, 20])
def test_a_small_group_beyond_a_gap_stands_apart(strangers: int, seed: int) -> None:
    x = torch.cat([cloud(180, 0, seed), cloud(strangers, 1, seed + 100)])
    apart = standing_apart(x, distinct(len(x)))
    assert apart[180:].all()
    assert not apart[:180].any()


@pytest.mark.parametrize("seed", range(5))
def test_in_one_cloud_nobody_stands_apart(seed: int) -> None:
    x = cloud(200, 0, seed)
    assert not standing_apart(x, distinct(len(x))).any()


def test_one_of_several_kinds_is_no_stranger() -> None:
    x = torch.cat([cloud(24, kind, kind) for kind in range(8)])
    assert not standing_apart(x, distinct(len(x))).any()


def test_a_quarter_of_the_images_is_a_kind_of_normal_and_of_few_images_nobody_can_tell() -> None:
    x = torch.cat([cloud(150, 0, 0), cloud(50, 1, 1)])
    assert standing_apart(x, distinct(200), most=0.4).tolist() == [False] * 150 + [True] * 50
    assert not standing_apart(x, distinct(200)).any()
    few = torch.cat([cloud(60, 0, 0), cloud(8, 1, 1)])
    assert not standing_apart(few, distinct(68)).any()


@pytest.mark.parametrize("count", [10, 20, 40])
def test_the_share_that_belongs_least_has_its_size_and_the_strangers_in_it(count: int) -> None:
    x = torch.cat([cloud(180, 0, 0), cloud(20, 1, 1)])
    chosen = farthest(x, distinct(200), count / 200)
    assert int(chosen.sum()) == count
    assert int(chosen[180:].sum()) == min(count, 20)


def test_far_is_counted_in_deviations_of_the_lower_half() -> None:
    z = how_far(torch.cat([cloud(180, 0, 0), cloud(20, 1, 1)]), distinct(200))
    assert float(z.quantile(0.5)) == pytest.approx(0, abs=1e-4)
    assert float(z.quantile(0.16)) == pytest.approx(-1, abs=1e-4)
    assert float(z[180:].min()) > 2.5


def test_a_share_is_one_of_less_than_half_and_not_of_tiles() -> None:
    with pytest.raises(PadError, match=r"'contamination' cannot be 0\.5; it takes null or a share from 0 to"):
        Config(contamination=0.5)
    with pytest.raises(PadError, match="'contamination' cannot be 'much'; it takes a number or null"):
        from_mapping({"contamination": "much"})
    with pytest.raises(PadError, match="where there are tiles"):
        Config(contamination=0.1, tile=64, views=("whole",), steps=0)
    with pytest.raises(PadError, match="no views besides the generator"):
        Config(contamination=0.1)


# Training


def trained(data: Path, out: Path, *more: object) -> tuple[dict, dict, str]:
    """config.yaml, calibration.json and what was said on standard error."""
    said = run("train", "--data", data, "--out", out, "--steps", 0, "--device", "cpu", "--set", *SMALL, *more)
    config = yaml.safe_load((out / "model" / "config.yaml").read_text())
    return config, json.loads((out / "model" / "calibration.json").read_text()), said.stderr


Training = tuple[Path, dict, dict, str]  # its folder, and what `trained` gives


@pytest.fixture(scope="module")
def by_contamination(dirty: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Training]:
    """Trainings on what is dirty, by how much of it is said to be."""
    folder = tmp_path_factory.mktemp("trainings")
    shares = ("0", "0.1")
    return {s: (folder / s, *trained(dirty, folder / s, f"contamination={s}")) for s in shares}


def test_a_training_leaves_out_what_stands_apart_but_calibrates_on_all(
    dirty: Path, by_contamination: dict[str, Training], tmp_path: Path
) -> None:
    config, calibration, said = trained(dirty, tmp_path / "run")
    assert f"{STRANGERS} of 132 images stand apart from the others" in said
    assert config["data"]["apart"] == STRANGERS
    assert len(calibration["scores"]) == 132
    all_learnt, calibration, said = by_contamination["0"][1:]
    assert "apart" not in said
    assert (all_learnt["data"]["apart"], len(calibration["scores"])) == (0, 132)
    told, calibration, said = by_contamination["0.1"][1:]
    assert "apart" not in said
    assert (told["data"]["apart"], len(calibration["scores"])) == (13, 119)
    dry = run("train", "--data", dirty, "--out", tmp_path / "dry", "--steps", 0, "--dry-run", "--set",
              "contamination=0.1").stdout  # fmt: skip
    assert "false-alarm rates can be held from --fpr 0.0083" in dry


def test_beside_a_generator_strangers_are_left_out_of_the_quick_views(dirty: Path, tmp_path: Path) -> None:
    small = ["latent_dim=8", "generator_channels=[8,8,8]", "encoder_channels=[8,8,8]", "batch_size=8",
             "critic_channels=[8,8,8]", "latent_critic_channels=[16]", "layers=relu2_2"]  # fmt: skip
    calibrating = []
    for setting in ("null", "0.1"):
        out = tmp_path / setting
        run("train", "--data", dirty, "--out", out, "--steps", 1, "--device", "cpu", "--set", *SMALL, *small,
            f"contamination={setting}")  # fmt: skip
        config = yaml.safe_load((out / "model" / "config.yaml").read_text())
        assert config["data"]["apart"] == {"null": STRANGERS, "0.1": 13}[setting]
        calibration = json.loads((out / "model" / "calibration.json").read_text())
        calibrating.append(len(calibration["scores"]))
        assert config["data"]["calibration_images"] >= calibrating[-1]
    assert calibrating[0] > calibrating[1]
    run("train", "--out", tmp_path / "null", "--resume", "--steps", 2, "--device", "cpu")


def test_strangers_are_flagged_by_a_model_that_was_told_of_them(
    by_contamination: dict[str, Training], fashion: Path
) -> None:
    strangers = sorted((fashion / "test" / "trouser").glob("*.png"))[STRANGERS:]
    found = []
    for setting in ("0.1", "0"):
        folder = by_contamination[setting][0]
        found.append(float(pad.load(folder).predict(strangers, fpr=0.05).mean()))
    assert found[0] > 0.9
    assert found[1] <= 0.5


def test_a_new_normal_that_comes_to_an_old_one_is_no_stranger(
    dirty: Path, boots: Path, tmp_path: Path
) -> None:
    trained(boots, tmp_path / "old", "contamination=0.1")
    run("train", "--from", tmp_path / "old", "--data", dirty / "more", "--replay", boots, "--out",
        tmp_path / "both", "--steps", 0, "--device", "cpu")  # fmt: skip
    config = yaml.safe_load((tmp_path / "both" / "model" / "config.yaml").read_text())
    assert (config["data"]["images"], config["data"]["apart"]) == (132, 0)


# pad clean


@pytest.fixture(scope="module")
def cleaned(dirty: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The folder with the results, a copy of the dirty folder that was cleaned, and what was said."""
    out = tmp_path_factory.mktemp("cleaned")
    data = out / "data"
    shutil.copytree(dirty, data)
    done = run("clean", data, "--out", out / "results", "--report", "--move-to", out / "aside", "--device",
               "cpu", "--set", *SMALL)  # fmt: skip
    return out, data, done.stdout + done.stderr


def test_clean_ranks_every_image_and_those_that_do_not_belong_first(
    cleaned: tuple[Path, Path, str],
) -> None:
    out, _, said = cleaned
    rows = ranking_of(out / "results")
    assert list(rows[0]) == ["path", "score", "p_value", "verdict", "error"]
    assert len(rows) == 133
    assert {row["verdict"] for row in rows[:STRANGERS]} == {"anomaly"}
    assert all(name.startswith("trouser-") for name in names(rows[:STRANGERS]))
    scores = [float(row["score"]) for row in rows[:-1]]
    assert scores[STRANGERS:] == sorted(scores[STRANGERS:], reverse=True)
    assert (Path(rows[-1]["path"]).name, rows[-1]["score"]) == ("broken.png", "")
    assert rows[-1]["error"]
    assert f"132 images ranked; {STRANGERS} stand apart from the others" in said
    assert "skipped" in said
    counts = json.loads((out / "results" / "summary.json").read_text())["counts"]
    assert counts == {"images": 133, "scored": 132, "unreadable": 1, "flagged": STRANGERS}
    page = (out / "results" / "report.html").read_text(encoding="utf-8")
    assert "What does not belong in data" in page
    assert f"the first {STRANGERS} images of ranking.csv are marked" in page
    assert "in whichever view (whole, middle, parts)" in page


def test_clean_moves_what_is_marked_to_the_same_place_elsewhere(cleaned: tuple[Path, Path, str]) -> None:
    out, data, said = cleaned
    assert f"moved {STRANGERS} files to" in said
    moved = sorted(path.relative_to(out / "aside" / "data") for path in (out / "aside").rglob("*.png"))
    assert moved == sorted(Path("more") / f"trouser-{i}.png" for i in range(STRANGERS))
    assert len(list(data.rglob("*.png"))) == 121
    with (out / "aside" / "moved.csv").open(encoding="utf-8", newline="") as file:
        log = list(csv.DictReader(file))
    assert {Path(row["from"]).relative_to(data) for row in log} == set(moved)
    assert all(Path(row["to"]).is_file() and not Path(row["from"]).exists() for row in log)


def test_clean_moves_nothing_where_nobody_stands_apart_and_as_many_as_it_is_told(
    boots: Path, tmp_path: Path
) -> None:
    shutil.copytree(boots, tmp_path / "data")
    common = ("--device", "cpu", "--set", *SMALL)
    done = run("clean", tmp_path / "data", "--out", tmp_path / "a", "--move-to", tmp_path / "aside", *common)
    assert "120 images ranked; no group stands apart" in done.stdout
    assert not (tmp_path / "aside").exists()
    assert {row["verdict"] for row in ranking_of(tmp_path / "a")} == {"normal"}
    before = (tmp_path / "a" / "ranking.csv").read_bytes()
    run("clean", tmp_path / "data", "--out", tmp_path / "a", *common)
    assert (tmp_path / "a" / "ranking.csv").read_bytes() == before
    done = run("clean", tmp_path / "data", "--first", 3, "--move-to", tmp_path / "aside", *common)
    assert "the first 3 are marked" in done.stdout
    moved = sorted(path.name for path in (tmp_path / "aside").rglob("*.png"))
    assert moved == sorted(names(ranking_of(tmp_path / "a")[:3]))


def test_clean_says_in_one_line_what_it_cannot_do(boots: Path, tmp_path: Path) -> None:
    assert "name a folder for them with --out" in run("clean", boots, "--report", status=2).stderr
    inside = run("clean", boots, "--move-to", boots / "aside", status=2).stderr
    assert "name a folder outside" in inside
    (tmp_path / "few").mkdir()
    for file in sorted(boots.glob("*.png"))[:5]:
        shutil.copy(file, tmp_path / "few")
    assert "at least 8 images; found 5 images in few" in run("clean", tmp_path / "few", status=2).stderr
    assert "'steps' cannot be 0" in run("clean", boots, "--set", "views=[generator]", status=2).stderr
    assert (
        "'contamination' cannot be 0.7" in run("clean", boots, "--set", "contamination=0.7", status=2).stderr
    )


# Moving


def test_a_file_never_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text(name)
    (tmp_path / "link.png").symlink_to(tmp_path / "kept")
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "x.png").write_text("there before")
    places = [(tmp_path / "a" / "x.png", Path("x.png")), (tmp_path / "b" / "x.png", Path("x.png"))]
    log = move_aside([*places, (tmp_path / "link.png", Path("sub/link.png"))], tmp_path / "aside")
    assert log == tmp_path / "aside" / LOG
    found = {path.name: path.read_text() for path in (tmp_path / "aside").glob("*.png")}
    assert found == {"x.png": "there before", "x-1.png": "a", "x-2.png": "b"}
    assert (tmp_path / "aside" / "sub" / "link.png").is_symlink()
    rows = list(csv.reader(log.read_text().splitlines()))
    assert rows[0] == ["from", "to"]
    assert [Path(row[1]).name for row in rows[1:]] == ["x-1.png", "x-2.png", "link.png"]
    (tmp_path / "b" / "y.png").write_text("y")
    move_aside([(tmp_path / "b" / "y.png", Path("y.png"))], tmp_path / "aside")
    assert len(log.read_text().splitlines()) == 5


def test_what_cannot_be_moved_is_named_and_what_was_moved_before_is_noted(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("x")
    places = [(tmp_path / "x.png", Path("x.png")), (tmp_path / "gone.png", Path("gone.png"))]
    with pytest.raises(PadError, match=r"cannot move .*gone.png"):
        move_aside(places, tmp_path / "aside")
    assert sorted(path.name for path in (tmp_path / "aside").iterdir()) == [LOG, "x.png"]


def test_of_many_images_those_that_are_not_fitted_on_are_ranked_too(
    dirty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = resolve([str(dirty)], "evaluate")
    config = build_config(None, {"steps": 0, "tolerate": "none", "view_size": 64}, images)
    everyone = rank(images, config, torch.device("cpu"))
    monkeypatch.setattr("pad.learning.quick.FIT_IMAGES", 40)
    part = rank(images, config, torch.device("cpu"))
    for ranking in (everyone, part):
        assert [row.path for row in ranking.rows] == [sample.name for sample in images.samples]
        assert len(ranking.order) == 132
        assert sum(bool(row.error) for row in ranking.rows) == 1
    fitted = fitted_indices(len(images), 0, config)
    assert len(fitted) == 40
    others = [i for i in part.order if i not in fitted]
    scores = part.detector.score([images.contents[i] for i in others])
    assert scores.tolist() == pytest.approx([part.rows[i].score for i in others], rel=1e-4)
