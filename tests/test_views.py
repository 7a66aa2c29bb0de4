"""The quick views: every equation against an independent computation, and what is promised of models that
consist of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import mahalanobis
from scipy.special import logsumexp
from scipy.stats import logistic, spearmanr
from sklearn.covariance import LedoitWolf, ledoit_wolf
from torch import Tensor

import pad
from pad.backbones.timm_model import Seen, TimmBackbone
from pad.config import Config
from pad.errors import PadError
from pad.images.resolve import as_image_set
from pad.judging.fusion import Fusion, prior_weights
from pad.judging.rows import speaking
from pad.learning.cross_fit import fold_of_each, out_of_fold_scores
from pad.learning.quick import FIT_IMAGES, fitted_on
from pad.learning.replay import Replay, calibrate_both
from pad.recipes import build_config
from pad.registry.publish import plan
from pad.views.features import Features, features_of, joined_features
from pad.views.gaussian import Gaussian
from pad.views.kept import KeptNormals
from pad.views.likeness import Likeness
from pad.views.middle import Middle
from pad.views.parts import Parts
from pad.views.quick import QuickViews
from pad.views.whole import Whole

QUICK = {"steps": 0, "view_size": 64, "device": "cpu", "tolerate": "none"}


def random_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(n: int, c: int, seed: int = 0) -> Tensor:
    """Correlated samples (n, c) with variances that fall, and a mean."""
    random = random_of(seed)
    mixing = torch.randn(c, c, generator=random_of(99)) * torch.logspace(0, -1.5, c)
    return torch.randn(n, c, generator=random) @ mixing + 0.3


# Gaussian -------------------------------------------------------------------------------------------


def distances(x: Tensor, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    precision = np.linalg.inv(covariance)
    return np.array([mahalanobis(row, mean, precision) ** 2 for row in x.double().numpy()])


@pytest.mark.parametrize("n", [2, 3, 8, 12, 13, 60])
def test_a_gaussian_with_all_directions_is_sklearns_ledoit_wolf(n: int) -> None:
    """With fewer samples than features and with more."""
    x, new = samples(n, 12), samples(20, 12, seed=1)
    gaussian = Gaussian(12)
    gaussian.fit(x)
    reference = LedoitWolf().fit(x.double().numpy())
    expected = distances(new, reference.location_, reference.covariance_ + 1e-9 * np.eye(12))
    np.testing.assert_allclose(gaussian(new).numpy(), expected, rtol=0.01)


@pytest.mark.parametrize(("n", "c", "kept"), [(30, 40, 5), (80, 20, 6), (300, 50, 1)])
def test_a_gaussian_of_low_rank_has_one_variance_for_the_rest(n: int, c: int, kept: int) -> None:
    x, new = samples(n, c), samples(20, c, seed=1)
    gaussian = Gaussian(c, directions=kept)
    gaussian.fit(x)
    reference = LedoitWolf().fit(x.double().numpy())
    values, vectors = np.linalg.eigh(reference.covariance_)
    values[:-kept] = values[:-kept].mean()
    covariance = vectors * values @ vectors.T
    np.testing.assert_allclose(
        gaussian(new).numpy(), distances(new, reference.location_, covariance), rtol=0.01
    )
    np.testing.assert_allclose(gaussian.variances.numpy(), values[::-1][:kept], rtol=1e-3)
    directions = gaussian.directions.double().numpy()
    np.testing.assert_allclose(directions @ directions.T, np.eye(kept), atol=5e-3)


def test_copies_among_the_samples_do_no_harm() -> None:
    """Their covariance has directions without any variance, some of which are kept."""
    x, new = samples(9, 40).repeat(3, 1), samples(20, 40, seed=1)
    gaussian = Gaussian(40)
    gaussian.fit(x)
    reference = LedoitWolf().fit(x.double().numpy())
    expected = distances(new, reference.location_, reference.covariance_ + 1e-9 * np.eye(40))
    np.testing.assert_allclose(gaussian(new).numpy(), expected, rtol=0.01)


# Views of features ----------------------------------------------------------------------------------


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def features(n: int, seed: int = 0, side: int = 4, c: int = 10, deep: int = 16) -> Features:
    """Random ones: (n, deep), (n, c) and (n, side, side, c), positive as after a ReLU."""
    random = random_of(seed)
    local = unit(torch.rand(n, side, side, c, generator=random) ** 2)
    middle = unit(torch.rand(n, c, generator=random) ** 2)
    return Features([unit(torch.rand(n, deep, generator=random) ** 2)], middle, local.half())


def test_features_are_evened_and_lie_on_one_grid() -> None:
    random = random_of(3)
    fine, coarse = (torch.rand(2, c, side, side, generator=random) for c, side in ((3, 40), (5, 10)))
    deep = torch.rand(2, 7, generator=random)
    found = features_of(Seen([deep], [fine, coarse]))
    np.testing.assert_allclose(found.deep[0], unit(deep), rtol=1e-6)
    middle = torch.cat([unit(layer.mean((2, 3))) for layer in (fine, coarse)], 1)
    np.testing.assert_allclose(found.middle, middle, rtol=1e-5)

    quartered = fine.unflatten(2, (10, 4)).unflatten(4, (10, 4)).mean((3, 5))
    expected = []
    for layer in (quartered, coarse):
        length = layer.norm(dim=1)
        usual = length.flatten(1).square().mean(1).sqrt()
        expected.append(layer.movedim(1, -1) / (length * usual[:, None, None]).sqrt()[..., None])
    assert found.local.dtype == torch.float16
    np.testing.assert_allclose(found.local.float(), torch.cat(expected, -1), atol=1e-3)


def test_large_grids_are_reduced() -> None:
    layers = [torch.rand(1, 3, 56, 56), torch.rand(1, 5, 28, 28)]
    assert features_of(Seen([torch.rand(1, 7)], layers)).local.shape == (1, 14, 14, 8)


def test_whole_and_middle_are_mahalanobis_distances() -> None:
    normal, new = features(30), features(5, seed=1)
    whole, middle = Whole([16]), Middle(10)
    for view, of, score in ((whole, normal.deep[0], new.deep[0]), (middle, normal.middle, new.middle)):
        view.fit(normal)
        reference = LedoitWolf().fit(of.double().numpy())
        covariance = reference.covariance_ + 1e-9 * np.eye(of.shape[1])
        expected = np.sqrt(distances(score, reference.location_, covariance))
        np.testing.assert_allclose(view.score(new).numpy(), expected, rtol=0.01)


@pytest.mark.parametrize(("samples", "directions"), [(100, 99), (600, 128), (2000, 250), (5000, 512)])
def test_a_gaussian_has_as_many_directions_as_its_samples_bear(samples: int, directions: int) -> None:
    x = torch.randn(samples, 600, generator=torch.Generator().manual_seed(0))
    assert len(Gaussian(600).fit(x).variances) == directions


def test_likeness_as_a_whole_is_the_mean_cosine_of_two_images() -> None:
    normal, whole = features(40), Whole([16])
    whole.fit(normal)
    deep = normal.deep[0].double()
    assert whole.likeness == pytest.approx(float((deep @ deep.T).mean()), abs=1e-5)


def test_whole_takes_the_geometric_mean_of_several_layers() -> None:
    normal, new = features(30), features(5, seed=1)
    layers = [Features([of.deep[0], of.middle], of.middle, of.local) for of in (normal, new)]
    both, whole, middle = Whole([16, 10]), Whole([16]), Middle(10)
    both.fit(layers[0])
    whole.fit(normal)
    middle.fit(normal)
    expected = (whole.score(new) * middle.score(new)).sqrt()
    torch.testing.assert_close(both.score(layers[1]), expected)


@pytest.mark.parametrize(("n", "c"), [(40, 10), (6, 10), (40, 80)])
def test_parts_is_a_gaussian_for_each_place_in_common_coordinates(n: int, c: int) -> None:
    normal, new = features(n, c=c), features(5, seed=1, c=c)
    parts = Parts(4, c)
    parts.fit(normal)
    local = normal.local.double().numpy()
    centred = local - local.mean(0)
    common = ledoit_wolf(centred.reshape(-1, c), assume_centered=True)[0]
    values, vectors = np.linalg.eigh(common)
    whitened = centred @ (vectors / np.sqrt(values))
    expected, covariances, noise, spread = np.empty((5, 4, 4)), {}, 0.0, 0.0
    for place in np.ndindex(4, 4):
        z = whitened[:, place[0], place[1]]
        outer = z[:, :, None] * z[:, None, :]
        covariances[place] = outer.mean(0)
        noise += ((outer - outer.mean(0)) ** 2).sum() / n**2
        spread += ((outer.mean(0) - np.trace(outer.mean(0)) / c * np.eye(c)) ** 2).sum()
    intensity = min(1.0, noise / spread) ** 2  # Ledoit and Wolf's, of all places, squared
    for i, j in np.ndindex(4, 4):
        covariance = covariances[i, j]
        target = np.trace(covariance) / c * np.eye(c)
        shrunk = (1 - intensity) * covariance + intensity * target + 1e-6 * np.eye(c)
        off = (new.local[:, i, j].double().numpy() - local.mean(0)[i, j]) @ vectors / np.sqrt(values)
        expected[:, i, j] = np.sqrt(distances(torch.from_numpy(off), np.zeros(c), shrunk))
    np.testing.assert_allclose(parts.map(new).numpy(), expected, rtol=0.02)
    farthest = np.sort((expected**2).reshape(5, -1))[:, -3:]
    np.testing.assert_allclose(parts.score(new).numpy(), np.sqrt(farthest.mean(1)), rtol=0.02)


def test_parts_of_many_features_are_projected() -> None:
    normal = features(30, c=300)
    parts = Parts(4, 300)
    parts.fit(normal)
    assert parts.whitening.shape == (300, 160)
    centred = (normal.local.double() - normal.local.double().mean(0)).flatten(0, 2)
    covariance = parts.whitening.double().T @ (centred.T @ centred / len(centred)) @ parts.whitening.double()
    np.testing.assert_allclose(covariance - covariance.diag().diag(), np.zeros((160, 160)), atol=1e-3)
    assert 0.1 < covariance.diag().min() < covariance.diag().max() < 3  # 1, but for what is shrunk


def test_likeness_is_the_mean_cosine_of_two_images_at_a_place() -> None:
    normal = features(40)
    parts = Parts(4, 10, layers=1)
    parts.fit(normal)
    local = normal.local.double()
    cosines = torch.einsum("iabc,jabc->ijab", local, local)
    assert parts.likeness == pytest.approx(float(cosines.mean()), abs=1e-3)
    same = Features(normal.deep, normal.middle, normal.local[:1].expand(40, -1, -1, -1))
    parts.fit(same)
    assert parts.likeness == pytest.approx(1, abs=1e-2)


def test_parts_fitted_again_forgets_what_it_was() -> None:
    """It keeps an unpacked copy of its factors."""
    parts, fresh, new = Parts(4, 10), Parts(4, 10), features(5, seed=9)
    parts.fit(features(20))
    parts.score(new)
    for view in (parts, fresh):
        view.fit(features(20, seed=2))
    torch.testing.assert_close(parts.score(new), fresh.score(new), rtol=0, atol=0)


def test_the_nearest_kept_image_is_the_most_similar_one() -> None:
    normal, new = features(12), features(5, seed=1)
    pictures = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 3, 8, 8) * 20
    kept = KeptNormals.of(pictures.contiguous(), normal)
    cosine = new.deep[0].double().numpy() @ normal.deep[0].double().numpy().T
    expected = cosine.argmax(1) * 20 / 127.5 - 1
    found = kept.nearest(new)
    assert found.shape == (5, 3, 8, 8)
    np.testing.assert_allclose(found[:, 0, 0, 0], expected, atol=1e-6)


# Fusion ---------------------------------------------------------------------------------------------

ALL = ("generator", "whole", "middle", "parts")


@pytest.mark.parametrize(
    ("views", "explained", "likeness"),
    [
        (ALL, 0.4, Likeness(0.5, 0.5)),
        (ALL, -3.0, Likeness()),
        (ALL[1:], 0.0, Likeness(0.7, 0.5)),
        (ALL[1:], 0.0, Likeness(0.4, 0.75)),
        (ALL[::2], 1.0, Likeness(0.5, 0.9)),
        (ALL[1::2], 0.0, Likeness(1.0, 1.0)),
    ],
)
def test_fusion_is_a_soft_maximum_of_standardized_log_scores(
    views: tuple[str, ...], explained: float, likeness: Likeness
) -> None:
    random = np.random.default_rng(0)
    normal = np.exp(random.normal(size=(50, len(views))) * [1, 2, 0.1, 0.5][: len(views)])
    new = np.exp(random.normal(size=(7, len(views))))
    fusion = Fusion.fit(views, normal, explained, likeness)
    u = (np.log(new) - np.log(normal).mean(0)) / np.log(normal).std(0, ddof=1)
    weights = prior_weights(views, explained, likeness)
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()
    if "generator" in views:
        assert weights[0] == pytest.approx(np.clip(explained, 0.01, 0.99))
    if views == ALL[1:]:
        alike_all_over = logistic.cdf(likeness.whole, 0.7, 0.04)
        assert weights[2] == pytest.approx(max(likeness.places**2.5, alike_all_over))
    fused = fusion.fuse(new)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, logsumexp(u, b=weights, axis=1), rtol=1e-5)


@pytest.mark.parametrize("kept", [ALL[:2], ALL[1:], ("whole", "parts"), ("parts",), ("generator",), ALL])
def test_some_views_of_a_fusion_are_fused_as_if_fitted_alone(kept: tuple[str, ...]) -> None:
    scores = np.exp(np.random.default_rng(0).normal(size=(30, 4)))
    columns = [ALL.index(view) for view in kept]
    expected = Fusion.fit(kept, scores[:, columns], 0.3, Likeness(0.6, 0.5))
    among = Fusion.fit(ALL, scores, 0.3, Likeness(0.6, 0.5)).among(kept)
    assert among.views == kept
    for ours, theirs in zip((among.mean, among.deviation), (expected.mean, expected.deviation), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    np.testing.assert_allclose(among.weights, [1.0] if len(kept) == 1 else expected.weights, rtol=1e-12)


def test_fusion_of_odd_scores() -> None:
    fusion = Fusion.fit(("whole", "parts"), np.ones((10, 2)))  # no deviation at all
    fused = fusion.fuse([[1, 1], [1.01, 1], [0, 0], [np.nan, 1]])
    assert np.isfinite(fused[:3]).all()
    assert fused[1] > fused[0] > fused[2]
    assert np.isnan(fused[3])
    with pytest.raises(PadError, match="at least 2 normal images"):
        Fusion.fit(("whole", "parts"), np.ones((1, 2)))


# Cross-fitting --------------------------------------------------------------------------------------


def hashes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(10**6)[:n].astype(np.uint64)


@pytest.mark.parametrize("n", [2, 8, 20, 21, 160, 163])
def test_folds_are_a_partition_of_nearly_one_size(n: int) -> None:
    fold = fold_of_each(hashes(n)).numpy()
    sizes = np.bincount(fold)
    assert len(sizes) == (n if n <= 20 else 10 if n <= 160 else 5)  # few images: each by all the others
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(fold, fold_of_each(hashes(n)))
    if n > 2:
        assert (fold != fold_of_each(hashes(n), seed=1).numpy()).any()


def test_the_fold_of_a_picture_is_that_of_its_copies_whatever_the_order() -> None:
    pictures = np.concatenate([hashes(40), hashes(40)[:10], hashes(40)[:10]])
    fold = fold_of_each(pictures).numpy()
    np.testing.assert_array_equal(fold[:10], fold[40:50])
    np.testing.assert_array_equal(fold[:10], fold[50:])
    order = np.random.default_rng(1).permutation(60)
    np.testing.assert_array_equal(fold_of_each(pictures[order]), fold[order])


@pytest.fixture(scope="module")
def backbone() -> TimmBackbone:
    return TimmBackbone("efficientnet-lite2", 32)


@pytest.fixture(scope="module")
def views(backbone: TimmBackbone) -> QuickViews:
    return QuickViews(("whole", "middle", "parts"), backbone)


def like(views: QuickViews, n: int, seed: int = 0) -> Features:
    """Random features of the shapes that these views take."""
    shape = features_of(views.backbone.blank)
    return features(n, seed, shape.local.shape[1], shape.local.shape[3], shape.deep[0].shape[1])


def test_few_images_are_judged_by_fits_shrunk_as_the_fit_on_all(views: QuickViews) -> None:
    normal, pictures = like(views, 25), hashes(25)
    scores, fold = out_of_fold_scores(views, normal, pictures), fold_of_each(pictures)
    on_all = QuickViews(views.names, views.backbone).fit(normal)
    for k in fold.unique():
        fitted = QuickViews(views.names, views.backbone).fit(normal.take(fold != k), on_all)
        torch.testing.assert_close(fitted.scores(normal.take(fold == k)), scores[fold == k])
        alone = QuickViews(views.names, views.backbone).fit(normal.take(fold != k))
        assert (alone.scores(normal.take(fold == k)) != scores[fold == k]).any()


@pytest.mark.parametrize("n", [15, 165])
def test_no_image_is_judged_by_a_fit_that_saw_it(views: QuickViews, n: int) -> None:
    normal, pictures = like(views, n), hashes(n)
    before = out_of_fold_scores(views, normal, pictures)
    other, place = like(views, n, seed=5), torch.arange(n)
    place[3] = n + 3
    after = out_of_fold_scores(views, joined_features([normal, other]).take(place), pictures)
    fold = fold_of_each(pictures)
    same = (fold == fold[3]) & (torch.arange(n) != 3)
    # Those of its fold are judged by the same fit as before, which did not see it; others by one that did.
    torch.testing.assert_close(after[same], before[same], rtol=0, atol=0)
    assert (after[fold != fold[3]] != before[fold != fold[3]]).all()
    # And each is judged as by a fit on the other folds.
    fitted = QuickViews(views.names, views.backbone).fit(normal.take(fold != fold[3]))
    torch.testing.assert_close(fitted.scores(normal.take(fold == fold[3])), before[fold == fold[3]])


def test_nothing_can_be_fitted_on_copies_of_one_picture(views: QuickViews) -> None:
    with pytest.raises(PadError, match="all 8 normal images are copies of one picture"):
        out_of_fold_scores(views, like(views, 8), np.full(8, 7, np.uint64))


def test_a_large_set_is_fitted_on_a_part_of_it() -> None:
    images = as_image_set(np.zeros((FIT_IMAGES + 500, 1, 1), np.uint8))
    chosen = fitted_on(images, 1000, Config(seed=0))
    assert len(chosen) == len(set(chosen.keys)) == FIT_IMAGES
    assert chosen.keys[:1000] == images.keys[:1000]  # those that calibrate
    assert chosen.keys == fitted_on(images, 1000, Config(seed=0)).keys
    assert chosen.keys != fitted_on(images, 1000, Config(seed=1)).keys
    half = FIT_IMAGES // 2
    assert fitted_on(images, 3000, Config(seed=0)).keys[:half] == images.keys[:half]
    few = images.subset(range(10))
    assert fitted_on(few, 5, Config(seed=0)) is few


# Models ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(fashion: Path) -> list[Path]:
    """New images: 10 normal ones, and 10 bags."""
    return [f for kind in ("normal", "bag") for f in sorted((fashion / "test" / kind).glob("*.png"))[:10]]


@pytest.fixture(scope="module")
def detector(boots: Path) -> pad.Detector:
    return pad.fit(sorted(boots.glob("*.png"))[:40], **QUICK)


@pytest.fixture(scope="module")
def saved(detector: pad.Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    detector.save(folder)
    return folder


def test_it_finds_what_does_not_belong(detector: pad.Detector, files: list[Path]) -> None:
    assert detector.views == ("whole", "middle", "parts")
    flagged = detector.predict(files, fpr=0.1)
    assert flagged[10:].all()
    assert flagged[:10].sum() <= 3


def test_saved_and_loaded_is_the_same_to_the_bit(
    detector: pad.Detector, saved: Path, files: list[Path], boots: Path, tmp_path: Path
) -> None:
    loaded = pad.load(saved, "cpu")
    np.testing.assert_array_equal(loaded.score(files), detector.score(files))
    x = torch.rand(3, 1, 28, 28, generator=random_of()) * 2 - 1
    for one, other in zip(loaded.examine(x), detector.examine(x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    loaded.save(tmp_path / "again")
    for name in ("model.safetensors", "calibration.json", "config.yaml", "README.md"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    pad.fit(sorted(boots.glob("*.png"))[:40], **QUICK).save(tmp_path / "anew")
    for name in ("model.safetensors", "calibration.json"):
        assert (saved / name).read_bytes() == (tmp_path / "anew" / name).read_bytes()


def test_a_score_depends_on_the_image_alone(detector: pad.Detector, files: list[Path]) -> None:
    together = detector.score(files)
    np.testing.assert_allclose(detector.score(files[::-1])[::-1], together, rtol=1e-3, atol=1e-3)
    one_by_one = np.concatenate([detector.score(file) for file in files])
    np.testing.assert_allclose(one_by_one, together, rtol=1e-3, atol=1e-3)
    arrays = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_allclose(detector.score(arrays), together, rtol=1e-3, atol=1e-3)


def test_the_order_of_training_images_changes_nothing(
    detector: pad.Detector, files: list[Path], boots: Path
) -> None:
    images = sorted(boots.glob("*.png"))[:40]
    arrays = np.stack([np.asarray(Image.open(file)) for file in reversed(images)])
    other = pad.fit(arrays, **QUICK)
    np.testing.assert_allclose(other.score(files), detector.score(files), rtol=2e-3, atol=2e-3)
    ours, theirs = (d.calibration.scores for d in (detector, other) if d.calibration)
    np.testing.assert_allclose(theirs, ours, rtol=2e-3, atol=2e-3)


def test_bfloat16_ranks_as_float32(saved: Path, files: list[Path], tmp_path: Path) -> None:
    scores = []
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        shutil.copytree(saved, folder)
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("precision: auto", f"precision: {precision}"))
        scores.append(pad.load(folder, "cpu").score(files))
    assert (scores[0] != scores[1]).any()
    assert spearmanr(*scores).statistic > 0.98


def test_grey_images_score_the_same_in_a_colour_model(
    detector: pad.Detector, files: list[Path], boots: Path
) -> None:
    colour = pad.fit(sorted(boots.glob("*.png"))[:40], **QUICK, channels=3)
    np.testing.assert_allclose(colour.score(files), detector.score(files), rtol=1e-3, atol=1e-3)


def test_photographs_in_colour(photographs: Path, tmp_path: Path) -> None:
    """Crops of two photographs are normal, one of another is not; nothing is kept to be shown."""
    rocket, chelsea = (Image.open(photographs / f"{name}.png") for name in ("rocket", "chelsea"))
    crops = [rocket.crop((x, y, x + 48, y + 40)) for x in (0, 6, 12, 18) for y in (0, 4, 8)]
    detector = pad.fit(crops, **QUICK, keep_normals=0)
    assert detector.config.channels == 3
    assert detector.generator is None
    strange = chelsea.crop((20, 10, 68, 50))
    assert detector.score([strange])[0] > detector.score(crops).max()
    detector.save(tmp_path / "model")
    loaded = pad.load(tmp_path / "model", "cpu")
    np.testing.assert_array_equal(loaded.score([strange]), detector.score([strange]))
    assert np.asarray(loaded.explain([strange], fpr=0.2)[0].nearest).std() == 0  # plain grey: none is kept


def test_eight_images_make_a_verdict(boots: Path, files: list[Path]) -> None:
    images = sorted(boots.glob("*.png"))
    detector = pad.fit(images[:8], **QUICK)
    assert len(detector.calibration or ()) == 8
    assert detector.predict(files[10:], fpr=0.12).mean() > 0.5
    with pytest.raises(PadError, match="at least 8 normal images"):
        pad.fit(images[:7], **QUICK)
    with pytest.raises(PadError, match="copies of one picture"):
        pad.fit(np.stack([np.asarray(Image.open(images[0]))] * 9), **QUICK)


def test_images_without_any_structure(detector: pad.Detector, boots: Path, files: list[Path]) -> None:
    constant = np.full((3, 28, 28), [[[0]], [[128]], [[255]]], np.uint8)
    assert np.isfinite(detector.score(constant)).all()
    assert detector.predict(constant, fpr=0.1).all()
    flat = np.repeat(np.arange(0, 250, 20, dtype=np.uint8), 784).reshape(-1, 28, 28)
    of_flat = pad.fit(flat, **QUICK)
    assert np.isfinite(of_flat.score(flat)).all()
    assert of_flat.predict(files, fpr=0.1).all()
    assert np.isfinite(of_flat.score([np.full((28, 28), 111, np.uint8)])).all()


def test_pixels_that_are_no_numbers_are_refused(detector: pad.Detector) -> None:
    x = np.zeros((2, 1, 28, 28), np.float32)
    x[1, 0, 3, 3] = np.nan
    with pytest.raises(PadError, match=r"images\[1\]: values from nan"):
        detector.score(torch.from_numpy(x))


def test_the_map_says_where(detector: pad.Detector, boots: Path) -> None:
    """A bright square on a new boot."""
    picture = np.array(Image.open(sorted(boots.glob("*.png"))[60]))
    marked = picture.copy()
    marked[0:7, 0:7] = 255
    plain, found = (
        detector.anomaly_map(torch.from_numpy(p)[None, None] / 127.5 - 1)[0] for p in (picture, marked)
    )
    assert found.shape == (64, 64)
    assert (found >= 0).all()
    row, column = divmod(int((found - plain).argmax()), 64)
    assert max(row, column) < 24  # of 64: the corner, as coarse as the features are
    explanation = detector.explain([marked], fpr=0.1)[0]
    assert explanation.anomaly_map.shape == (28, 28)


def test_without_parts_there_is_no_map(boots: Path, files: list[Path], tmp_path: Path) -> None:
    """A single view needs no fusion; its map is empty, and nothing fails on that."""
    detector = pad.fit(sorted(boots.glob("*.png"))[:12], **QUICK, views=["whole"])
    assert detector.fusion is None
    detector.save(tmp_path / "model")
    loaded = pad.load(tmp_path / "model", "cpu")
    explanation = loaded.explain(files[10], fpr=0.1)[0]
    assert not explanation.anomaly_map.any()
    assert explanation.montage().width > 0
    assert explanation.seen_by == ()  # it goes without saying
    np.testing.assert_array_equal(loaded.view_p_values(files)["whole"], loaded.p_values(files))


def test_what_a_model_without_a_generator_says_of_images(
    detector: pad.Detector, files: list[Path], boots: Path
) -> None:
    with pytest.raises(PadError, match="no generator"):
        detector.reconstruct(torch.zeros(1, 1, 28, 28))
    images = as_image_set(sorted(boots.glob("*.png"))[:40])
    x = torch.stack([torch.from_numpy(np.array(images.open(i)))[None] / 127.5 - 1 for i in range(40)])
    placed = detector.encode(x)
    assert placed.shape == (40, 32)
    spread = placed.var(0)
    assert spread[0] == spread.max()  # the first of the main directions first
    assert (spread[:5].min() > spread[10:].max()).item()
    # The nearest normal image is one that was trained on.
    nearest = np.asarray(detector.explain(files[0], fpr=0.1)[0].nearest.convert("L"))
    known = [np.asarray(images.open(i)) for i in range(40)]
    assert min(np.abs(nearest.astype(int) - k).max() for k in known) <= 1


# P-values of the views ------------------------------------------------------------------------------


def test_view_p_values_follow_from_the_scores_of_calibration_images(
    detector: pad.Detector, saved: Path, files: list[Path]
) -> None:
    known = json.loads((saved / "calibration.json").read_text())["extra"]["views"]
    x = torch.stack([torch.from_numpy(np.array(Image.open(f)))[None] / 127.5 - 1 for f in files])
    scores = detector.score_views(x).numpy()
    p_values = detector.view_p_values(files)
    assert tuple(p_values) == detector.views
    for column, (name, p) in zip(scores.T, p_values.items(), strict=True):
        at_least = (np.array(known[name])[None] >= column[:, None]).sum(1)
        np.testing.assert_allclose(p, (1 + at_least) / 41, atol=1 / 41 + 1e-9)  # batches differ in rounding
        assert (p == (1 + at_least) / 41).mean() > 0.8
    explanations = detector.explain(files, fpr=0.1)
    for i, explanation in enumerate(explanations):
        assert explanation.views == pytest.approx(
            {name: p[i] for name, p in p_values.items()}, abs=1 / 41 + 1e-9
        )
        least = min(explanation.views.values())
        assert explanation.seen_by == tuple(n for n, p in explanation.views.items() if p == least)
    assert explanations[15].verdict == "anomaly"
    empty = detector.view_p_values([])
    assert all(p.shape == (0,) for p in empty.values())


def test_old_normal_images_are_known_view_by_view_as_well(
    saved: Path, files: list[Path], fashion: Path
) -> None:
    """Where fine-tuning adds images of the old normal to the calibration, each view's p-value knows them."""
    tuned = pad.load(saved, device="cpu", precision="float32")
    new, known = files[10:], sorted((fashion / "test" / "normal").glob("*.png"))[:20]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(f)))[None] / 127.5 - 1 for f in known])
    tuned.calibrate(new)
    both = calibrate_both(tuned, tuned, Replay(pixels[:1], pixels, "boots", generated=False))
    assert len(both) == 30
    rows = both.rows(tuned.views)
    assert rows is not None
    np.testing.assert_allclose(tuned.fusion.fuse(rows), both.scores, rtol=1e-6, atol=1e-6)
    for name, p in tuned.view_p_values(known).items():
        assert p.min() >= 2 / 31, name  # each of them is among those that calibrate


