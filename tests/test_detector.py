from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pad
from pad.config import Config
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.images.stream import load_all
from pad.views.generator import GeneratorView, smooth

SMALL = {
    "views": ["generator"],
    "tolerate": "none",
    "steps": 30,
    "latent_dim": 8,
    "generator_channels": [8, 8, 8],
    "encoder_channels": [8, 8, 8],
    "critic_channels": [8, 8, 8],
    "latent_critic_channels": [16],
    "batch_size": 16,
}


@pytest.fixture(scope="module")
def detector(boots: Path) -> pad.Detector:
    return pad.fit(boots, device="cpu", **SMALL)


@pytest.fixture(scope="module")
def files(fashion: Path) -> list[Path]:
    return sorted((fashion / "test" / "normal").glob("*.png"))[:10]


def test_every_kind_of_image_gives_the_same_score(detector: pad.Detector, files: list[Path]) -> None:
    scores = detector.score(files)
    assert scores.shape == (10,)
    assert scores.dtype == np.float32
    pictures = [Image.open(f) for f in files]
    arrays = np.stack([np.asarray(p) for p in pictures])
    tensors, _, _ = load_all(resolve([str(f) for f in files], "evaluate"), detector.config)
    for other in (pictures, arrays, arrays[..., None], np.repeat(arrays[..., None], 3, 3), tensors):
        np.testing.assert_allclose(detector.score(other), scores, rtol=0.02)
    assert detector.score([]).shape == (0,)
    np.testing.assert_array_equal(detector.score(files), scores)


def test_score_is_the_similarity_to_the_reconstruction(detector: pad.Detector, files: list[Path]) -> None:
    x, _, _ = load_all(resolve([str(f) for f in files], "evaluate"), detector.config)
    view = detector.generator
    assert view is not None
    with torch.no_grad(), view.autocast():
        nearest = view.networks["generator"](view.networks["encoder"](x)).float()
        expected = view.similarity(x, nearest)
    np.testing.assert_allclose(detector.score_batch(x).numpy(), expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(
        detector.anomaly_map(x).mean((1, 2)).numpy(), detector.score_batch(x).numpy(), rtol=1e-3
    )
    assert detector.reconstruct(x).shape == x.shape
    assert detector.encode(x).shape == (10, 8)


def test_a_score_does_not_depend_on_the_batch_or_the_threads(detector: pad.Detector, fashion: Path) -> None:
    images = resolve([str(fashion / "test")], "evaluate").subset(range(70))
    x, _, _ = load_all(images, detector.config)
    threads = torch.get_num_threads()
    whole = detector.score_batch(x)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.testing.assert_close(torch.from_numpy(detector.score(images)), whole, rtol=1e-3, atol=0)
    finally:
        torch.set_num_threads(threads)
    parts = torch.cat([detector.score_batch(part) for part in x.split(9)])
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=0)


def test_p_values_and_verdicts_follow_from_the_calibration(detector: pad.Detector, files: list[Path]) -> None:
    assert detector.calibration is not None
    assert len(detector.calibration) == 50  # the least that is kept where there are enough images
    scores, calibration = detector.score(files), detector.calibration.scores
    expected = [(1 + (calibration >= s).sum()) / 51 for s in scores.astype(np.float64)]
    np.testing.assert_allclose(detector.p_values(files), expected)
    np.testing.assert_array_equal(detector.predict(files, fpr=0.2), np.array(expected) <= 0.2)


