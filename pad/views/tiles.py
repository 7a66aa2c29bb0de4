"""A picture in tiles, looked at tile by tile: in each view it is as unusual as its most unusual tile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pad.images.canvas import Canvas
from pad.images.tiles import Tiled
from pad.views.examined import Examined


def largest(picture: Tiled, score: Callable[[Tensor], Tensor], at_once: int) -> Tensor:
    """The largest score of a tile in each view, (v,). `score` takes tiles (n, channels, s, s), at most
    `at_once`, and gives (n, v)."""
    return torch.cat([score(tiles) for _, tiles in picture.batches(at_once)]).amax(0)


def stitched(
    picture: Tiled,
    examine: Callable[[Tensor], Examined],
    fuse: Callable[[Tensor], Tensor],
    at_once: int,
    channels: int,
) -> Examined:
    """What `examine` says of each tile as one Examined of a single picture: the maps and the nearest normal
    tiles laid side by side, the largest score in each view, the latents' mean.

    fuse: (1,) of (1, v). channels: of the nearest normal tiles.
    """
    maps, nearest = Canvas(1, picture.region), Canvas(channels, picture.region)
    views, latents = [], []
    for boxes, tiles in picture.batches(at_once):
        seen = examine(tiles)
        views.append(seen.views)
        latents.append(seen.latents)
        for box, anomaly_map, normal in zip(boxes, seen.maps, seen.nearest, strict=True):
            maps.add(box, anomaly_map[None])
            nearest.add(box, normal)
    most = torch.cat(views).amax(0, keepdim=True)
    placed = torch.cat(latents).mean(0, keepdim=True)
    return Examined(fuse(most), nearest.mean()[None], maps.mean(), placed, most)
