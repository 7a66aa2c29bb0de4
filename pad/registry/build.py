"""`pad zoo build`: a model of the zoo from its recipe, trained, measured, and written with its card.

zoo/NAME/   the model folder, and beside its four files
    card.png      normal and anomalous test images, their nearest normal images, and the maps
    samples/      a few test images, in sub-folders `normal` and by kind of anomaly: a labelled folder
    summary.json  the evaluation that the card's numbers are from
    verify.json   the scores of the samples, for `pad zoo verify`
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pad.config import FPR, zoo_folder
from pad.detector import Detector
from pad.errors import PadError
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.images.stream import stream
from pad.judging.metrics import rate
from pad.judging.summary import summarize
from pad.learning.images import split_images
from pad.learning.plan import carry_out, planned
from pad.learning.run import finished_detector
from pad.provenance import hardware
from pad.recipes import build_config
from pad.registry.cards import draw_card, write_card
from pad.registry.entries import Entry
from pad.registry.verify import write_record
from pad.scoring import score_rows
from pad.store.files import CannotWrite, replace_folder
from pad.store.index import add_entry

SAMPLES = 6  # normal ones, and as many anomalous ones
RATES = (0.01, 0.05, 0.1, 0.2)  # false-alarm rates that are checked


def build_model(
    entry: Entry,
    runs: Path,
    root: Path | None = None,
    data_root: str | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Path:
    """Trains one model (or takes it from a finished run), measures it and writes it into the zoo.

    Args:
        entry: what it is made of.
        runs: where run folders lie; that of this model has the last part of its name.
        root: the zoo's folder; by default the installed one.
        data_root: where named datasets lie.
        device: auto, cpu, cuda or mps.
        progress: show progress bars (on a terminal).

    Returns its folder. Raises PadError if the data is not there, or the run is of other images or settings.
    """
    root = root or zoo_folder()
    detector = trained(entry, runs / entry.short_name, data_root, device, progress)
    images = _images(entry, "evaluate", data_root)
    summary = measure(detector, images)
    summary["model"] = f"zoo:{entry.name}"
    target = root / entry.name
    with tempfile.TemporaryDirectory(prefix=".building-", dir=_made(root)) as temporary:
        folder = Path(temporary) / "model"
        detector.save(folder)
        samples = write_samples(images, folder)
        draw_card(detector, folder, samples)
        write_card(entry, detector, summary, folder)
        _record(folder, samples)
        _replace(folder, target)
    results = {"title": entry.title, "dataset": entry.data, "licence": entry.licence}
    add_entry(
        entry.name,
        target,
        {**results, "images": detector.card["data"]["images"], "roc_auc": summary.get("roc_auc")},
        root,
    )
    return target


# Training -----------------------------------------------------------------------------------------


def trained(entry: Entry, run: Path, data_root: str | None, device: str, progress: bool = False) -> Detector:
    """The model of the run folder `run`, trained as train.py does it if it is not there or not finished.

    Raises PadError if the run was made from other images or with other settings than the entry says.
    """
    images = _images(entry, "train", data_root)
    request = entry.request(run, data_root, device)
    config = build_config(request.config, request.settings(), images)
    training, calibration = split_images(images, config)
    if (detector := finished_detector(run, config, training, calibration, device)) is None:
        with planned(dataclasses.replace(request, resume=run.is_dir()), progress) as plan:
            carry_out(plan, progress, stoppable=True)
        detector = Detector.load(run, device)
    return detector


def _images(entry: Entry, purpose: Any, data_root: str | None) -> ImageSet:
    try:
        return resolve(entry.data, purpose, data_root)
    except PadError as error:
        if entry.prepare is None:
            raise
        raise PadError(f"{error}; make it with: {entry.prepare}") from None


# Measuring ----------------------------------------------------------------------------------------


def measure(detector: Detector, images: ImageSet) -> dict[str, Any]:
    """What `summary.json` holds for all of `images` at a false-alarm rate of 5 %, and besides

    - `false_alarm_check`: for each promised rate the rate on the normal test images, with its interval;
    - `speed`: `images_per_second` in batches of 64 that are in memory, best of five, and the `hardware`.
    """
    calibration = detector.calibration
    assert calibration is not None
    rows = list(score_rows(detector, images, FPR, 64))
    summary = summarize(rows, calibration, FPR)
    normal = [row.score for row in rows if row.anomalous is False and row.score is not None]
    if normal:
        p_values = calibration.p_values(normal)
        summary["false_alarm_check"] = {
            f"{fpr:g}": rate(int((p_values <= fpr).sum()), len(normal)) for fpr in RATES
        }
    speed = _images_per_second(detector, images)
    summary["speed"] = {"images_per_second": round(speed, 1), "hardware": hardware(detector.device)}
    return summary


def _images_per_second(detector: Detector, images: ImageSet) -> float:
    batch = next(stream(images, detector.config, 64)).tensor
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        detector.score_batch(batch)
        seconds.append(time.perf_counter() - start)
    return len(batch) / min(seconds)


# Samples ------------------------------------------------------------------------------------------


def write_samples(images: ImageSet, folder: Path, seed: int = 0) -> list[str]:
    """Copies some test images as PNG, drawn at random: six normal ones, and six anomalous ones of as many
    kinds as there are.

    Returns their paths inside `folder`, normal ones first.
    """
    names = []
    for index in _draw(images, seed):
        sample = images.samples[index]
        kind = (sample.kind or "anomaly") if sample.anomalous else "normal"
        name = f"samples/{kind}/{Path(sample.name).stem}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        images.open(index).save(folder / name)
        names.append(name)
    return names


def _draw(images: ImageSet, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images)).tolist()
    normal = [i for i in order if not images.samples[i].anomalous][:SAMPLES]
    seen: dict[str | None, int] = {}
    rounds = []  # how many of its kind came before: first one of every kind, then a second one
    for i in [i for i in order if images.samples[i].anomalous]:
        kind = images.samples[i].kind
        seen[kind] = seen.get(kind, 0) + 1
        rounds.append((seen[kind], i))
    rounds.sort(key=lambda pair: pair[0])
    return normal + [i for _, i in rounds[:SAMPLES]]


def _record(folder: Path, samples: Sequence[str]) -> None:
    """verify.json, from the model as it is read back on a CPU."""
    scores = Detector.load(folder, "cpu").score([folder / name for name in samples])
    write_record(folder, {name: float(f"{s:.6g}") for name, s in zip(samples, scores.tolist(), strict=True)})


def _made(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return root


def _replace(folder: Path, target: Path) -> None:
    try:
        replace_folder(folder, target)
    except OSError as error:
        raise CannotWrite(target, error) from None