def test_too_few_calibration_images_warn(detector: pad.Detector, files: list[Path]) -> None:
    """50 calibration images hold no rate below 1 / 51: all verdicts are False, and once nothing said so."""
    for call in (detector.predict, detector.explain):
        with pytest.warns(
            pad.PadWarning, match="cannot hold a false-alarm rate of 1 %, so nothing is flagged"
        ) as told:
            call(files, fpr=0.01)
        assert len(told) == 1
        assert told[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call(files, fpr=0.02)
    assert issubclass(pad.PadWarning, UserWarning)


def test_tensors_in_zero_to_one_warn(detector: pad.Detector, files: list[Path]) -> None:
    x, _, _ = load_all(resolve([str(f) for f in files], "evaluate"), detector.config)
    unit = (x + 1) / 2
    calls = (detector.score, detector.p_values, detector.predict, detector.explain)
    for call in calls:
        for images in (unit, unit.numpy(), list(unit), unit[0][None]):
            with pytest.warns(pad.PadWarning, match=r"as if scaled to \[0, 1\]") as told:
                call(images)
            assert len(told) == 1
            assert told[0].filename == __file__
    pixels = (unit * 255).round().to(torch.uint8).numpy()[:, 0]
    bright = x / 4 + 0.75  # nothing darker than mid-grey
    for images in (x, list(x), x.numpy(), pixels, files, bright, torch.zeros(2, 1, 28, 28), x[:0]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            detector.score(images)
    with pytest.warns(pad.PadWarning, match="as if scaled"), pytest.raises(PadError, match="at least 8"):
        pad.fit(unit[:3])


def test_arrays_are_red_green_blue(photographs: Path) -> None:
    """An array gives what its file gives; the reversed channels of OpenCV give something else."""
    pictures = [
        Image.open(path).convert("RGB").resize((28, 28)) for path in sorted(photographs.glob("*.png"))
    ]
    pictures += [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
    colour = pad.fit(pictures, device="cpu", **{**SMALL, "steps": 2})
    image = pictures[0]
    rgb = np.asarray(image)[None]
    assert detector_scores(colour, rgb) == detector_scores(colour, [image])
    assert detector_scores(colour, rgb[..., ::-1]) != detector_scores(colour, [image])


def detector_scores(detector: pad.Detector, images: object) -> float:
    return float(detector.score(images)[0])


def test_saved_and_loaded_gives_the_same_scores(
    detector: pad.Detector, files: list[Path], tmp_path: Path
) -> None:
    detector.save(tmp_path / "model")
    loaded = pad.load(tmp_path / "model", device="cpu")
    assert loaded.config == detector.config
    np.testing.assert_array_equal(loaded.score(files), detector.score(files))
    np.testing.assert_array_equal(loaded.p_values(files), detector.p_values(files))
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert names == {"model.safetensors", "config.yaml", "calibration.json", "README.md"}


def test_bfloat16_ranks_as_float32(detector: pad.Detector, fashion: Path, tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    detector.save(tmp_path / "model")
    text = (tmp_path / "model" / "config.yaml").read_text()
    scores = []
    for precision in ("float32", "bfloat16"):
        (tmp_path / "model" / "config.yaml").write_text(
            text.replace("precision: auto", f"precision: {precision}")
        )
        model = pad.load(tmp_path / "model", device="cpu")
        assert model.config.precision == precision
        scores.append(model.score(resolve([str(fashion / "test")], "evaluate")))
    assert spearmanr(*scores).statistic > 0.995


def test_feature_weights_come_from_training_and_travel_with_the_model(
    detector: pad.Detector, files: list[Path], tmp_path: Path
) -> None:
    weight = detector.generator.similarity.of("relu3_1").weight
    assert weight.mean().item() == pytest.approx(1, rel=1e-4)
    assert weight.std() > 0.05
    detector.save(tmp_path / "model")
    loaded = pad.load(tmp_path / "model", device="cpu")
    torch.testing.assert_close(loaded.generator.similarity.of("relu3_1").weight, weight, rtol=0, atol=0)
    np.testing.assert_array_equal(loaded.score(files), detector.score(files))


def test_components_come_from_training_and_travel_with_the_model(
    detector: pad.Detector, files: list[Path], tmp_path: Path
) -> None:
    components = detector.generator.similarity.of("relu3_1").basis()
    assert 1 <= len(components) <= detector.config.residual_components
    assert len(components) == detector.card["data"]["images"] // 4  # as many as the images can tell
    flat = components.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)), rtol=0, atol=0.01)
    detector.save(tmp_path / "model")
    loaded = pad.load(tmp_path / "model", device="cpu")
    torch.testing.assert_close(loaded.generator.similarity.of("relu3_1").basis(), components, rtol=0, atol=0)
    np.testing.assert_array_equal(loaded.score(files), detector.score(files))


def test_models_from_before_these_settings_score_as_they_did(
    boots: Path, files: list[Path], tmp_path: Path
) -> None:
    """Their recipe does not name the settings, they hold no components, and all channels count."""
    settings = {"residual_components": 0, "feature_channels": 1.0}
    before = pad.fit(boots, device="cpu", **settings, **{**SMALL, "steps": 3})
    before.save(tmp_path / "model")
    config = tmp_path / "model" / "config.yaml"
    for key, value in settings.items():
        assert f"  {key}: {value}\n" in config.read_text()
        config.write_text(config.read_text().replace(f"  {key}: {value}\n", ""))
    loaded = pad.load(tmp_path / "model", device="cpu")
    assert {key: getattr(loaded.config, key) for key in settings} == settings
    np.testing.assert_array_equal(loaded.score(files), before.score(files))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("components", torch.zeros(5, 7, 7, 128, dtype=torch.int8), "shape 5x7x7x128 where 5x6x6x128 fits"),
        ("components", torch.tensor(3.0), r"has shape \(\) where 0x6x6x128 fits"),
        ("components", torch.zeros(5, 6, 6, 128), "is float32 where int8 fits"),
        ("components", None, "missing 'similarity.relu3_1.components'"),
        ("units", torch.zeros(2), "'similarity.relu3_1.units' has shape 2 where"),
        (
            "weight",
            torch.zeros(256, 6, 6),
            "'similarity.relu3_1.weight' has shape 256x6x6 where 128x6x6 fits",
        ),
    ],
)
def test_what_is_known_of_features_is_refused_if_it_does_not_fit(
    detector: pad.Detector, tmp_path: Path, key: str, value: torch.Tensor | None, words: str
) -> None:
    from safetensors.torch import load_file, save_file

    detector.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"similarity.relu3_1.{key}"]
    save_file(tensors if value is None else {**tensors, f"similarity.relu3_1.{key}": value}, path)
    with pytest.raises(PadError, match=words):
        pad.load(tmp_path / "model", device="cpu")


