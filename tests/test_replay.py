"""Fine-tuning: what is replayed, that it keeps the old normal, and what is said about it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_cli import SMALL, run

import pad
from pad.detector import Detector
from pad.errors import PadError
from pad.images.identity import hashes_of
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.images.stream import load_all
from pad.learning.comparison import compare, format_quality, pseudo_anomalies, warnings_of
from pad.learning.images import MemoryImages, load_images, split_images
from pad.learning.replay import (
    MixedImages,
    Replay,
    calibrate_both,
    generate,
    kept_latents,
    make_replay,
    mix,
    stored_latents,
)


@pytest.fixture(scope="module")
def model(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small model of ankle boots."""
    folder = tmp_path_factory.mktemp("runs") / "boots"
    settings = ["--set", *SMALL, "layers=relu1_2", "views=generator", "tolerate=none"]
    run("train.py", "--data", boots, "--out", folder, "--device", "cpu", "--steps", 150, *settings)
    return folder


@pytest.fixture(scope="module")
def old(model: Path) -> Detector:
    return pad.load(model, device="cpu")


@pytest.fixture(scope="module")
def trousers(fashion: Path) -> Path:
    """A plain folder of 20 images of another kind."""
    return fashion / "test" / "trouser"


def fine_tune(model: Path, data: Path, out: Path, *more: object, status: int = 0) -> str:
    start = () if "--resume" in more else ("--from", model)
    done = run("train.py", "--data", data, "--out", out, "--device", "cpu", *start, *more, status=status)
    return done.stdout + done.stderr


def test_mixed_latents_keep_mean_and_covariance() -> None:
    random = torch.Generator().manual_seed(0)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 1.0]])
    latents = torch.randn(4000, 2, generator=random) @ torch.linalg.cholesky(covariance).T
    mixed = mix(latents[:, :, None, None], 20000, random).flatten(1)
    assert mixed.mean(0).abs().max() < 0.05
    assert torch.allclose(torch.cov(mixed.T), covariance, atol=0.06)


def test_kept_latents_are_few_and_spread_over_the_scores() -> None:
    latents = torch.arange(1000.0)[:, None].expand(-1, 128)
    kept = kept_latents(latents, -torch.arange(1000.0))
    assert len(kept) == 128  # 16,384 numbers
    values = [row[0] for row in kept]
    assert values[0] == 999
    assert values[-1] == 0
    assert np.abs(np.diff(values)).max() <= 9
    assert len(kept_latents(latents[:3, :2], torch.zeros(3))) == 3


def test_mixed_images_come_in_the_order_asked_for() -> None:
    new, old_images = torch.full((3, 1, 2, 2), 0.25), torch.full((2, 1, 2, 2), -0.5)
    mixed = MixedImages(MemoryImages(new), old_images, 2)
    assert len(mixed) == 5
    assert mixed.batch(torch.tensor([3, 0, 4, 1]))[:, 0, 0, 0].tolist() == [-0.5, 0.25, -0.5, 0.25]
    assert mixed.batch(torch.tensor([1])).shape == (1, 1, 2, 2)


def test_a_model_replays_what_it_calls_normal(old: Detector) -> None:
    latents = stored_latents(old)
    assert latents is not None
    assert latents.shape == (50, 8, 1, 1)
    replay = make_replay(old, 30)
    assert replay.generated
    assert replay.training.shape == (30, 1, 28, 28)
    assert torch.equal(replay.held_out, generate(old, latents))
    assert torch.equal(replay.training, make_replay(old, 30).training)
    # Its own images lie nearer to what it can make than real ones do.
    assert old.calibration is not None
    assert np.median(old.score(replay.training)) < np.median(old.calibration.scores)


def test_a_model_that_kept_no_latents_replays_the_prior(model: Path) -> None:
    detector = pad.load(model, device="cpu")
    assert detector.calibration is not None
    del detector.calibration.extra["replay"]
    replay = make_replay(detector, 12)
    assert "prior" in replay.source
    assert replay.training.shape == (12, 1, 28, 28)
    detector.calibration.extra["replay"] = [[1.0, 2.0]]
    with pytest.raises(PadError, match="'replay' must hold lists of 8 finite numbers"):
        make_replay(detector, 12)


