"""The four networks: generator G: z -> x, encoder E: x -> z, image critic D_x, latent critic D_z.

Pre-activation residual blocks (He et al., arXiv:1603.05027), LeakyReLU(0.2), no normalization layers,
nearest up-sampling and average pooling, as in "Perceptual Image Anomaly Detection" (arXiv:1909.05904),
section 4 and supplement. An image is (n, channels, size, size) in [-1, 1]; a latent is (n, d, r, r).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pad import distributed
from pad.config import Config, coarsest_resolution, feature_resolutions
from pad.errors import PadError

SLOPE = 0.2


def _activation() -> nn.Module:
    return nn.LeakyReLU(SLOPE)


def check_widths(name: str, widths: Sequence[int], size: int, latent_resolution: int) -> None:
    """Raises PadError unless there is one width for each resolution from the coarsest to `size`."""
    resolutions = feature_resolutions(size, latent_resolution)
    if len(widths) != len(resolutions):
        raise PadError(
            f"setting '{name}' has {len(widths)} widths {list(widths)}, but size {size} with "
            f"latent_resolution {latent_resolution} takes {len(resolutions)}, one for each of {resolutions}"
        )


class ResidualBlock(nn.Module):
    """x -> shortcut(x) + f(x), f = two pre-activated 3x3 convolutions; `scale` is "up", "down" or "same"."""

    def __init__(self, in_channels: int, out_channels: int, scale: str = "same") -> None:
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(x, SLOPE)
        if self.scale == "up":
            # A 1x1 convolution and nearest up-sampling commute: the cheaper order first.
            return _up(self.shortcut(x)) + self.conv2(F.leaky_relu(self.conv1(_up(h)), SLOPE))
        if self.scale == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        return self.shortcut(x) + self.conv2(F.leaky_relu(self.conv1(h), SLOPE))


def _up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Generator(nn.Module):
    """z (n, d, r, r) -> image (n, channels, size, size), in [-1, 1] after training but not clamped."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, r = config.generator_channels, config.latent_resolution
        check_widths("generator_channels", widths, config.size, r)
        start = coarsest_resolution(config.size, r)
        # A 4x4 kernel spreads a 1x1 latent over a first feature map of 4x4.
        self.stem: nn.Module
        if r < start:
            self.stem = nn.ConvTranspose2d(config.latent_dim, widths[0], start // r, stride=start // r)
        else:
            self.stem = nn.Conv2d(config.latent_dim, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(
            *(ResidualBlock(a, b, "up") for a, b in itertools.pairwise(widths)),
            ResidualBlock(widths[-1], widths[-1]),
        )
        self.head = nn.Sequential(_activation(), nn.Conv2d(widths[-1], config.channels, 1))
        initialize(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(z)))


class _Down(nn.Module):
    """The half that encoder and image critic share: image -> features at the coarsest resolution."""

    def __init__(self, name: str, config: Config, widths: Sequence[int], resolution: int) -> None:
        super().__init__()
        check_widths(name, widths, config.size, resolution)
        self.stem = nn.Conv2d(config.channels, widths[0], 3, padding=1)
        inputs = [widths[0], *widths]
        self.blocks = nn.Sequential(
            *(ResidualBlock(a, b, "down") for a, b in zip(inputs, widths[:-1], strict=False))
        )
        self.out_channels = inputs[len(widths) - 1]

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))


class LatentNorm(nn.Module):
    """Standardizes each element of E(x) by running statistics over the batches seen in training.

    E of an untrained network lies far from N(0, I); starting there lets the latent critic begin with a
    fair game. The statistics are constants to the gradient: the layer is affine, in training as in scoring.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, features: int, momentum: float = 0.01) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, raw: Tensor) -> None:
        """Takes the statistics of a batch (n, features) of raw latents in."""
        raw = distributed.gathered(raw.detach().float())
        # The first batches count fully, so that the averages do not start from 0 and 1.
        rate = max(self.momentum, 1.0 / (int(self.count) + 1))
        self.mean.lerp_(raw.mean(0), rate)
        self.variance.lerp_((raw - self.mean).square().mean(0), rate)
        self.count += 1

    def forward(self, raw: Tensor) -> Tensor:
        return (raw - self.mean) / (self.variance + 1e-8).sqrt()


class Encoder(nn.Module):
    """Image (n, channels, size, size) -> z (n, d, r, r)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, r = config.encoder_channels, config.latent_resolution
        self.latent_shape = (config.latent_dim, r, r)
        self.down = _Down("encoder_channels", config, widths, r)
        start = coarsest_resolution(config.size, r)
        kernel = start // r if r < start else 3
        self.mix = nn.Conv2d(
            self.down.out_channels,
            widths[-1],
            kernel,
            stride=kernel if r < start else 1,
            padding=0 if r < start else 1,
        )
        self.head = nn.Conv2d(widths[-1], config.latent_dim, 1)
        self.norm = LatentNorm(config.latent_dim * r * r) if config.latent_norm else None
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(F.leaky_relu(self.down(x), SLOPE))
        raw = self.head(F.leaky_relu(h, SLOPE)).flatten(1)
        if self.norm is not None:
            if self.training:
                self.norm.update(raw)
            raw = self.norm(raw)
        return raw.view(-1, *self.latent_shape)


def minibatch_standard_deviation(x: Tensor) -> Tensor:
    """x (n, c, h, w) -> (n, c + 1, h, w): the mean over all features of their standard deviation over the
    batch (of all processes), as one more feature map (Karras et al., arXiv:1710.10196, section 3)."""
    if distributed.world() == 1:
        variance = x.var(dim=0, unbiased=False)
    else:
        centre = distributed.mean(x.mean(0))
        variance = distributed.mean((x - centre).square().mean(0))
    deviation = (variance + 1e-8).sqrt().mean()
    return torch.cat([x, deviation.expand(x.shape[0], 1, *x.shape[2:])], dim=1)


class ImageCritic(nn.Module):
    """Image (n, channels, size, size) -> criticism (n,)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = config.critic_channels
        self.down = _Down("critic_channels", config, widths, 1)
        self.mix = nn.Conv2d(self.down.out_channels + 1, widths[-1], coarsest_resolution(config.size))
        self.head = nn.Conv2d(widths[-1], 1, 1)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        h = minibatch_standard_deviation(self.down(x))
        h = self.mix(F.leaky_relu(h, SLOPE))
        return self.head(F.leaky_relu(h, SLOPE)).flatten()


class LatentCritic(nn.Module):
    """Latent (n, d, r, r) -> criticism (n,): an MLP of 1x1 convolutions over the flattened latent."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        inputs = [config.latent_dim * config.latent_resolution**2, *config.latent_critic_channels]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(inputs):
            layers += [nn.Conv2d(a, b, 1), _activation()]
        self.model = nn.Sequential(*layers, nn.Conv2d(inputs[-1], 1, 1))
        initialize(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.model(z.flatten(1)[:, :, None, None]).flatten()


def initialize(network: nn.Module) -> None:
    """Kaiming-normal weights for LeakyReLU(0.2), zero biases. On the device `meta` there is nothing to fill,
    and trying to imports seconds of torch."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_in")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_networks(config: Config) -> nn.ModuleDict:
    """`encoder`, `generator`, `image_critic` and `latent_critic` of a recipe.

    Raises PadError if the lists of widths do not fit the sizes.
    """
    return nn.ModuleDict(
        {
            "encoder": Encoder(config),
            "generator": Generator(config),
            "image_critic": ImageCritic(config),
            "latent_critic": LatentCritic(config),
        }
    )