def with_settings(detector: pad.Detector, **settings: Any) -> GeneratorView:
    """The same generator by other settings of its score."""
    view = detector.generator
    assert view is not None
    return GeneratorView(detector.config.replace(**settings), view.networks, view.similarity, detector.device)


def test_latents_are_drawn_into_the_prior(detector: pad.Detector) -> None:
    from scipy.stats import chi2

    radius = float(chi2.ppf(detector.config.prior_mass, detector.config.latent_dim)) ** 0.5
    lengths = torch.tensor([0.1, 0.5, 0.9, 0.99, 1.2, 50]) * radius
    z = torch.randn(6, detector.config.latent_dim, 1, 1, generator=torch.Generator().manual_seed(0))
    z = z / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * lengths.view(-1, 1, 1, 1)
    drawn = detector.generator.within_prior(z)
    torch.testing.assert_close(drawn[:4], z[:4])
    torch.testing.assert_close(drawn[4:], z[4:] / lengths[4:].view(-1, 1, 1, 1) * radius)
    assert torch.isfinite(detector.generator.within_prior(torch.zeros_like(z))).all()
    whole = with_settings(detector, prior_mass=1)
    torch.testing.assert_close(whole.within_prior(z), z)


def test_refined_latents_come_closer(detector: pad.Detector, files: list[Path]) -> None:
    config = detector.config.replace(refine_steps=5)
    refined = pad.Detector(config, with_settings(detector, refine_steps=5), None, detector.device)
    assert (refined.score(files) <= detector.score(files) * 1.01).mean() > 0.8
    assert refined.score(files).mean() < detector.score(files).mean()
    # Each image goes its own way: alone or in a batch makes no difference.
    np.testing.assert_allclose(refined.score(files[:1]), refined.score(files)[:1], rtol=0.02)