def test_the_view_that_spoke() -> None:
    assert speaking({"whole": 0.2, "middle": 0.1, "parts": 0.3}) == ("middle",)
    assert speaking({"whole": 0.1, "middle": 0.5, "parts": 0.1}) == ("whole", "parts")
    assert speaking({"whole": 0.1}) == speaking({}) == ()


# Size, and what is refused --------------------------------------------------------------------------


def bytes_of(state: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in state.values())


@pytest.mark.parametrize(("side", "limit"), [(96, 3e6), (224, 8e6)])
def test_models_stay_small(side: int, limit: float) -> None:
    """Of 28x28 clothes, and of photographs of 256 pixels; with as many images as it takes."""
    views = QuickViews(("whole", "middle", "parts"), TimmBackbone("efficientnet-lite2", side))
    normal = like(views, 140)
    views.fit(normal)
    pictures = torch.zeros(
        64, 1 if side == 96 else 3, *((28, 28) if side == 96 else (64, 64)), dtype=torch.uint8
    )
    views.kept = KeptNormals.of(pictures, normal.take(torch.arange(64)))
    generator = 1e6  # of 28x28, with its critics; of photographs it is as large
    assert bytes_of(views.state_dict()) + generator < limit


KEYS = "views.views."
GAUSSIAN = f"{KEYS}whole.gaussians.0."


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (f"{GAUSSIAN}variances", lambda t: t[:-1], "views do not fit its recipe"),
        (f"{GAUSSIAN}variances", lambda t: t[0], "views do not fit its recipe"),
        (f"{GAUSSIAN}variances", lambda t: -t, "must hold variances, above 0"),
        (f"{GAUSSIAN}variances", lambda t: torch.ones(3000), "views do not fit its recipe"),
        (f"{GAUSSIAN}rest", lambda t: t * 0, "must hold variances, above 0"),
        (f"{GAUSSIAN}rest", lambda t: t.repeat(2), "views do not fit its recipe"),
        (f"{GAUSSIAN}mean", lambda t: t.double(), "views do not fit its recipe"),
        (f"{GAUSSIAN}mean", lambda t: t * torch.nan, "NaN or infinite"),
        (f"{GAUSSIAN}directions", None, "views do not fit its recipe"),
        (f"{KEYS}parts.factors", lambda t: t[:, 1:], "views do not fit its recipe"),
        (f"{KEYS}parts.mean", lambda t: t.long(), "views do not fit its recipe"),
        (f"{KEYS}middle.gaussian.mean", None, "views do not fit its recipe"),
        ("views.kept.pictures", lambda t: t[..., :-1], "keeps cannot be"),
        ("views.kept.pictures", lambda t: t.view(-1), "keeps cannot be"),
        ("views.kept.pictures", lambda t: t.repeat(1, 2, 1, 1), "keeps cannot be"),
        ("views.kept.pictures", lambda t: t.new_zeros(1, 1, 900_000, 0), "keeps cannot be"),
        ("views.kept.features", lambda t: t[:-1], "views do not fit its recipe"),
        ("views.stranger", lambda _: torch.zeros(3), "views do not fit its recipe: tensor 'views.stranger'"),
        ("fusion.mean", lambda t: t[:-1], "'fusion.mean' has shape 2 where 3 fits"),
        ("fusion.deviation", lambda t: t * 0, "'fusion' must give mean, deviation and weight"),
        ("fusion.deviation", None, "missing 'fusion.deviation'"),
        ("fusion.weights", lambda t: -t, "'fusion' must give mean, deviation and weight"),
        ("fusion.stranger", lambda _: torch.zeros(3), "unexpected 'fusion.stranger'"),
        ("stranger", lambda _: torch.zeros(3), "unexpected 'stranger'"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(
    saved: Path, tmp_path: Path, key: str, change: Callable[[Any], Tensor] | None, message: str
) -> None:
    shutil.copytree(saved, tmp_path / "model")
    state = load_file(saved / "model.safetensors")
    if change is None:
        del state[key]
    else:
        state[key] = change(state.get(key)).contiguous()
    save_file(state, tmp_path / "model" / "model.safetensors")
    with pytest.raises(PadError) as caught:
        pad.load(tmp_path / "model", "cpu")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_model_without_fusion_says_what_to_do(saved: Path, tmp_path: Path, files: list[Path]) -> None:
    shutil.copytree(saved, tmp_path / "model")
    state = load_file(saved / "model.safetensors")
    save_file({k: t for k, t in state.items() if "fusion" not in k}, tmp_path / "model" / "model.safetensors")
    loaded = pad.load(tmp_path / "model", "cpu")
    with pytest.raises(PadError, match="pad calibrate MODEL"):
        loaded.score(files)
    with pytest.raises(PadError, match="at least 2 normal images"):
        loaded.calibrate(files[:1])
    loaded.calibrate(files[:10])
    assert np.isfinite(loaded.score(files)).all()


def test_publishing_guards_the_views_weights(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "model")
    config = tmp_path / "model" / "config.yaml"
    text = config.read_text()
    assert plan(tmp_path / "model", "org/name").files
    config.write_text(text.replace("view_backbone:\n  name", "view_backbone:\n  file: mine.pth\n  name"))
    assert text != config.read_text()
    with pytest.raises(PadError, match=r"needs the backbone weights mine\.pth"):
        plan(tmp_path / "model", "org/name")


# Recipes --------------------------------------------------------------------------------------------


def test_what_the_default_recipe_makes_of_few_and_of_many_images(boots: Path, tmp_path: Path) -> None:
    images = as_image_set(sorted(boots.glob("*.png")))
    few = images.subset(range(99))
    assert build_config(None, {}, images).has_generator
    assert not build_config(None, {}, few).has_generator
    assert build_config(None, {}, few).model_views == ("whole", "middle", "parts")
    # Steps and a time that are asked for count, wherever they are.
    assert build_config(None, {"steps": 7}, few).has_generator
    assert build_config(None, {}, few, timed=True).has_generator
    (tmp_path / "mine.yaml").write_text("views: auto\nsteps: 7\nsize: 28\n")
    assert build_config(str(tmp_path / "mine.yaml"), {}, few).steps == 7
    assert not build_config(None, {"steps": 0}, images).has_generator


def test_settings_of_views_that_make_no_sense() -> None:
    for settings, message in (
        ({"views": ("hole",)}, "'views' cannot be"),
        ({"views": ("whole", "whole")}, "'views' cannot be"),
        ({"views": ()}, "'views' cannot be"),
        ({"views": ("generator",), "steps": 0}, "'steps' cannot be 0"),
        ({"view_size": 16}, "'view_size' cannot be 16"),
        ({"keep_normals": 2000}, "'keep_normals' cannot be 2000"),
    ):
        with pytest.raises(PadError, match=message):
            Config(**settings)


def test_a_time_without_a_generator_to_train_is_refused(boots: Path) -> None:
    with pytest.raises(PadError, match="no generator to train"):
        pad.fit(sorted(boots.glob("*.png"))[:12], **QUICK, minutes=1)


def test_copies_of_a_picture_do_not_change_what_is_found(boots: Path, files: list[Path]) -> None:
    """Nor do they make the scores of training images too low: copies are judged by a fit without all of
    them."""
    images = sorted(boots.glob("*.png"))[:15]
    once, thrice = pad.fit(images, **QUICK), pad.fit(images * 3, **QUICK)
    ours, theirs = (d.calibration.scores for d in (once, thrice) if d.calibration)
    # A score is about how unusual in deviations of normal images, so it is comparable.
    assert np.median(theirs) == pytest.approx(np.median(ours), abs=0.3)
    assert (thrice.score(files[10:]) > theirs.max()).mean() > 0.5
    assert spearmanr(once.score(files), thrice.score(files)).statistic > 0.9