def test_fine_tuning_learns_the_new_and_keeps_the_old(
    model: Path, old: Detector, trousers: Path, fashion: Path, tmp_path: Path
) -> None:
    text = fine_tune(model, trousers, tmp_path / "with", "--steps", 60)
    fine_tune(model, trousers, tmp_path / "without", "--steps", 60, "--replay", "none")
    kept, forgot = (pad.load(tmp_path / name, device="cpu") for name in ("with", "without"))
    real_old = [*(fashion / "test" / "normal").glob("*.png")]
    before, with_replay, without = (d.score(real_old).mean() for d in (old, kept, forgot))
    assert with_replay - before < 0.5 * (without - before)
    _, held_out = split_images(resolve([str(trousers)], "train"), kept.config)
    assert kept.score(held_out).mean() < 0.8 * old.score(held_out).mean()
    # The table, and the same numbers in the model's own record
    quality = yaml.safe_load((tmp_path / "with" / "model" / "config.yaml").read_text())["fine_tuning"][
        "quality"
    ]
    assert "old normal, generated" in text
    assert quality["new"]["images"] == len(held_out)
    assert quality["new"]["before"]["flagged"] > 0.8
    assert f"{quality['old']['after']['mean_score']:8.3f}" in text
    assert "an estimate" in text
    assert "an estimate" in (tmp_path / "with" / "model" / "README.md").read_text()


def test_mu_and_sigma_stay_and_what_is_known_of_errors_is_new(
    model: Path, trousers: Path, tmp_path: Path
) -> None:
    fine_tune(model, trousers, tmp_path / "run", "--steps", 2)
    ours, theirs = (
        pad.load(path, device="cpu").generator.similarity.state_dict() for path in (tmp_path / "run", model)
    )
    new = {f"statistics.relu1_2.{name}" for name in ("weight", "components", "units")}
    assert new < theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs.keys() - new)
    assert not any(torch.equal(ours[key], theirs[key]) for key in new)


def test_calibration_covers_both(
    model: Path, old: Detector, trousers: Path, boots: Path, tmp_path: Path
) -> None:
    text = fine_tune(model, trousers, tmp_path / "images", "--steps", 2, "--replay", boots)
    assert "old normal, held out" in text
    assert "estimate" not in text
    tuned = pad.load(tmp_path / "images", device="cpu")
    assert tuned.calibration is not None
    assert tuned.calibration.extra["old_normal"] == "measured"
    assert len(tuned.calibration) == 10 + 50  # held out of 20 trousers, and of 120 boots
    fine_tune(model, trousers, tmp_path / "own", "--steps", 2)
    content = json.loads((tmp_path / "own" / "model" / "calibration.json").read_text())
    assert content["extra"]["old_normal"] == "estimated"
    assert len(content["scores"]) == 10 + 50
    assert old.calibration is not None
    # Of the 50 old scores none is taken as lower than it was.
    assert sum(s >= old.calibration.scores[0] - 1e-6 for s in content["scores"]) >= 50
    assert max(content["scores"]) >= old.calibration.scores[-1] - 1e-6
    assert len(content["extra"]["replay"]) == 5 + 25  # the next fine-tuning replays both


