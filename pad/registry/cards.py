"""The card of a zoo model: README.md with the hub's front matter, summary.json, and its picture.

Every number in it comes from the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from pad.detector import Detector
from pad.images.decode import batch_tensor
from pad.images.tiles import as_seen
from pad.judging.calibration import Calibration
from pad.judging.map_scale import scale_of
from pad.judging.metrics import METRICS
from pad.judging.summary import write_summary
from pad.registry.entries import Entry
from pad.store.files import atomic
from pad.store.model_folder import CARD, WEIGHTS

PICTURE = "card.png"
SIGNIFICANCE = 0.05  # how often chance alone may make the card speak of a shift
PICTURED = 4  # normal, and as many anomalous images in the picture
METRIC_NAMES = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "fpr_at_95_tpr": "FPR at 95 % TPR",
}


def write_card(entry: Entry, detector: Detector, summary: Mapping[str, Any], folder: Path) -> None:
    """Writes README.md and summary.json into the model folder."""
    write_summary(dict(summary), folder / "summary.json")
    environment = Environment(
        loader=PackageLoader("pad.showing"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"interval": _interval, "percent": _percent}
    text = environment.get_template("zoo_card.md.j2").render(
        entry=entry,
        front_matter=front_matter(entry, summary),
        config=detector.config,
        card=detector.card,
        has_generator=detector.generator is not None,
        quick_views=detector.quick.names if detector.quick else [],
        calibration=len(detector.calibration or ()),
        summary=summary,
        metrics=METRIC_NAMES,
        train_command=entry.request(Path("runs") / entry.short_name).command(),
        size=(folder / WEIGHTS).stat().st_size,
        parameters=parameters_of(detector),
        picture=PICTURE,
        limits=[*measured_limits(detector, summary), *entry.limits],
    )
    with atomic(folder / CARD) as file:
        file.write(text.encode())


def parameters_of(detector: Detector) -> int:
    """Numbers in its networks; the quick views have none."""
    generator = detector.generator
    return sum(p.numel() for p in generator.networks.parameters()) if generator else 0


def front_matter(entry: Entry, summary: Mapping[str, Any]) -> str:
    """The metadata of the card as the hub reads it, YAML without the lines of three dashes."""
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Anomaly detection",
            dataset_type=entry.data.partition(":")[0],
            dataset_name=entry.data,
            dataset_split="test",
            metric_type=metric,
            metric_name=METRIC_NAMES[metric],
            metric_value=round(summary[metric]["value"], 4),
        )
        for metric in METRICS
        if metric in summary
    ]
    data = ModelCardData(
        license=entry.licence,
        library_name="pad",
        pipeline_tag="image-classification",
        tags=["anomaly-detection", "novelty-detection", "one-class", "image"],
        model_name=f"pad {entry.name}",
        eval_results=results or None,
    )
    return data.to_yaml()


def measured_limits(detector: Detector, summary: Mapping[str, Any]) -> list[str]:
    """What the evaluation says the model is bad at, in sentences."""
    limits = []
    kinds = {name: of for name, of in summary.get("kinds", {}).items() if "roc_auc" in of}
    if len(kinds) > 1:
        worst = min(kinds, key=lambda kind: kinds[kind]["roc_auc"]["value"])
        of = kinds[worst]
        limits.append(
            f"It is weakest on '{worst}': ROC AUC {of['roc_auc']['value']:.3f}, and "
            f"{_percent(of['detection_rate'])} of them are flagged at a false-alarm rate of 5 %."
        )
    check = summary.get("false_alarm_check", {})
    broken = [
        f"{_percent(check[promised])} instead of at most {float(promised):.0%}"
        for promised in _too_many(check, detector.calibration, summary["counts"].get("normal", 0))
    ]
    if broken:
        limits.append(
            f"It raises more false alarms on the test images than promised ({'; '.join(broken)}): they are "
            "not quite like those that it was calibrated on."
        )
    config = detector.config
    limits.append(
        f"It sees {config.size}x{config.size} {'grey' if config.channels == 1 else 'colour'} pixels: "
        "what is smaller than a pixel there is lost."
    )
    return limits


def _too_many(
    check: Mapping[str, Mapping[str, float]], calibration: Calibration | None, images: int
) -> list[str]:
    """Of the rates that were checked on so many normal images, those that were exceeded by more than the
    draws of the test and of the calibration images explain.

    At most one time in twenty is there any such rate where nothing is different about the test images,
    however many rates are checked (Holm, "A simple sequentially rejective multiple test procedure", 1979).
    """
    if calibration is None or not images:
        return []
    chances = {
        rate: calibration.chance_of(round(found["value"] * images), images, float(rate))
        for rate, found in check.items()
    }
    rejected: list[str] = []
    for rate in sorted(chances, key=lambda rate: chances[rate]):
        if chances[rate] > SIGNIFICANCE / (len(chances) - len(rejected)):
            break
        rejected.append(rate)
    return [rate for rate in check if rate in rejected]


def draw_card(detector: Detector, folder: Path, samples: Sequence[str]) -> None:
    """The picture of the card, card.png: some samples, the nearest normal images and the anomaly maps.

    Args:
        folder: of the model.
        samples: paths of images inside it, normal ones first.
    """
    half = len(samples) // 2
    panels = [list(samples[:half][:PICTURED]), list(samples[half:][:PICTURED])]
    figure = Figure(figsize=(8.4, 1.25 * max(map(len, panels)) + 0.5), layout="constrained")
    scale = scale_of(detector.calibration)
    darkest, brightest = (scale.low, scale.high) if scale else (None, None)
    parts: Any = figure.subfigures(1, 2)
    for part, names, title in zip(parts, panels, ("normal", "anomalous"), strict=True):
        axes = part.subplots(len(names), 3, squeeze=False)
        paths = [folder / name for name in names]
        x = batch_tensor(paths, detector.config)
        examined = detector.examine(as_seen(paths, detector.config))
        part.suptitle(title, fontsize=10)
        for row, name in enumerate(names):
            pictures = [_picture(x[row].numpy()), _picture(examined.nearest[row].numpy())]
            for axis, picture in zip(axes[row], pictures, strict=False):
                axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes[row][2].imshow(examined.maps[row].numpy(), cmap="inferno", vmin=darkest, vmax=brightest)
            kind = Path(name).parent.name
            label = f"{examined.scores[row]:.3f}" + ("" if kind == "normal" else f"\n{kind}")
            axes[row][0].set_ylabel(label, fontsize=8)
        for axis, caption in zip(axes[0], ("image", "nearest normal", "map"), strict=True):
            axis.set_title(caption, fontsize=8)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
    with atomic(folder / PICTURE) as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})


def _picture(image: np.ndarray) -> np.ndarray:
    """(C, S, S) in [-1, 1] as matplotlib takes it, in [0, 1]."""
    picture = (image.clip(-1, 1) + 1) / 2
    return picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)


def _interval(of: Mapping[str, float]) -> str:
    return f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"


def _percent(of: Mapping[str, float]) -> str:
    return f"{100 * of['value']:.1f} %"
