"""Does an exported graph say what its model says, and how much quicker is it?

    python benchmarks/export.py --models zoo:fashion-mnist/bag runs/dogs \\
        --data fashion-mnist:8 photographs/ --out benchmarks/results/export.json

Of every DATA equally many pictures are taken, `--images` in all, and every other one is resized to a random
size. Each is scored by `pad` in single precision and by ONNX Runtime; then one picture, and 32 at a time, are
timed on one thread: by ONNX Runtime, with `--int8` also of int8; by `torch.compile`, which may fail, and is
left after `--compile-seconds`; and by `pad` in single precision and in the number format that it takes on
this machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
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
from pad.config import FPR
from pad.errors import one_line
from pad.export.graph import Graph
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


def compiled(model: str, pixels: np.ndarray, repeats: int, limit: float) -> dict[str, Any]:
    """`timing` of the same graph by `torch.compile`, in a process of its own that has `limit` seconds; the
    reason under `failed` where that comes to nothing."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_compile, args=(sender, model, pixels, repeats), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(limit):
            return receiver.recv()
        return {"failed": f"not done after {limit:.0f} seconds"}
    except EOFError:
        process.join()
        return {"failed": f"ended with status {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _compile(sender: Any, model: str, pixels: np.ndarray, repeats: int) -> None:
    torch.set_num_threads(1)
    try:
        detector = pad.load(model, device="cpu", precision="float32")
        graph, fpr = Graph(detector).eval(), torch.tensor(FPR, dtype=torch.float64)

        def judge(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            judged = graph.judged(images, fpr)  # what is not returned is not computed
            return judged.score, judged.p_value

        fast = torch.compile(judge, dynamic=False)  # for each size of batch by itself

        def score(images: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return fast(torch.from_numpy(images))[0].numpy()

        begun = time.perf_counter()
        many = np.repeat(pixels[None], BATCH, 0)
        first = [score(images) for images in (pixels[None], many)]
        seconds = time.perf_counter() - begun
        expected = detector.score(pixels[None])
        difference = float(np.abs(first[0] - expected).max() / max(1e-12, np.abs(expected).max()))
        sender.send({**timing(score, pixels, repeats), "compiling_seconds": round(seconds, 1),
                     "difference": difference})  # fmt: skip
    except Exception as error:
        sender.send({"failed": one_line(f"{type(error).__name__}: {error}")[:300]})


def in_int8(model: str, pixels: np.ndarray, repeats: int, place: Path) -> dict[str, Any]:
    """`timing` of the graph in int8, with its size and its loss (pad/export/int8.py)."""
    file = place / "int8.onnx"
    if status := command(["export", model, "--out", str(file), "--int8"]):
        return {"failed": f"pad export --int8 ended with status {status}"}
    graph = Exported(file)
    megabytes = round(file.stat().st_size / 1e6, 1)
    return {**timing(graph.run, pixels, repeats), "megabytes": megabytes, "loss": graph.card["int8"]}


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
    if args.int8:
        result["onnx_int8"] = in_int8(model, pixels, args.repeats, place)
    result["compiled"] = compiled(model, pixels, args.repeats, args.compile_seconds)
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
    parser.add_argument("--int8", action="store_true", help="export and time graphs of int8 as well")
    parser.add_argument("--compile-seconds", type=float, default=600, help="for torch.compile, of each model")
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


TIMED = {
    "onnx": "graph",
    "onnx_explained": "with map and nearest normal",
    "onnx_int8": "graph of int8",
    "compiled": "`torch.compile`, float32",
    "pad_float32": "`pad`, float32",
    "pad": "`pad`, as it computes here",
}


def _timed(entry: dict[str, Any]) -> str:
    if "milliseconds" not in entry:
        return "–"
    return f"{entry['milliseconds']:.1f}; {entry['images_per_second']:.0f}"


def _of_int8(models: list[dict[str, Any]]) -> list[str]:
    """What int8 costs."""
    rows = []
    for entry in models:
        if loss := entry.get("onnx_int8", {}).get("loss"):
            rows.append(
                f"| {entry['model']} | {entry['onnx_int8']['megabytes']} | {loss['pictures']} | "
                f"{loss['largest_change_of_p_value']:.2f} | {loss['verdicts_changed']:.1%} | "
                f"{loss['false_alarms']:.1%} | {loss['false_alarms_before']:.1%} |"
            )
    head = [
        "",
        "| int8, on pictures that the model keeps | MB | pictures | largest change of a p-value "
        "| verdicts that change at 5 % | false alarms there | before |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    return [*head, *rows] if rows else []


def _of_compiling(models: list[dict[str, Any]]) -> list[str]:
    """How long `torch.compile` took, and what failed."""
    took = [
        f"{entry['model']} {entry['compiled']['compiling_seconds']:.0f} s"
        for entry in models
        if "compiling_seconds" in entry.get("compiled", {})
    ]
    lines = ["", f"Compiling for both sizes took: {', '.join(took)}."] if took else []
    for entry in models:
        for key in ("onnx_int8", "compiled"):
            if reason := entry.get(key, {}).get("failed"):
                lines += ["", f"{entry['model']}, {TIMED[key]}: {reason}."]
    return lines


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
    # Of a result of an earlier version, what it measured.
    timed = {key: title for key, title in TIMED.items() if any(key in entry for entry in content["models"])}
    lines += [
        "",
        f"| one picture in ms; pictures/s at {content['batch']} | pixels | {' | '.join(timed.values())} |",
        f"|---|---:|{'---:|' * len(timed)}",
    ]
    for entry in content["models"]:
        cells = [_timed(entry.get(name, {})) for name in timed]
        lines.append(f"| {entry['model']} | {entry['timed_at']} | {' | '.join(cells)} |")
    lines += _of_int8(content["models"]) + _of_compiling(content["models"])
    if note := content.get("note"):
        lines += ["", note]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