@pytest.fixture(scope="module")
def grown(fashion: Path, boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 120 images of `boots` and 40 more under new names, so that their order is another."""
    folder = tmp_path_factory.mktemp("grown")
    for path in [*boots.glob("*.png"), *(fashion / "test" / "normal").glob("*.png")]:
        name = hashlib.sha256(f"{path.parent.name}/{path.name}".encode()).hexdigest()[:8]
        (folder / f"{name}.png").write_bytes(path.read_bytes())
    assert len([*folder.iterdir()]) == 160
    return folder


def pixels(images: ImageSet) -> set[bytes]:
    return {np.asarray(images.open(i)).tobytes() for i in range(len(images))}


def test_nothing_is_calibrated_on_that_an_earlier_model_was_trained_on(
    model: Path, old: Detector, boots: Path, grown: Path, tmp_path: Path
) -> None:
    """A folder that has grown, fine-tuned on twice with other seeds: by position, 35 of the 50 calibration
    images had been trained on."""
    text = fine_tune(model, grown, tmp_path / "second", "--steps", 2, "--replay", "none", "--seed", 5)
    assert "70 of these were trained on before; none of them calibrates" in text
    fine_tune(tmp_path / "second", grown, tmp_path / "third", "--steps", 2, "--replay", "none", "--seed", 6)
    second, third = (pad.load(tmp_path / name, device="cpu") for name in ("second", "third"))
    first_training, _ = split_images(resolve([str(boots)], "train"), old.config)
    trained = pixels(first_training)
    assert len(trained) == 70
    before = old
    for tuned in (second, third):
        training, calibration = split_images(resolve([str(grown)], "train"), tuned.config, before.trained_on)
        assert not pixels(calibration) & trained
        assert tuned.calibration is not None
        np.testing.assert_allclose(tuned.calibration.scores, np.sort(tuned.score(calibration)), rtol=1e-5)
        trained |= pixels(training)
        assert tuned.trained_on is not None
        assert len(tuned.trained_on) == len(trained)
        assert tuned.trained_among(training).all()
        assert not tuned.trained_among(calibration).any()
        before = tuned


def test_views_are_fitted_anew_on_what_their_generator_may_not_calibrate_on(
    boots: Path, grown: Path, tmp_path: Path
) -> None:
    """Beside quick views the images that calibrate are fitted on as well, and judged by cross-fitting: so a
    later `pad calibrate` leaves them out, while fine-tuning, which fits the views anew, may calibrate on
    them again, but on nothing that the generator was trained on."""
    settings = ("--set", *SMALL, "layers=relu1_2", "views=[generator,whole]", "view_size=64")
    run("train.py", "--data", boots, "--out", tmp_path / "a", "--device", "cpu", "--steps", 2, *settings)
    first = pad.load(tmp_path / "a", device="cpu")
    images = resolve([str(boots)], "train")
    assert first.trained_on is not None
    assert (len(first.trained_on), len(first.fitted_on)) == (70, 120)
    assert first.trained_among(images).all()
    assert first.trained_among(images, views=False).sum() == 70
    with pytest.raises(PadError, match="trained on 120 of the 120 images"):
        first.calibrate(images)
    # An image that the generator was trained on is refused even where the views are cross-fitted.
    training, calibration = split_images(images, first.config)
    with pytest.raises(PadError, match="trained on 70 of the 70 images"):
        first.calibrate(training, quick_scores=np.ones((70, 1), np.float32))
    assert first.calibrate(calibration, quick_scores=np.ones((50, 1), np.float32)).caveat is None

    fine_tune(tmp_path / "a", grown, tmp_path / "b", "--steps", 2, "--replay", "none")
    second = pad.load(tmp_path / "b", device="cpu")
    training, calibration = split_images(resolve([str(grown)], "train"), second.config, first.trained_on)
    assert not pixels(calibration) & pixels(split_images(images, first.config)[0])
    assert second.calibration is not None
    assert len(second.calibration) == len(calibration) == 50
    assert second.trained_among(training, views=False).all()
    assert not second.trained_among(calibration, views=False).any()
    assert second.trained_among(calibration).all()
    quality = second.card["fine_tuning"]["quality"]
    assert quality["new"]["after"]["mean_score"] == pytest.approx(second.calibration.scores.mean(), abs=1e-4)


def test_quick_views_alone_go_on_from_a_model(
    boots: Path, trousers: Path, fashion: Path, tmp_path: Path
) -> None:
    """They are fitted anew, on old images as well where these are given; without a generator nothing replays
    by itself. With steps a generator is trained beside them."""
    run(
        "train.py", "--data", boots, "--out", tmp_path / "a", "--device", "cpu", "--steps", 0,
        "--set", "views=whole", "view_size=64", *SMALL,
    )  # fmt: skip
    first = pad.load(tmp_path / "a", device="cpu")
    refused = fine_tune(tmp_path / "a", trousers, tmp_path / "b", status=2)
    assert "no generator to replay its old normal by" in refused
    bags = fashion / "test" / "bag"
    text = fine_tune(tmp_path / "a", trousers, tmp_path / "c", "--replay", boots, trousers, "--check", bags)
    both = pad.load(tmp_path / "c", device="cpu")
    assert both.calibration is not None
    assert len(both.calibration) == 20 + 120  # each image once
    tuning = both.card["fine_tuning"]
    assert tuning["replayed_images"] == 120
    quality = tuning["quality"]
    assert quality["new"]["before"]["flagged"] > 0.5
    assert "flagged" in quality["new"]["after"]
    found = [d.predict(resolve([str(bags)], "evaluate")).mean() for d in (first, both)]
    assert [quality["check"][when]["flagged"] for when in ("before", "after")] == pytest.approx(
        found, abs=1e-4
    )
    assert "anomalies of --check          20" in text
    real_old = resolve([str(fashion / "test" / "normal")], "evaluate")
    fine_tune(tmp_path / "a", trousers, tmp_path / "d", "--replay", "none")
    forgot = pad.load(tmp_path / "d", device="cpu")
    assert both.predict(real_old, 0.1).mean() < 0.4 < forgot.predict(real_old, 0.1).mean()
    # A generator on top
    fine_tune(
        tmp_path / "a", boots, tmp_path / "e", "--replay", "none", "--steps", 2,
        "--set", "views=[generator,whole]",
    )  # fmt: skip
    assert pad.load(tmp_path / "e", device="cpu").views == ("generator", "whole")


def test_replayed_images_that_were_trained_on_calibrate_nothing(
    old: Detector, boots: Path, grown: Path
) -> None:
    images = resolve([str(grown)], "train")
    training, held_out = split_images(resolve([str(boots)], "train"), old.config)
    replay = make_replay(old, 200, images)
    assert (len(replay.training), len(replay.held_out)) == (110, 50)
    source, _ = load_images(training, old.config)
    learned = {x.numpy().tobytes() for x in source.batch(torch.arange(len(training))).half()}
    assert not learned & {x.numpy().tobytes() for x in replay.held_out.half()}
    assert set(replay.hashes.tolist()) >= set(hashes_of(training).tolist())
    # What is among the new images is theirs, on whichever side it is there.
    rest = make_replay(old, 200, images, hashes_of(held_out))
    assert len(rest.training) + len(rest.held_out) == 110
    with pytest.raises(PadError, match=r"--replay .*all 70 normal images were trained on"):
        make_replay(old, 200, training)
    with pytest.raises(PadError, match="not among --data; 0 of 160 images"):
        make_replay(old, 200, images, hashes_of(images))


def test_a_model_that_does_not_say_what_it_was_trained_on(model: Path, boots: Path, tmp_path: Path) -> None:
    shutil.copytree(model / "model", tmp_path / "older")
    path = tmp_path / "older" / "calibration.json"
    content = json.loads(path.read_text())
    assert len(content["extra"].pop("trained_on")) == 8 * 70
    path.write_text(json.dumps(content))
    assert pad.load(tmp_path / "older", device="cpu").trained_on is None
    text = fine_tune(tmp_path / "older", boots, tmp_path / "run", "--steps", 2, "--replay", "none")
    assert "does not say which images it was trained on" in text
    tuned = pad.load(tmp_path / "run", device="cpu")
    assert tuned.trained_on is not None
    assert len(tuned.trained_on) == 70


def test_a_killed_fine_tuning_goes_on_as_if_it_had_not_stopped(
    model: Path, trousers: Path, tmp_path: Path
) -> None:
    settings = ("--steps", 8, "--set", "checkpoint_every=4")
    fine_tune(model, trousers, tmp_path / "whole", *settings)
    fine_tune(model, trousers, tmp_path / "halves", *settings)
    for path in [*(tmp_path / "halves" / "checkpoints").glob("*8.pt")]:
        path.unlink()
    fine_tune(model, trousers, tmp_path / "halves", "--resume")
    a, b = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "halves"))
    assert a.read_bytes() == b.read_bytes()


def test_refused(model: Path, boots: Path, trousers: Path, photographs: Path, tmp_path: Path) -> None:
    assert (
        "--replay goes with --from"
        in run("train.py", "--data", boots, "--out", tmp_path / "a", "--replay", boots, status=2).stderr
    )
    assert "size 28 and cannot go on with 64" in fine_tune(
        model, trousers, tmp_path / "b", "--set", "size=64", status=2
    )
    assert "channels 1 and cannot go on with 3" in fine_tune(
        model, trousers, tmp_path / "c", "--set", "channels=3", status=2
    )
    assert "no images" in fine_tune(model, trousers, tmp_path / "d", "--replay", tmp_path, status=2)
    assert "no such file" in fine_tune(model, trousers, tmp_path / "e", "--check", "nowhere", status=2)
    assert not (tmp_path / "e").exists()
    assert (
        "--check goes with --from"
        in run("train.py", "--data", boots, "--out", tmp_path / "f", "--check", boots, status=2).stderr
    )


def test_compare_without_replay_or_calibration(model: Path, old: Detector, trousers: Path) -> None:
    images = resolve([str(trousers)], "train")
    plain = pad.load(model, device="cpu")
    plain.calibration = None
    quality = compare(plain, old, None, images)
    assert set(quality) == {"new", "pseudo"}
    assert "flagged" not in quality["new"]["before"]
    assert quality["new"]["after"]["mean_score"] == pytest.approx(old.score(images).mean(), abs=1e-5)
    assert len(format_quality(quality, False).splitlines()) == 4
    assert not [*warnings_of(quality)]


def test_calibration_images_are_not_judged_by_themselves(
    old: Detector, model: Path, trousers: Path, boots: Path
) -> None:
    """A new model that is the old one: calibrated on hard new images and on old ones, it would flag at most
    5 % of both together, but each half is judged by the other, and the share of each kind is its own."""
    new_images = resolve([str(trousers)], "train")
    _, old_images = split_images(resolve([str(boots)], "train"), old.config)
    pixels, _, _ = load_all(old_images, old.config)
    tuned = pad.load(model, device="cpu")
    replay = Replay(pixels[:1], pixels, "boots", generated=False)
    tuned.calibrate(new_images)
    calibrate_both(tuned, old, replay)
    quality = compare(old, tuned, replay, new_images)
    new, known = tuned.score(new_images), tuned.score(pixels)
    # Independently: halves drawn as there, verdicts by counting.
    random = np.random.default_rng(0)
    first = [random.permutation(len(s)) < len(s) // 2 for s in (new, known)]
    flagged = [0, 0]
    for half in (first, [~f for f in first]):
        others = np.concatenate([s[~h] for s, h in zip((new, known), half, strict=True)])
        for i, (scores, here) in enumerate(zip((new, known), half, strict=True)):
            for s in scores[here]:
                flagged[i] += (1 + (others >= s).sum()) / (len(others) + 1) <= 0.05
    assert quality["new"]["after"]["flagged"] == pytest.approx(flagged[0] / 20, abs=1e-4)
    assert quality["old"]["after"]["flagged"] == pytest.approx(flagged[1] / 50, abs=1e-4)
    assert (
        quality["new"]["after"]["flagged"] > 0.05
    )  # trousers score higher: it can exceed the rate, and does
    few = compare(old, tuned, None, new_images)  # 10 images cannot hold 5 %
    assert "flagged" not in few["new"]["after"]
    assert "flagged" in few["pseudo"]["after"]


def test_pseudo_anomalies_have_the_same_pixels_elsewhere() -> None:
    images = torch.arange(2 * 3 * 18 * 18.0).view(2, 3, 18, 18)
    made = pseudo_anomalies(images, seed=3)
    assert made.shape == (4, 3, 18, 18)
    assert torch.equal(made, pseudo_anomalies(images, seed=3))
    assert not torch.equal(made[2:], pseudo_anomalies(images, seed=4)[2:])
    for image, turned, mixed in zip(images, made[:2], made[2:], strict=True):
        assert torch.equal(turned, torch.rot90(image, 1, (1, 2)))
        assert torch.equal(mixed[:, 16:], image[:, 16:])
        assert not torch.equal(mixed, image)
        pieces = [
            {
                tuple(p[:, i : i + 4, j : j + 4].flatten().tolist())
                for i in range(0, 16, 4)
                for j in range(0, 16, 4)
            }
            for p in (image, mixed)
        ]
        assert pieces[0] == pieces[1]
        assert len(pieces[0]) == 16


def test_what_fine_tuning_costs_is_said(
    model: Path, old: Detector, trousers: Path, boots: Path, fashion: Path, tmp_path: Path
) -> None:
    """A normal that became so wide that bags pass as normal, and one that stayed: bags as --check."""
    wide = tmp_path / "wide"  # all kinds at once are the new normal
    wide.mkdir()
    for path in (fashion / "test").rglob("*.png"):
        if path.parent.name not in ("normal", "bag"):
            shutil.copy(path, wide / f"{path.parent.name}-{path.name}")
    bags = fashion / "test" / "bag"
    text = fine_tune(model, wide, tmp_path / "w", "--steps", 60, "--replay", "none", "--check", bags)
    quality = yaml.safe_load((tmp_path / "w" / "model" / "config.yaml").read_text())["fine_tuning"]["quality"]
    check = quality["check"]
    images = resolve([str(bags)], "evaluate")
    assert (check["images"], check["source"]) == (20, "bag")
    tuned = pad.load(tmp_path / "w", device="cpu")
    for when, detector in (("before", old), ("after", tuned)):
        assert check[when]["flagged"] == pytest.approx(detector.predict(images, 0.05).mean(), abs=1e-4)
    assert check["before"]["flagged"] > 0.9
    assert check["before"]["flagged"] - check["after"]["flagged"] > 0.1
    shown = f"warning: of the anomalies of --check {100 * check['before']['flagged']:.1f} % were found before"
    assert shown in text
    assert "anomalies of --check          20" in text
    assert "pseudo-anomalies" in text
    # Labelled images: only those that are anomalous. A resumed run remembers what it was to check.
    kept = fine_tune(
        model, trousers, tmp_path / "k", "--steps", 2, "--replay", boots, "--check", fashion / "test"
    )
    assert "anomalies of --check         100" in kept
    assert "warning" not in kept
    assert "anomalies of --check         100" in fine_tune(model, trousers, tmp_path / "k", "--resume")


def test_warnings_are_of_falls_by_more_than_ten_points() -> None:
    def quality(before: float | None, after: float) -> dict:
        flagged = {} if before is None else {"flagged": before}
        return {
            key: {"images": 9, "before": flagged, "after": {"flagged": after}} for key in ("pseudo", "check")
        }

    assert len([*warnings_of(quality(0.8, 0.475))]) == 2
    assert (
        "80.0 % were found before fine-tuning and 47.5 % are found now"
        in [*warnings_of(quality(0.8, 0.475))][1]
    )
    assert not [*warnings_of(quality(0.8, 0.71))]
    assert not [*warnings_of(quality(0.5, 0.9))]
    assert not [*warnings_of(quality(None, 0.0))]


def test_replaying_images_holds_some_back(boots: Path, old: Detector) -> None:
    images = resolve([str(boots)], "train")
    replay = make_replay(old, 30, images)
    assert (len(replay.training), len(replay.held_out), replay.generated) == (30, 50, False)
    source, _ = load_images(images, old.config)
    every = source.batch(torch.arange(120)).flatten(1)
    where = [int((every - x.flatten()).abs().sum(1).argmin()) for x in [*replay.training, *replay.held_out]]
    assert len(set(where)) == 80
