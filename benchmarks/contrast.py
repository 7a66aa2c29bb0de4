"""How far a change of contrast or brightness moves each similarity, as a share of a change of content.

    python benchmarks/contrast.py [FOLDER ...] [--out contrast.json] [--markdown FILE] [--size 32]

FOLDERs (default: those of the tests) each hold images of one kind. For every image x and every change T the
number is the mean over the images of d(x, T(x)), divided by the mean distance d(x, y) to the other images y
of the folder. A similarity that looks at content has small numbers. L2 is the root of the mean square. SSIM
(as 1 - SSIM) and LPIPS are squares at heart: a change half as large counts a quarter, which alone makes their
numbers smaller, so their roots stand beside them and are what compares with rho and L1. mu and sigma of rho
come from the images of the folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import exit_status
from protocol import tensors
from provenance import markdown, plain, provenance, shown, write_json
from torch import Tensor

from pad.config import Config
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.recipes import build_config
from pad.similarity.build import build_similarity
from pad.similarity.pixel import L1, L2, LPIPS, SSIM
from pad.similarity.relative import RelativePerceptualL1

Distance = Callable[[Tensor, Tensor], Tensor]
DATA = Path(__file__).parent.parent / "tests" / "data"
FOLDERS = (DATA / "fashion" / "train", DATA / "photographs")
FACTORS = (0.5, 0.7, 0.85)
OFFSETS = (0.1, 0.2, -0.1, -0.2)  # of intensities in [0, 1]
OTHERS = 8  # images that each is compared with for the change of content


def about_black(x: Tensor, factor: float) -> Tensor:
    """Intensities times `factor`: less light."""
    return (x + 1) * factor - 1


def about_mean(x: Tensor, factor: float) -> Tensor:
    """Differences from the image's own mean times `factor`: less contrast."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + factor * (x - mean)


def brighter(x: Tensor, offset: float) -> Tensor:
    """Intensities in [0, 1] plus `offset`, cut off at black and white."""
    return (x + 2 * offset).clamp(-1, 1)


def changes() -> dict[str, Callable[[Tensor], Tensor]]:
    """The table's rows."""
    rows: dict[str, Callable[[Tensor], Tensor]] = {}
    for factor in FACTORS:
        rows[f"intensities × {factor:g}"] = partial(about_black, factor=factor)
    for factor in FACTORS:
        rows[f"contrast about the mean × {factor:g}"] = partial(about_mean, factor=factor)
    for offset in OFFSETS:
        rows[f"brightness {offset:+g}"] = partial(brighter, offset=offset)
    return rows


def distances(images: Tensor, config: Config) -> dict[str, Distance]:
    """The table's columns."""
    rho = build_similarity(config)
    assert isinstance(rho, RelativePerceptualL1)
    rho.fit(rho.features(batch) for batch in images.split(64))
    l2, ssim, lpips = L2(), SSIM(), LPIPS(config.backbone)
    return {
        f"ρ ({', '.join(config.layers)})": rho,
        "L1": L1(),
        "L2": lambda x, y: l2(x, y).sqrt(),
        "SSIM": ssim,
        "√SSIM": lambda x, y: ssim(x, y).clamp_min(0).sqrt(),
        "LPIPS": lpips,
        "√LPIPS": lambda x, y: lpips(x, y).clamp_min(0).sqrt(),
    }


@torch.no_grad()
def measure(images: Tensor, config: Config) -> dict[str, dict[str, float]]:
    """`{change: {similarity: share of a change of content}}` for images (n, c, h, w) in [-1, 1], n >= 2."""
    columns, table = distances(images, config), {}
    shifts = range(1, min(OTHERS, len(images) - 1) + 1)
    content = {
        name: float(np.mean([_mean(d, images, images.roll(shift, 0)) for shift in shifts]))
        for name, d in columns.items()
    }
    for change, apply in changes().items():
        changed = apply(images)
        table[change] = {name: _mean(d, images, changed) / content[name] for name, d in columns.items()}
    return table


def _mean(distance: Distance, x: Tensor, y: Tensor) -> float:
    parts = [distance(a, b) for a, b in zip(x.split(64), y.split(64), strict=True)]
    return float(torch.cat(parts).mean())


SQUARES = ("SSIM", "LPIPS")  # not compared as they are


def rows_of(table: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; the smallest of each row, squares left out, in bold."""
    names = list(next(iter(table.values())))
    rows = []
    for change, values in table.items():
        best = min(round(value, 2) for name, value in values.items() if name not in SQUARES)
        rows.append([change])
        for name, value in values.items():
            bold = name not in SQUARES and round(value, 2) == best
            rows[-1].append(f"**{value:.2f}**" if bold else f"{value:.2f}")
    return ["change", *names], rows


def verdict(table: dict[str, dict[str, float]]) -> str:
    """In how many changes ρ moves less than each other one."""
    ours, *others = next(iter(table.values()))
    wins = {name: sum(values[ours] < values[name] for values in table.values()) for name in others}
    listed = ", ".join(f"{name} in {count}" for name, count in wins.items())
    return f"Of {len(table)} changes, ρ moves less than {listed}."


def page(content: dict[str, Any]) -> str:
    """The results in Markdown, a table for each folder."""
    tables = []
    for found in content["results"]:
        about = f"{found['images']} images of {found['folder']} at {found['size']}×{found['size']}."
        text = markdown(content, *rows_of(found["shares"]), about)
        tables.append(f"{text}\n{verdict(found['shares'])}\n")
    return "\n".join(tables)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--size", type=int, default=32, help="side of the images, in pixels")
    parser.add_argument("--limit", type=int, default=200, help="images of a folder")
    parser.add_argument("--layers", help="of ρ, separated by commas (default: the default recipe's)")
    parser.add_argument("--out", type=Path, default=Path("contrast.json"), metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    origin = provenance()
    found: list[dict[str, Any]] = []
    for folder in arguments.folders or FOLDERS:
        images = resolve([str(folder)], "evaluate")
        images = images.subset(range(min(arguments.limit, len(images))))
        if len(images) < 2:
            raise PadError(f"{folder}: takes at least two images, to compare their content")
        settings = {"size": arguments.size, "precision": "float32"}
        if arguments.layers:
            settings["layers"] = arguments.layers
        config = build_config(None, settings, images)
        pixels = torch.from_numpy(tensors(images, config.size, config.channels))
        table = measure(pixels, config)
        header, rows = rows_of(table)
        name = shown(folder)
        print(f"{len(images)} images of {name}")
        print(plain(header, [[c.strip("*") for c in row] for row in rows]), verdict(table), "", sep="\n")
        found.append({"folder": name, "images": len(images), "size": config.size, "shares": table})
    write_json(arguments.out, {**origin, "results": found})
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(page({**origin, "results": found}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_status(main))
