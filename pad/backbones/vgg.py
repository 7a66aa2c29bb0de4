"""VGG as a frozen backbone, up to the deepest layer asked for; its weights are read as plain tensors."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pad.backbones.pooling import blurred_max_pool, relu
from pad.backbones.weights import read_state
from pad.errors import PadError, did_you_mean, one_line, shown
from pad.images.resize import antialiased

# Convolutions in each of the five blocks, with their widths; a 2x2 pooling lies between the blocks.
_VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_VGG19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
_IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of torchvision's weights, in [0, 1]
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class VGGBackbone(nn.Module):
    """A frozen VGG up to the deepest layer asked for.

    Images (n, 1 or 3, h, w) in [-1, 1] -> {layer: feature map (n, c, h', w')}; layers are named
    `relu1_1` to `relu5_3` (VGG-16) or `relu5_4` (VGG-19).

    Args:
        name: "vgg16-st" (weights of the package stlpips-pytorch: shift-tolerant, its pooling blurred),
            "vgg16" or "vgg19" (torchvision's weights, downloaded on first use).
        layers: names of the layers to return.
        weights: a local file of weights for vgg16 or vgg19 (safetensors or a torch state dict).
        size: resize the images to this side first; None: as they are.
        download: whether torchvision's weights are downloaded if they are not on this machine.
        pretrained: False: without any weights, for the shapes alone.

    Raises:
        PadError: an unknown layer, images too small for it, or weights that cannot be had.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        name: str,
        layers: Iterable[str],
        weights: str | None = None,
        size: int | None = None,
        download: bool = True,
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        self.name, self.size = name, size
        self.layers = tuple(layers)
        plan = _VGG19 if name == "vgg19" else _VGG16
        known = [f"relu{b}_{i}" for b, (_, n) in enumerate(plan, 1) for i in range(1, n + 1)]
        for layer in self.layers:
            if layer not in known:
                raise PadError(f"setting 'layers': {name} has no {shown(layer)}{did_you_mean(layer, known)}")
        deepest = max(known.index(layer) for layer in self.layers)
        self.deepest = known[deepest]
        self.convolutions = nn.ModuleDict()
        in_channels = 3
        for index, layer in enumerate(known):
            width = plan[int(layer[4]) - 1][0]
            if index <= deepest:
                self.convolutions[layer] = nn.Conv2d(in_channels, width, 3, padding=1)
            in_channels = width
        self.blurred = name == "vgg16-st"
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer(
            "deviation", torch.tensor(_IMAGENET_DEVIATION).view(1, 3, 1, 1), persistent=False
        )
        state = load_backbone_weights(name, weights, download) if pretrained else []
        self.fingerprint = _fingerprint(state)
        for layer, (weight, bias) in zip(known, state, strict=False):
            if layer in self.convolutions:
                self.convolutions[layer].load_state_dict({"weight": weight.float(), "bias": bias.float()})
        self.requires_grad_(False)
        self.eval()

    def convolution(self, layer: str) -> nn.Conv2d:
        """The convolution before a ReLU."""
        return cast(nn.Conv2d, self.convolutions[layer])

    def side(self, layer: str, size: int) -> int:
        """Side of a layer's feature map for square images of side `size`."""
        return size >> (int(layer[4]) - 1)

    def train(self, mode: bool = True) -> VGGBackbone:
        """Frozen: always in evaluation mode."""
        return super().train(False)

    def forward(
        self,
        x: Tensor,
        layers: Sequence[str] | None = None,
        resize: bool = True,
        channels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Of `layers`, or else of its own; the images as they are if not `resize`; of the deepest layer only
        these `channels`."""
        wanted = self.layers if layers is None else layers
        if resize and self.size is not None and x.shape[-1] != self.size:
            x = antialiased(x, self.size)
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x = ((x + 1) / 2 - self.mean) / self.deviation
        x = x.to(self.convolution("relu1_1").weight.dtype)
        if x.device.type in ("cuda", "cpu"):
            x = x.contiguous(memory_format=torch.channels_last)
        features = {}
        block = "1"
        for layer in self.convolutions:
            convolution = self.convolution(layer)
            if layer[4] != block:
                block = layer[4]
                x = self._pool(x, layer)
            x = relu(_convolve(convolution, x, channels if layer == self.deepest else None))
            if layer in wanted:
                features[layer] = x
                if len(features) == len(wanted):
                    break
        return features

    def _pool(self, x: Tensor, layer: str) -> Tensor:
        if x.shape[-1] < 2:
            raise PadError(f"setting 'layers': images are too small for {layer}; set 'backbone_scale' higher")
        if not self.blurred:
            return F.max_pool2d(x, 2)
        return blurred_max_pool(x)


def _convolve(convolution: nn.Conv2d, x: Tensor, channels: Tensor | None) -> Tensor:
    """All channels, or only these."""
    if channels is None:
        return convolution(x)
    assert convolution.bias is not None
    return F.conv2d(x, convolution.weight[channels], convolution.bias[channels], padding=1)


def load_backbone_weights(
    name: str, file: str | None = None, download: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each convolution in order. Raises PadError if they cannot be had, or had only by a
    download and `download` is False."""
    if file is not None:
        state = read_state(Path(file))
    elif name == "vgg16-st":
        state = read_state(_stlpips_file())
    else:
        state = _torchvision_state(name, download)
    weights = [v for k, v in state.items() if k.endswith(".weight") and v.dim() == 4 and v.shape[-1] == 3]
    biases = [state[k[: -len("weight")] + "bias"] for k, v in state.items()
              if k.endswith(".weight") and v.dim() == 4 and v.shape[-1] == 3]  # fmt: skip
    plan = _VGG19 if name == "vgg19" else _VGG16
    widths = [width for width, n in plan for _ in range(n)]
    shapes = [(b, a, 3, 3) for a, b in zip([3, *widths], widths, strict=False)]
    if [tuple(w.shape) for w in weights] != shapes:
        raise PadError(f"backbone {name}: {file or 'the weights'} does not hold the convolutions of {name}")
    return list(zip(weights, biases, strict=True))


def _stlpips_file() -> Path:
    # The package is found, not imported: importing it would run code of its own for nothing.
    spec = importlib.util.find_spec("stlpips_pytorch")
    if spec is None or not spec.submodule_search_locations:
        raise PadError("backbone vgg16-st: its weights are missing; pip install stlpips-pytorch")
    return Path(next(iter(spec.submodule_search_locations))) / "weights" / "vST0.0" / "vgg_shift_tolerant.pth"


def _torchvision_state(name: str, download: bool) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    weights = get_model_weights(name)["IMAGENET1K_V1"]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    if not download and not cached.is_file():
        raise PadError(
            f"backbone {name}: its weights are not on this machine, and a model does not download them by "
            "itself: allow it with --allow-downloads, or give a file with --backbone-weights"
        )
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        raise PadError(
            f"backbone {name}: cannot download its weights ({one_line(str(error))}); "
            "give a local copy with --set backbone_weights=FILE, or use --set backbone=vgg16-st"
        ) from None


def _fingerprint(state: Sequence[tuple[Tensor, Tensor]]) -> str:
    """A short digest of the weights: a model can tell if it meets the backbone that it was trained with."""
    digest = hashlib.sha256()
    for weight, bias in state:
        digest.update(weight[:, :, 1, 1].contiguous().float().numpy().tobytes())
        digest.update(bias.contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]
