"""Does an exported graph say what its model says, and how much quicker is it?

    python benchmarks/export.py --models zoo:fashion-mnist/bag runs/dogs \\
        --data fashion-mnist:8 photographs/ --out benchmarks/results/export.json

Of every DATA equally many pictures are taken, `--images` in all, and every other one is resized to a random
size. Each is scored by `pad` in single precision and by ONNX Runtime; then one picture, and 32 at a time, are
timed on one thread, in single precision and in the number format that `pad evaluate` takes on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from provenance import provenance, shown

import pad
from pad.commands.parser import main as command
from pad.exported import Exported
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.store.files import atomic

BATCH = 32


def pictures(sets: list[ImageSet], count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3), one of each set in turn; every other one at a random size from 16 to 640 pixels."""
    random = np.random.default_rng(seed)
    for i in range(count):
        images = sets[i % len(sets)]
        picture = images.open((i // len(sets)) * len(images) // -(-count // len(sets))).convert("RGB")
        if i // len(sets) % 2:
            width, height = (int(2 ** random.uniform(4, 9.3)) for _ in range(2))
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        yield np.array(picture)


def parity(detector: pad.Detector, graph: Exported, images: Iterator[np.ndarray]) -> dict[str, Any]:
    """How far scores differ, and how many p-values are equal."""
    calibration, fused = detector.calibrated(), len(detector.views) > 1
    differences, equal, sizes = [], 0, set()
    for pixels in images:
        said = graph.run(pixels[None])
        expected = float(detector.score(pixels[None])[0])
        # The fused score is a logarithm, whose unit is 1.
        scale = max(abs(expected), 1.0) if fused else abs(expected)
        differences.append(abs(float(said["score"][0]) - expected) / scale)
        equal += float(said["p_value"][0]) == float(calibration.p_values(expected))
        sizes.add(pixels.shape[:2])
    return {
        "images": len(differences),
        "sizes": len(sizes),
        "largest_difference": float(np.max(differences)),
        "median_difference": float(np.median(differences)),
        "above_1e-4": int((np.array(differences) > 1e-4).sum()),
        "equal_p_values": equal,
        "calibration_images": len(calibration),
    }


def timing(score: Callable[[np.ndarray], Any], pixels: np.ndarray, repeats: int) -> dict[str, float]:
    """Median milliseconds of one picture, and pictures a second at BATCH."""

    def seconds(images: np.ndarray, times: int) -> float:
        for _ in range(2):
            score(images)
        measured = []
        for _ in range(times):
            begun = time.perf_counter()
            score(images)
            measured.append(time.perf_counter() - begun)
        return statistics.median(measured)

    many = np.repeat(pixels[None], BATCH, 0)
    return {
        "milliseconds": round(1000 * seconds(pixels[None], repeats), 2),
        "images_per_second": round(BATCH / seconds(many, max(3, repeats // 5)), 1),
    }


def measure(model: str, sets: list[ImageSet], args: argparse.Namespace, place: Path) -> dict[str, Any]:
    file = place / "graph.onnx"
    if status := command(["export", model, "--out", str(file)]):
        raise SystemExit(status)
    graph = Exported(file)
    single = pad.load(model, device="cpu", precision="float32")
    usual = pad.load(model, device="cpu")
    result: dict[str, Any] = {
        "model": model if model.startswith("zoo:") else shown(Path(model)),
        "views": list(single.views),
        "megabytes": round(file.stat().st_size / 1e6, 1),
        "parity": parity(single, graph, pictures(sets, args.images)),
    }
    side = single.config.input_side
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, single.config.channels), np.uint8)
    result["timed_at"] = side
    result["onnx"] = timing(graph.run, pixels, args.repeats)
    result["onnx_explained"] = timing(lambda x: graph.run(x, explain=True), pixels, args.repeats)
    result["pad_float32"] = timing(single.score, pixels, args.repeats)
    result["pad"] = {**timing(usual.score, pixels, args.repeats), "precision": str(usual.dtype)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--data-root")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=20, help="of one picture")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--markdown", type=Path, help="also write the results as a page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of ONNX Runtime (pad/exported.py)
    sets = [resolve([data], "evaluate", args.data_root) for data in args.data]
    with tempfile.TemporaryDirectory() as place:
        models = [measure(model, sets, args, Path(place)) for model in args.models]
    with atomic(args.out) as file:
        runtime = {"onnxruntime": onnxruntime.__version__}
        content = {**provenance("cpu"), "runtime": runtime, "batch": BATCH, "threads": 1, "models": models}
        file.write((json.dumps(content, indent=2) + "\n").encode())
    if args.markdown:
        with atomic(args.markdown) as file:
            file.write(page(content).encode())


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    versions = content["versions"]
    commit, torch_version = versions.get("commit", "?"), versions["torch"]
    lines = [
        f"`{content['command']}`  ",
        f"commit {commit}, torch {torch_version}, ONNX Runtime {content['runtime']['onnxruntime']}, "
        f"{content['hardware']}, one thread.",
        "",
        "Against `pad` in single precision, on pictures of many sizes; differences of scores are shares of "
        "the score (of a fused one, which is a logarithm, of 1 where it is less).",
        "",
        "| model | views | MB | pictures (sizes) | p-values equal | largest difference | median "
        "| above 1e-4 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in content["models"]:
        of = entry["parity"]
        lines.append(
            f"| {entry['model']} | {', '.join(entry['views'])} | {entry['megabytes']} | {of['images']:,} "
            f"({of['sizes']}) | {of['equal_p_values']:,} | {of['largest_difference']:.1e} | "
            f"{of['median_difference']:.1e} | {of['above_1e-4']} |"
        )
    lines += [
        "",
        "| one picture in ms; pictures/s at 32 | pixels | graph | with map and nearest normal "
        "| `pad`, float32 | `pad`, as it computes here |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for entry in content["models"]:
        cells = [
            f"{entry[name]['milliseconds']:.1f}; {entry[name]['images_per_second']:.0f}"
            for name in ("onnx", "onnx_explained", "pad_float32", "pad")
        ]
        lines.append(f"| {entry['model']} | {entry['timed_at']} | {' | '.join(cells)} |")
    if note := content.get("note"):
        lines += ["", note]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