def test_errors_name_the_image_and_the_argument(
    detector: pad.Detector, files: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    with pytest.raises(PadError, match=r"broken\.png"):
        detector.score([files[0], broken])
    with pytest.raises(PadError, match=r"images\[1\]: .*uint8, not int64"):
        detector.score([np.zeros((28, 28), np.uint8), np.zeros((28, 28), np.int64)])
    with pytest.raises(PadError, match="fpr"):
        detector.predict(files, fpr=0)
    bare = pad.Detector(detector.config, detector.generator, None, detector.device)
    with pytest.raises(PadError, match="no calibration"):
        bare.p_values(files)


def test_fit_on_arrays_and_on_too_few(fashion: Path, boots: Path) -> None:
    arrays = np.stack([np.asarray(Image.open(f)) for f in sorted(boots.glob("*.png"))[:20]])
    model = pad.fit(arrays, device="cpu", **{**SMALL, "steps": 2})
    assert model.config.size == 28
    assert model.config.channels == 1
    with pytest.raises(PadError, match="at least 8 normal images; found 5"):
        pad.fit(arrays[:5], device="cpu", **SMALL)
    with pytest.raises(PadError, match="unknown setting 'stepz'; did you mean 'steps'"):
        pad.fit(arrays, device="cpu", stepz=3)


def test_a_fitted_detector_is_not_calibrated_on_what_it_was_trained_on(
    boots: Path, files: list[Path], tmp_path: Path
) -> None:
    pad.fit(boots, device="cpu", **{**SMALL, "steps": 2}).save(tmp_path / "model")
    again = pad.load(tmp_path / "model", device="cpu")
    paths = sorted(boots.glob("*.png"))
    trained = again.trained_among(paths)
    assert trained.sum() == 70
    pictures = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    tensors = torch.from_numpy(arrays)[:, None] / 127.5 - 1
    for same in (pictures, arrays, tensors, tensors.numpy(), resolve([str(boots)], "train")):
        np.testing.assert_array_equal(again.trained_among(same), trained)
        with pytest.raises(PadError, match="trained on 70 of the 120 images given"):
            again.calibrate(same)
    with pytest.raises(PadError, match="allow_trained=True"):
        again.calibrate(iter(paths))
    kept = [path for path, seen in zip(paths, trained, strict=True) if not seen]
    sound = again.calibrate(iter([*kept, *files]))
    assert len(sound) == 60
    assert sound.caveat is None
    unsound = again.calibrate(paths, allow_trained=True)
    assert unsound.extra["trained_images"] == 70
    assert "trained on 70 of its 120 calibration images" in str(unsound.caveat)


def test_a_model_remembers_many_images_in_little_space(detector: pad.Detector, tmp_path: Path) -> None:
    many = np.unique(np.random.default_rng(0).integers(0, 2**48, 60_000, dtype=np.uint64))
    before, detector.trained_on = detector.trained_on, many
    detector.save(tmp_path / "model")
    detector.trained_on = before
    np.testing.assert_array_equal(pad.load(tmp_path / "model", device="cpu").trained_on, many)
    assert (tmp_path / "model" / "calibration.json").stat().st_size < 8 * 60_000 + 20_000


def test_fit_takes_a_whole_config(boots: Path) -> None:
    tuples = {k: tuple(v) for k, v in SMALL.items() if isinstance(v, list)}
    config = Config(**{**SMALL, "size": 28, "steps": 2, **tuples, "tolerate": {}})
    assert pad.fit(boots, config, device="cpu").config == config


def test_a_model_with_tensors_of_another_shape_is_refused(detector: pad.Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "model")
    config = tmp_path / "model" / "config.yaml"
    config.write_text(config.read_text().replace("latent_dim: 8", "latent_dim: 9"))
    with pytest.raises(PadError, match="does not fit its config"):
        pad.load(tmp_path / "model")


def test_a_model_of_other_backbone_weights_is_refused(detector: pad.Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "model")
    config = tmp_path / "model" / "config.yaml"
    fingerprint = detector.generator.similarity.backbone.fingerprint
    assert fingerprint in config.read_text()
    config.write_text(config.read_text().replace(fingerprint, "0" * 16))
    with pytest.raises(PadError, match="other weights of the backbone"):
        pad.load(tmp_path / "model")


def test_smoothing_against_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    maps = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0))
    for ours, raw in zip(smooth(maps, 2.0).numpy(), maps.numpy(), strict=True):
        theirs = gaussian_filter(raw, 2.0, mode="constant", truncate=3.0)
        np.testing.assert_allclose(ours, theirs * raw.mean() / theirs.mean(), rtol=1e-4)
