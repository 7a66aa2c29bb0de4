"""What a lamp that ages sets off: normal images at other brightness, with and without `--tolerate`.

    python benchmarks/lighting.py --data-root DIR [--tasks dogs cats tiles tool fashion-mnist:9]
        [--images 300] [--anomalies 150] [--folds 3] [--steps 0] [--tolerate default none brightness=0.2]
        [--out lighting.json] [--markdown FILE]

Nothing but training images: those of the normal class in folds, each judged by a model that was fitted on the
others. They are judged as they are, and with all intensities 10 % and 20 % up (every other image) or down
(the rest), rounded and cut off at white as a camera does it. Anomalies are training images of another class,
as they are. `tool` is a spanner on plain ground under a steady lamp, drawn here, its anomalies have a
scratch; `tiles` has no anomalies among its training images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jobs import exit_status, use_share_of_processor
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from provenance import markdown, plain, provenance, stamp, write_json

import pad
from pad.detector import Detector
from pad.errors import PadError
from pad.images.imageset import ImageSet, Sample
from pad.images.named import DATASETS
from pad.images.resolve import resolve
from pad.judging.metrics import detection_metrics

FOLDERS = {
    "dogs": ("dogs-cats/train/dog", "dogs-cats/train/cat"),
    "cats": ("dogs-cats/train/cat", "dogs-cats/train/dog"),
    "tiles": ("magnetic-tiles/train/good", None),
}
TOOL = "tool"
DEFAULT = "default"
LIGHTS = {"as they are": 0.0, "±10 %": 0.1, "±20 %": 0.2}
RATES = (0.05, 0.1)
SIDE = 256  # pixels of a drawn picture


class Task(NamedTuple):
    """Normal images, in a random order, and anomalies, which may be none."""

    name: str
    normal: ImageSet
    anomalous: ImageSet


def folder_or_dataset_task(name: str, data_root: Path | None) -> Task:
    """One of FOLDERS, or a named dataset, of which the other classes are the anomalies."""
    if name in FOLDERS:
        normal, other = (
            folder and resolve([str((data_root or Path()) / folder)], "train") for folder in FOLDERS[name]
        )
        return Task(name, normal, other or normal.subset([]))
    normal = resolve([name], "train", data_root)
    dataset = DATASETS[name.partition(":")[0]]
    kind = normal.samples[0].kind
    others = ",".join(other for other in dataset.classes if other != kind)
    return Task(name, normal, resolve([f"{name.partition(':')[0]}:{others}"], "train", data_root))


def tool_task(images: int, anomalies: int) -> Task:
    """Drawn pictures."""
    return Task(TOOL, _drawn(images, 0, False), _drawn(anomalies, 1, True))


def _drawn(count: int, seed: int, scratched: bool) -> ImageSet:
    rng = np.random.default_rng(seed)
    names = [f"{TOOL} {seed}-{i}" for i in range(count)]
    return ImageSet([Sample(n) for n in names], [_tool(rng, scratched) for _ in names], names, TOOL)


def _tool(rng: np.random.Generator, scratched: bool) -> NDArray[np.uint8]:
    """A grey spanner on light ground, (SIDE, SIDE, 3): small turns and shifts, and the noise of a camera."""
    side = 2 * SIDE  # drawn at twice its size, for smooth edges
    ground, steel = (200,) * 3, (90,) * 3

    def at(*shares: float) -> list[float]:
        return [share * side for share in shares]

    image = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle(at(0.2, 0.45, 0.8, 0.55), 0.03 * side, fill=steel)
    for centre in (0.22, 0.8):
        draw.ellipse(at(centre - 0.12, 0.38, centre + 0.12, 0.62), fill=steel)
    draw.rectangle(at(0.08, 0.46, 0.22, 0.54), fill=ground)
    draw.ellipse(at(0.74, 0.44, 0.86, 0.56), fill=ground)
    if scratched:
        x, y = rng.uniform(0.3, 0.65), rng.uniform(0.46, 0.53)
        draw.line(at(x, y, x + 0.08, y + rng.uniform(-0.02, 0.02)), fill=(140,) * 3, width=4)
    shift = (rng.normal(0, 0.006 * side), rng.normal(0, 0.006 * side))
    image = image.rotate(rng.normal(0, 1.5), Image.Resampling.BICUBIC, translate=shift, fillcolor=ground)
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    return _bytes(pixels + rng.normal(0, 3, pixels.shape))


def _bytes(pixels: NDArray[np.float64]) -> NDArray[np.uint8]:
    return pixels.round().clip(0, 255).astype(np.uint8)


def in_light(images: ImageSet, change: float) -> ImageSet:
    """All intensities of every other image up by a share, of the others down."""
    if not change:
        return images
    contents = []
    for index in range(len(images)):
        picture = images.open(index)
        pixels = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"), dtype=np.float64)
        contents.append(_bytes(pixels * (1 + change * (1 if index % 2 else -1))))
    return ImageSet(images.samples, contents, images.keys, images.source)


def measure(task: Task, tolerate: str, folds: int, steps: int, seed: int, device: str) -> dict[str, Any]:
    """Shares flagged and ROC AUC of a setting, over all folds."""
    settings: dict[str, Any] = {"steps": steps, "seed": seed}
    if tolerate != DEFAULT:
        settings["tolerate"] = tolerate
    flagged: dict[str, dict[float, list[bool]]] = {light: {rate: [] for rate in RATES} for light in LIGHTS}
    areas: dict[str, list[float]] = {light: [] for light in LIGHTS}
    for fold in range(folds):
        others = [i for i in range(len(task.normal)) if i % folds != fold]
        detector = pad.fit(task.normal.subset(others), device=device, **settings)
        held_out = task.normal.subset(range(fold, len(task.normal), folds))
        anomalies = detector.score(task.anomalous) if len(task.anomalous) else None
        for light, change in LIGHTS.items():
            scores = detector.score(in_light(held_out, change))
            for rate in RATES:
                flagged[light][rate] += _calibration(detector).verdicts(scores, rate).tolist()
            if anomalies is not None:
                areas[light].append(detection_metrics(scores, anomalies)["roc_auc"]["value"])
    return {
        "task": task.name,
        "tolerate": tolerate,
        "tolerated": dict(detector.config.tolerate),
        "normal_images": len(task.normal),
        "anomalies": len(task.anomalous),
        "folds": folds,
        "steps": steps,
        "seed": seed,
        "flagged": {
            light: {f"{rate:g}": round(float(np.mean(found)), 4) for rate, found in of_rate.items()}
            for light, of_rate in flagged.items()
        },
        "roc_auc": {light: round(float(np.mean(area)), 4) for light, area in areas.items() if area},
        **stamp(device),
    }


def _calibration(detector: Detector) -> Any:
    assert detector.calibration is not None
    return detector.calibration


def rows_of(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    header = ["images, tolerated", *(f"flagged, {light}" for light in LIGHTS), "ROC AUC", "ROC AUC, ±20 %"]
    rows = []
    for result in results:
        cells = [" / ".join(f"{100 * share:.1f}" for share in flagged.values()) + " %"
                 for flagged in result["flagged"].values()]  # fmt: skip
        areas = [result["roc_auc"].get(light) for light in ("as they are", "±20 %")]
        cells += ["–" if area is None else f"{area:.3f}" for area in areas]
        rows.append([f"{result['task']}, {result['tolerate']}", *cells])
    return header, rows


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    return markdown(content, *rows_of(content["results"]), "Flagged: at 5 % / at 10 %.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where the unpacked datasets lie")
    parser.add_argument("--tasks", nargs="+", default=[*FOLDERS, TOOL, "fashion-mnist:9"], metavar="TASK")
    parser.add_argument("--images", type=int, default=300, help="normal images of a task")
    parser.add_argument("--anomalies", type=int, default=150, help="of a task")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="of the generator; 0: the quick views alone")
    parser.add_argument("--tolerate", nargs="+", default=[DEFAULT, "none", "brightness=0.2"], metavar="WHAT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("lighting.json"), metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    if arguments.folds < 2:
        raise PadError("--folds takes at least 2: an image is judged by a model that did not see it")
    use_share_of_processor()
    origin, results = provenance(arguments.device), []
    for name in arguments.tasks:
        task = _task(name, arguments)
        for tolerate in arguments.tolerate:
            found = measure(
                task, tolerate, arguments.folds, arguments.steps, arguments.seed, arguments.device
            )
            results.append(found)
            write_json(arguments.out, {**origin, "results": results})
            print(f"{name}, {tolerate}: {found['flagged']} {found['roc_auc']}", file=sys.stderr, flush=True)
    header, rows = rows_of(results)
    print(plain(header, rows))
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(page({**origin, "results": results}), encoding="utf-8")


def _task(name: str, arguments: argparse.Namespace) -> Task:
    if name == TOOL:
        return tool_task(arguments.images, arguments.anomalies)
    task = folder_or_dataset_task(name, arguments.data_root)
    rng = np.random.default_rng(arguments.seed)
    normal, anomalous = (
        images.subset(rng.permutation(len(images))[:most].tolist())
        for images, most in ((task.normal, arguments.images), (task.anomalous, arguments.anomalies))
    )
    return Task(name, normal, anomalous)


if __name__ == "__main__":
    sys.exit(exit_status(main))
