from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from pad.config import Config
from pad.similarity.base import Similarity
from pad.similarity.build import build_similarity
from pad.similarity.pixel import L1, L2, LPIPS, SSIM


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 40, 40, generator=random) * 2 - 1
    return x, (0.7 * x + 0.3 * (torch.rand(2, 3, 40, 40, generator=random) * 2 - 1))


def test_l1_and_l2_against_numpy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = pair
    difference = (x - y).numpy()
    np.testing.assert_allclose(L1()(x, y).numpy(), np.abs(difference).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(L2()(x, y).numpy(), (difference**2).mean((1, 2, 3)), rtol=1e-5)


def test_ssim_against_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = pair
    ours = 1 - SSIM().pixels(x, y)[0]
    _, theirs = structural_similarity(
        x[0].numpy(), y[0].numpy(), channel_axis=0, data_range=2.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    inside = slice(5, -5)  # at the border the two take other windows
    np.testing.assert_allclose(ours.numpy()[inside, inside], theirs.mean(0)[inside, inside], atol=1e-4)


def test_lpips_against_its_definition(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Unit-normalized features of five layers, squared differences, weighted by the linear heads."""
    import lpips

    from pad.backbones.vgg import VGGBackbone

    x, y = pair
    layers = ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]
    backbone = VGGBackbone("vgg16-st", layers)
    backbone.blurred = False  # LPIPS pools by plain maxima
    heads = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).lins
    total = np.zeros(2)
    f_x, f_y = backbone(x), backbone(y)
    for layer, head in zip(layers, heads, strict=True):
        a, b = f_x[layer].numpy(), f_y[layer].numpy()
        a = a / np.sqrt((a**2).sum(1, keepdims=True) + 1e-10)
        b = b / np.sqrt((b**2).sum(1, keepdims=True) + 1e-10)
        weight = head.model[-1].weight.detach().numpy().reshape(1, -1, 1, 1)
        total += (weight * (a - b) ** 2).sum(1).mean((1, 2))
    np.testing.assert_allclose(LPIPS()(x, y).numpy(), total, rtol=0.05)


@pytest.mark.parametrize("name", ["relative-perceptual-l1", "l1", "l2", "ssim", "lpips"])
def test_every_similarity_by_name(name: str, pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    similarity = build_similarity(Config(similarity=name, channels=3, feature_weights=False))
    x, y = pair
    value = similarity(x, y)
    assert value.shape == (2,)
    assert bool((value > 0).all())
    assert similarity(x, x).abs().max() < 1e-5
    prepared = similarity.prepare(x)
    fine = similarity.map(x, y)
    assert fine.shape == (2, 40, 40)
    assert fine.min() >= 0
    assert similarity.map(x, x).abs().max() < 1e-5
    z = y.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(similarity.compare(prepared, z).sum(), z)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("similarity", [L1(), L2(), SSIM()])
def test_what_learns_nothing_goes_through_the_same_steps_unchanged(similarity: Similarity) -> None:
    """The protocol of pad/similarity/base.py, from `fit` to a saved state, does nothing to these."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(3, 1, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    before = similarity(x, y)
    similarity.fit([similarity.features(x)])
    similarity.take_statistics(similarity)
    similarity.choose_channels()
    similarity.fit_residuals([similarity.differences(similarity.prepare(x), y)], similarity)
    similarity.cast(torch.bfloat16)
    assert torch.equal(similarity(x, y), before)
    similarity.reset_residuals()
    assert (similarity.statistics_state(), similarity.backbone_card()) == ({}, {})
    similarity.make_room({})
    similarity.load_statistics_state({})
    assert torch.equal(similarity.compare(similarity.standardize(similarity.features(x)), y), before)
