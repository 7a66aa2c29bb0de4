from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import vgg16

from pad.backbones.vgg import VGGBackbone, _stlpips_file, load_backbone_weights
from pad.config import Config
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.images.stream import load_all
from pad.similarity.pixel import L1, L2
from pad.similarity.relative import RelativePerceptualL1, Residuals


def noise(n: int = 3, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision VGG-16 with random weights, as a user would save it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(vgg16(weights=None).state_dict(), path)
    return path


def test_vgg16_equals_torchvisions(weights_file: Path) -> None:
    reference = vgg16(weights=None)
    reference.load_state_dict(torch.load(weights_file, weights_only=True))
    x = noise()
    normalized = ((x + 1) / 2 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    features = VGGBackbone("vgg16", ["relu1_2", "relu3_3", "relu4_2"], str(weights_file))(x)
    for name, cut in (("relu1_2", 4), ("relu3_3", 16), ("relu4_2", 21)):
        expected = reference.features[:cut](normalized)
        torch.testing.assert_close(features[name], expected, rtol=1e-3, atol=1e-4)


def test_shift_tolerant_pooling_equals_the_packages_own_filter() -> None:
    """Dense maximum, then the blur filter that lies in the weights' file, at stride 2."""
    state = torch.load(_stlpips_file(), weights_only=True, map_location="cpu")
    h = torch.rand(2, 64, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = F.conv2d(
        F.pad(F.max_pool2d(h, 2, stride=1), (1, 1, 1, 1), mode="reflect"),
        state["net.slice2.5.filt"],
        stride=2,
        groups=64,
    )
    torch.testing.assert_close(VGGBackbone("vgg16-st", ["relu2_1"])._pool(h, "relu2_1"), expected)


def test_default_backbone_takes_every_convolution_of_the_file() -> None:
    state = torch.load(_stlpips_file(), weights_only=True, map_location="cpu")
    expected = [v for k, v in state.items() if k.startswith("net.") and k.endswith("weight")]
    found = load_backbone_weights("vgg16-st")
    assert len(found) == 13
    assert all(torch.equal(weight, e) for (weight, _), e in zip(found, expected, strict=True))


def test_grey_images_are_repeated_to_three_channels() -> None:
    backbone = VGGBackbone("vgg16-st", ["relu2_2"])
    x = noise(channels=1)
    torch.testing.assert_close(backbone(x)["relu2_2"], backbone(x.repeat(1, 3, 1, 1))["relu2_2"])


def fitted(layers: dict[str, float], standardize: str = "sigma") -> RelativePerceptualL1:
    similarity = RelativePerceptualL1(VGGBackbone("vgg16-st", layers), layers, standardize)
    return similarity.fit(similarity.features(noise(4, seed=s)) for s in range(3))


def test_statistics_against_numpy() -> None:
    similarity = fitted({"relu2_2": 1.0})
    features = np.concatenate(
        [similarity.backbone(noise(4, seed=s))["relu2_2"].numpy() for s in range(3)]
    ).astype(np.float64)
    statistics = similarity.statistics["relu2_2"]
    np.testing.assert_allclose(statistics.mean.numpy(), features.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    sigma = features.std((0, 2, 3))
    np.testing.assert_allclose(
        statistics.sigma.numpy(), np.maximum(sigma, 0.3 * np.sqrt((sigma**2).mean())), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("standardize", ["sigma", "variance"])
def test_relative_perceptual_l1_against_numpy(standardize: str) -> None:
    layers = {"relu2_2": 1.0, "relu3_1": 0.5}
    similarity = fitted(layers, standardize)
    x, y = noise(3, seed=10), noise(3, seed=11)
    total = np.zeros(3)
    for name, weight in layers.items():
        statistics = similarity.statistics[name]
        mu = statistics.mean.double().numpy()[:, None, None]
        sigma = statistics.sigma.double().numpy()[:, None, None] ** (1 if standardize == "sigma" else 2)
        f_x = (similarity.backbone(x)[name].double().numpy() - mu) / sigma
        f_y = (similarity.backbone(y)[name].double().numpy() - mu) / sigma
        total += weight * np.abs(f_x - f_y).sum((1, 2, 3)) / np.abs(f_x).sum((1, 2, 3))
    np.testing.assert_allclose(similarity(x, y).numpy(), total / 1.5, rtol=1e-4)
    assert similarity(x, x).abs().max() == 0


def test_in_the_score_the_channels_of_largest_sigma_count() -> None:
    """Of the deepest layer; rho, weights and components from them alone, as if the others were not there. In
    training, all count."""
    layers = {"relu2_2": 1.0, "relu3_1": 0.5}
    backbone = VGGBackbone("vgg16-st", layers)
    similarity = RelativePerceptualL1(backbone, layers, size=32, weighted=True, channels=0.25, components=2)
    similarity.fit(similarity.features(noise(4, seed=s)) for s in range(3))
    x, y = noise(8, seed=10), noise(8, seed=11)
    torch.testing.assert_close(similarity(x, y), fitted(layers)(x, y), rtol=0, atol=0)
    whole = [[f.numpy() for f in similarity.prepare(image)] for image in (x, y)]
    varied = np.sort(np.argsort(similarity.of("relu3_1").sigma.numpy())[-64:])
    similarity.choose_channels()
    total = np.zeros(8)
    for index, (name, share) in enumerate(layers.items()):
        counted = varied if name == "relu3_1" else np.arange(128)
        f_x, f_y = (image[index][:, counted] for image in whole)
        np.testing.assert_allclose(similarity.prepare(x)[index], f_x, rtol=1e-4, atol=1e-4)
        total += share * np.abs(f_x - f_y).sum((1, 2, 3)) / np.abs(f_x).sum((1, 2, 3))
    np.testing.assert_allclose(similarity(x, y), total / 1.5, rtol=1e-4)
    similarity.fit_residuals([similarity.differences(similarity.prepare(x), y)])
    assert similarity.of("relu3_1").weight.shape == (64, 8, 8)
    assert similarity.of("relu3_1").components.shape == (2, 8, 8, 64)
    assert similarity.of("relu2_2").components.shape == (2, 16, 16, 128)
    assert bool((similarity(x, y) < torch.from_numpy(total / 1.5)).all())
    similarity.reset_residuals()
    torch.testing.assert_close(similarity(x, y), fitted(layers)(x, y), rtol=0, atol=0)


@pytest.mark.parametrize(("weighted", "components"), [(True, 0), (False, 3), (True, 3)])
def test_residuals_of_normal_images_against_numpy(weighted: bool, components: int) -> None:
    """w = c / (r + 0.3 mean(r)) with a mean of 1, and B the first principal components of the weighted
    residuals; rho as in the paper before they are set and after they are reset."""
    layers = {"relu2_2": 1.0, "relu3_1": 0.5}
    similarity = RelativePerceptualL1(
        VGGBackbone("vgg16-st", layers), layers, size=32, weighted=weighted, components=components
    )
    similarity.fit(similarity.features(noise(4, seed=s)) for s in range(3))
    x, y = noise(3, seed=10), noise(3, seed=11)
    plain = similarity(x, y)
    torch.testing.assert_close(plain, fitted(layers)(x, y), rtol=0, atol=0)
    pairs = [(noise(6, seed=s), noise(6, seed=s).mul(0.5)) for s in (12, 13)]
    similarity.fit_residuals(similarity.differences(similarity.prepare(a), b) for a, b in pairs)
    total = np.zeros(3)
    for index, (name, share) in enumerate(layers.items()):
        f = [[similarity.prepare(image)[index].double().numpy() for image in pair] for pair in pairs]
        differences = np.concatenate([a - b for a, b in f])
        r = np.sqrt(np.mean(differences**2, axis=0))
        w = 1 / (r + 0.3 * r.mean()) if weighted else np.ones_like(r)
        w /= w.mean()
        if weighted:
            np.testing.assert_allclose(similarity.of(name).weight.numpy(), w, rtol=1e-3)
        else:
            assert similarity.of(name).weight is None
        f_x, f_y = (similarity.prepare(image)[index].double().numpy() for image in (x, y))
        residual = (w * (f_x - f_y)).reshape(3, -1)
        if components:
            _, _, axes = np.linalg.svd((w * differences).reshape(12, -1), full_matrices=False)
            residual = residual - residual @ axes[:3].T @ axes[:3]
        total += share * np.abs(residual).sum(1) / np.abs(f_x).sum((1, 2, 3))
    np.testing.assert_allclose(similarity(x, y).numpy(), total / 1.5, rtol=2e-3)
    similarity.reset_residuals()
    torch.testing.assert_close(similarity(x, y), plain, rtol=0, atol=0)
    with pytest.raises(PadError, match="no images"):
        similarity.fit_residuals([])


def test_errors_of_the_kinds_made_on_normal_images_do_not_count() -> None:
    """What differs along the components of normal residuals scores next to nothing, however far it goes;
    across them it counts in full."""
    layers = {"relu2_1": 1.0}
    similarity = RelativePerceptualL1(
        VGGBackbone("vgg16-st", layers), layers, size=16, weighted=True, components=2
    )
    similarity.fit([similarity.features(noise(4, seed=0, size=16))])
    statistics = similarity.of("relu2_1")
    random = torch.Generator().manual_seed(1)
    kinds = torch.randn(2, 128, 8, 8, generator=random)
    normal = torch.einsum("nk,kchw->nchw", torch.randn(40, 2, generator=random), kinds)
    similarity.fit_residuals([[normal]])
    assert statistics.components is not None
    assert statistics.components.shape == (2, 8, 8, 128)
    along = statistics.project(statistics.weigh(5 * kinds)).abs().sum((1, 2, 3))
    other = torch.randn(2, 128, 8, 8, generator=random)
    across = statistics.project(statistics.weigh(other)).abs().sum((1, 2, 3))
    assert along.max() < 0.05 * statistics.weigh(5 * kinds).abs().sum((1, 2, 3)).min()
    assert across.min() > 0.9 * statistics.weigh(other).abs().sum((1, 2, 3)).min()


def test_fine_tuning_keeps_the_kinds_of_error_that_are_known() -> None:
    """Errors of the old kinds and of the new ones score next to nothing, though the weights are others."""
    layers = {"relu2_1": 1.0}
    random = torch.Generator().manual_seed(0)
    kinds = torch.randn(2, 2, 128, 8, 8, generator=random)  # old and new, two of each
    scale = torch.rand(128, 8, 8, generator=random) + 0.1
    errors = [kinds[0] * scale, kinds[1] * scale.flip(0)]
    known = None
    for of in errors:
        similarity = RelativePerceptualL1(
            VGGBackbone("vgg16-st", layers), layers, size=16, weighted=True, components=2
        )
        images = torch.einsum("nk,kchw->nchw", torch.randn(40, 2, generator=random), of)
        similarity.fit_residuals([[images]], known)
        known = similarity
    statistics = similarity.of("relu2_1")
    assert statistics.components is not None
    flat = statistics.basis().flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(4), rtol=0, atol=0.01)
    for of in errors:
        weighed = statistics.weigh(of)
        assert statistics.project(weighed).abs().sum() < 0.05 * weighed.abs().sum()


@pytest.mark.parametrize(("images", "most", "found"), [(40, 100, 10), (40, 7, 7), (3, 100, 0)])
def test_components_are_as_many_as_the_images_can_tell(images: int, most: int, found: int) -> None:
    residuals = Residuals()
    weight = torch.ones(8, 4, 4)
    residuals.add(torch.randn(images, 8, 4, 4, generator=torch.Generator().manual_seed(0)))
    components = residuals.principal_components(weight, most).flatten(1)
    assert len(components) == found
    torch.testing.assert_close(components @ components.T, torch.eye(found), rtol=0, atol=1e-4)
    same = Residuals()
    same.add(torch.ones(40, 8, 4, 4))  # one kind of error alone
    assert len(same.principal_components(weight, most)) == 1
    nothing = Residuals()
    nothing.add(torch.zeros(40, 8, 4, 4))
    assert len(nothing.principal_components(weight, most)) == 0
    broken = Residuals()
    broken.add(torch.full((40, 8, 4, 4), 1e30))  # their products are beyond a float
    with pytest.raises(PadError, match="not finite"):
        broken.principal_components(weight, most)


@pytest.mark.parametrize(("size", "backbone_size"), [(32, None), (64, None), (32, 48)])
def test_feature_weights_have_the_shape_of_the_features(size: int, backbone_size: int | None) -> None:
    layers = {"relu1_1": 1.0, "relu2_1": 1.0, "relu4_1": 1.0}
    for name in ("vgg16-st", "vgg16"):
        backbone = VGGBackbone("vgg16-st", layers, size=backbone_size)
        backbone.blurred = name == "vgg16-st"
        similarity = RelativePerceptualL1(backbone, layers, size=size, weighted=True)
        for layer, f in zip(layers, similarity.features(torch.zeros(1, 1, size, size)), strict=True):
            assert similarity.of(layer).weight.shape == f.shape[1:]


def test_the_denominator_carries_no_gradient() -> None:
    similarity = fitted({"relu2_2": 1.0})
    x, y = noise(1, seed=5).requires_grad_(True), noise(1, seed=6)
    (gradient,) = torch.autograd.grad(similarity(x, y).sum(), x)
    f_x = similarity.prepare(x)[0]
    f_y = similarity.prepare(y)[0]
    fixed = f_x.detach().abs().sum()
    (expected,) = torch.autograd.grad((f_x - f_y).abs().sum() / fixed, x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("size", [32, 24])
def test_the_map_against_numpy(size: int) -> None:
    """Relative L1 of the raw features of the full image in each layer, whatever size the score looks at."""
    backbone = VGGBackbone("vgg16-st", ["relu3_1"], size=size)
    fine = RelativePerceptualL1(backbone, {"relu3_1": 1.0}).map(x := noise(2, seed=7), y := noise(2, seed=8))
    assert fine.shape == (2, 32, 32)
    layers = ["relu2_1", "relu2_2", "relu3_1"]
    reference = VGGBackbone("vgg16-st", layers)
    expected = np.zeros((2, 32, 32))
    for name, f_x in reference(x).items():
        a, b = f_x.double().numpy(), reference(y)[name].double().numpy()
        density = np.abs(a - b).sum(1) * a.shape[-1] ** 2 / np.abs(a).sum((1, 2, 3))[:, None, None]
        scale = 32 // density.shape[-1]
        # Bilinear: each pixel's centre lies between the centres of two cells, held at the border.
        at = np.clip((np.arange(32) + 0.5) / scale - 0.5, 0, density.shape[-1] - 1)
        line = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(density.shape[-1])))
        expected += np.einsum("ih,nhw,jw->nij", line, density, line) / len(layers)
    np.testing.assert_allclose(fine.numpy(), expected, rtol=1e-3)


def test_the_map_points_at_the_difference() -> None:
    x = noise(1, seed=7)
    similarity = fitted({"relu2_2": 1.0})  # the backbone ends there, and so does the map
    assert similarity.map(x, x).abs().max() == 0
    y = x.clone()
    y[:, :, 20:26, 4:10] *= -1
    row, column = divmod(int(similarity.map(x, y)[0].argmax()), 32)
    assert 19 <= row <= 26
    assert 3 <= column <= 10


def brighter(x: Tensor) -> Tensor:
    return (x + 0.2).clamp(-1, 1)


def darker(x: Tensor) -> Tensor:
    return (x - 0.2).clamp(-1, 1)


def less_contrast(x: Tensor) -> Tensor:
    """All intensities at 70 %, as under less light: bright against dark loses contrast, black stays black."""
    return 0.7 * (x + 1) - 1


@pytest.mark.parametrize("change", [brighter, darker, less_contrast])
def test_moves_less_than_l1_and_l2_under_contrast_and_brightness(boots: Path, change: Callable) -> None:
    """How far a change of light moves an image, relative to how far another image (new content) is.

    L2 is taken as a distance, the root of the mean square, as it would otherwise shrink by squaring alone.
    """
    images, _, _ = load_all(resolve([str(boots)], "train"), Config())
    layers = Config().layers
    rho = RelativePerceptualL1(VGGBackbone("vgg16-st", layers), layers)
    rho.fit(rho.features(batch) for batch in images.split(60))
    x, other = images[:40], images[40:80]

    def moved(metric: Callable[[Tensor, Tensor], Tensor]) -> float:
        return float((metric(x, change(x)) / metric(x, other)).mean())

    assert moved(rho) < moved(L1())
    assert moved(rho) < moved(lambda a, b: L2()(a, b).sqrt())


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(PadError, match="no 'relu3_9'; did you mean 'relu3_3'"):
        VGGBackbone("vgg16-st", ["relu3_9"])
    with pytest.raises(PadError, match=r"no such file .*missing\.pth"):
        VGGBackbone("vgg19", ["relu4_2"], str(tmp_path / "missing.pth"))
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"not weights")
    with pytest.raises(PadError, match="cannot read"):
        VGGBackbone("vgg19", ["relu4_2"], str(junk))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(PadError, match="does not hold the convolutions"):
        VGGBackbone("vgg19", ["relu4_2"], str(tmp_path / "other.pth"))
    with pytest.raises(PadError, match="too small"):
        VGGBackbone("vgg16-st", ["relu5_3"])(noise(1, size=8))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(PadError):
        VGGBackbone("vgg16", ["relu1_1"], str(path))
    assert not (tmp_path / "ran").exists()
