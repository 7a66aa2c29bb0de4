from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pad.config import Config, coarsest_resolution, from_mapping, load_recipe, recipe_names
from pad.errors import PadError
from pad.networks import LatentNorm, ResidualBlock, build_networks, minibatch_standard_deviation


def small(size: int, channels: int, resolution: int) -> Config:
    widths = (4,) * (size // coarsest_resolution(size, resolution)).bit_length()
    return Config(
        size=size,
        channels=channels,
        latent_dim=6,
        latent_resolution=resolution,
        generator_channels=widths,
        encoder_channels=widths,
        critic_channels=(4,) * (size // coarsest_resolution(size)).bit_length(),
        latent_critic_channels=(8,),
    )


@pytest.mark.parametrize(
    ("size", "coarsest"),
    [(16, 4), (20, 5), (24, 6), (28, 7), (32, 4), (40, 5), (56, 7), (64, 4), (192, 6), (224, 7), (256, 4)],
)
def test_sizes_halve_down_to_four_to_seven_pixels(size: int, coarsest: int) -> None:
    assert coarsest_resolution(size) == coarsest
    assert coarsest_resolution(size, 2 * coarsest) == 2 * coarsest
    Config(size=size)


@pytest.mark.parametrize("size", [0, 8, 12, 18, 26, 30, 36, 44, 100, 250, 512])
def test_sizes_that_do_not_halve_are_refused(size: int) -> None:
    with pytest.raises(PadError, match=r"'size' cannot be .* 16, 20, 24 or 28 pixels"):
        Config(size=size)


@pytest.mark.parametrize(("size", "resolution"), [(32, 3), (32, 16), (28, 4), (28, 0), (28, 14), (24, 4)])
def test_latents_that_do_not_fit_the_size_are_refused(size: int, resolution: int) -> None:
    with pytest.raises(PadError, match=r"'latent_resolution' cannot be .* a divisor of "):
        Config(size=size, latent_resolution=resolution)


@pytest.mark.parametrize(
    ("size", "resolution"),
    [*itertools.product([16, 32, 64, 128, 256], [1, 4]), (20, 1), (24, 3), (28, 1), (28, 7), (56, 14)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(size: int, channels: int, resolution: int) -> None:
    networks = build_networks(small(size, channels, resolution))
    x = torch.rand(2, channels, size, size) * 2 - 1
    z = networks["encoder"](x)
    assert z.shape == (2, 6, resolution, resolution)
    assert networks["generator"](z).shape == x.shape
    assert networks["image_critic"](x).shape == (2,)
    assert networks["latent_critic"](z).shape == (2,)


@pytest.mark.parametrize("resolution", [2, 8])
def test_other_latent_resolutions(resolution: int) -> None:
    networks = build_networks(small(32, 1, resolution))
    z = networks["encoder"](torch.zeros(2, 1, 32, 32))
    assert z.shape == (2, 6, resolution, resolution)
    assert networks["generator"](z).shape == (2, 1, 32, 32)


def test_widths_that_do_not_fit_are_refused_with_what_does() -> None:
    with pytest.raises(PadError, match=r"'encoder_channels' has 4 widths .* size 64 .* takes 5"):
        build_networks(Config(size=64))


@pytest.mark.parametrize("name", [n for n in recipe_names() if n != "folder"])
def test_the_papers_networks_can_be_built(name: str) -> None:
    config = from_mapping(load_recipe(name))
    with torch.device("meta"):
        networks = build_networks(config)
        r = config.latent_resolution
        image = networks["generator"](torch.empty(2, config.latent_dim, r, r))
    assert image.shape == (2, config.channels, config.size, config.size)


def test_up_block_equals_upsampling_before_the_shortcut() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(3, 5, "up")
    x = torch.randn(2, 3, 4, 4)
    up = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    h = block.conv2(F.leaky_relu(block.conv1(F.leaky_relu(up, 0.2)), 0.2))
    torch.testing.assert_close(block(x), block.shortcut(up) + h)


def test_minibatch_standard_deviation_against_numpy() -> None:
    x = torch.randn(5, 3, 4, 4)
    out = minibatch_standard_deviation(x)
    expected = x.numpy().std(axis=0).mean()
    assert out.shape == (5, 4, 4, 4)
    np.testing.assert_allclose(out[:, 3].numpy(), np.full((5, 4, 4), expected), rtol=1e-4)
    torch.testing.assert_close(out[:, :3], x)


def test_latent_norm_standardizes_and_stays_affine() -> None:
    torch.manual_seed(0)
    norm = LatentNorm(4)
    raw = torch.randn(500, 4) * torch.tensor([1.0, 3.0, 9.0, 0.1]) + torch.tensor([0.0, 5.0, -9.0, 1.0])
    for batch in raw.split(50):
        norm.update(batch)
    out = norm(raw)
    assert out.std(0).sub(1).abs().max() < 0.2
    assert out.mean(0).abs().max() < 0.2
    # Affine: nothing in the layer depends on the batch that is passed through.
    torch.testing.assert_close(norm(raw[:3]), out[:3])
