"""A generator that has learnt a new normal, as the state keeps it: one file, which appears whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pad.errors import PadError
from pad.networks import build_networks
from pad.store.files import atomic
from pad.views.generator import GeneratorView

NETWORKS = ("encoder", "generator")


@dataclass(frozen=True)
class Learnt:
    """What a generator has learnt of n accepted pictures.

    view: encoder and generator that were fine-tuned on all of them. held_out: (n,) float32, the score of each
    by networks that were fine-tuned without it. explained: the share of the differences between them that
    those explain, in [0, 1] (`GeneratorView.explained`).
    """

    view: GeneratorView
    held_out: Tensor
    explained: float

    def write(self, path: Path, events: Sequence[int]) -> None:
        """events: of the accepted pictures, those among them that are not alike too. Raises CannotWrite."""
        named = {f"{name}.{key}": value for name in NETWORKS
                 for key, value in self.view.networks[name].state_dict().items()}  # fmt: skip
        told = {"events": json.dumps(list(events)), "explained": repr(self.explained)}
        content = {key: value.cpu().contiguous() for key, value in named.items()}
        with atomic(path) as file:
            file.write(save({**content, "held_out": self.held_out}, told))


def read(path: Path, events: Sequence[int], like: GeneratorView) -> Learnt:
    """What `Learnt.write` wrote for these events and a generator of the recipe of `like`. Raises PadError for
    anything else."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            named = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it is no mapping
        if json.loads(told["events"]) != list(events):
            raise PadError(f"{path} is of other pictures")
        held_out, explained = named.pop("held_out"), float(told["explained"])
        with torch.device("meta"):
            networks = build_networks(like.config)
        networks = nn.ModuleDict({name: networks[name] for name in NETWORKS})
        networks.load_state_dict(named, assign=True)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise PadError(f"{path} cannot be read ({type(error).__name__})") from None
    return Learnt(GeneratorView(like.config, networks, like.similarity, like.device), held_out, explained)
