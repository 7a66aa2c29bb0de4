"""What is trained on and what is judged: the tasks of a benchmark, and one run of `pad` on one of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pad.config import BATCH_SIZE, Config, to_mapping
from pad.devices import pick_device
from pad.errors import PadError
from pad.images.imageset import ImageSet
from pad.images.named import DATASETS
from pad.images.resolve import resolve
from pad.images.stream import load_all
from pad.judging.metrics import detection_metrics
from pad.learning.images import split_images
from pad.learning.run import finished_detector, train_detector
from pad.recipes import build_config
from pad.scoring import score_rows
from pad.store.run_folder import RunFolder

HELD_OUT = 0.2  # of the normal images of a folder that has no test images of its own
LARGEST_RAW = 64  # pixels: the side up to which baselines see images of one size as they are stored


@dataclass(frozen=True)
class Task:
    """One normal class: images to train on, and labelled ones to judge by, none of which are the same."""

    name: str
    train: ImageSet  # normal images
    test: ImageSet  # labelled images

    def labels(self) -> NDArray[np.bool_]:
        """True for the anomalies of `test`, (n,)."""
        return np.array([bool(sample.anomalous) for sample in self.test.samples])


def dataset_task(dataset: str, label: int, data_root: Path | None) -> Task:
    """Standard one-vs-rest: a class's training split, and the whole test split."""
    spec = f"{dataset}:{label + DATASETS[dataset].first}"
    train, test = resolve([spec], "train", data_root), resolve([spec], "evaluate", data_root)
    return Task(DATASETS[dataset].classes[label], train, test)


def training_split_task(
    dataset: str, label: int, data_root: Path | None, anomalies: int, held_out: float
) -> Task:
    """Both from the training split, for choosing between recipes: the test split is never opened.

    A share `held_out` of the class is judged beside `anomalies` images of each other class; the draw is
    fixed.
    """
    known = DATASETS[dataset]
    rng = np.random.default_rng(0)
    normal = resolve([f"{dataset}:{label + known.first}"], "train", data_root)
    order = rng.permutation(len(normal))
    kept = round(len(normal) * (1 - held_out))
    others = ",".join(str(i + known.first) for i in range(len(known.classes)) if i != label)
    rest = resolve([f"{dataset}:{others}"], "train", data_root)
    kinds = np.array([sample.kind for sample in rest.samples])
    chosen = [rng.permutation(np.flatnonzero(kinds == kind))[:anomalies] for kind in np.unique(kinds)]
    test = _labelled(normal.subset(order[kept:].tolist()), rest.subset(np.concatenate(chosen).tolist()))
    return Task(known.classes[label], normal.subset(order[:kept].tolist()), test)


def folder_task(folder: Path) -> Task:
    """A labelled folder. Without training images of its own, the test images are the anomalies and a fifth
    of the normal ones, which are then left out of the training. Raises PadError if it has no labels."""
    train, test = resolve([str(folder)], "train"), resolve([str(folder)], "evaluate")
    found = [sample.anomalous for sample in test.samples]
    if not any(found) or all(found):
        raise PadError(f"{folder}: takes normal/ or good/ beside sub-folders of anomalies")
    names = {sample.name for sample in train.samples}
    if any(sample.name in names for sample in test.samples):
        order = np.random.default_rng(0).permutation(len(train))
        kept = round(len(train) * (1 - HELD_OUT))
        anomalous = test.subset(i for i, flag in enumerate(found) if flag)
        test = _labelled(train.subset(order[kept:].tolist()), anomalous)
        train = train.subset(order[:kept].tolist())
    return Task(folder.name, train, test)


def _labelled(normal: ImageSet, anomalous: ImageSet) -> ImageSet:
    """Both in one set, the second marked as anomalous."""
    from dataclasses import replace

    samples = [replace(s, anomalous=False) for s in normal.samples]
    samples += [replace(s, anomalous=True) for s in anomalous.samples]
    return ImageSet(
        samples, normal.contents + anomalous.contents, normal.keys + anomalous.keys, normal.source
    )


def raw_pixels(images: ImageSet, size: int, channels: int) -> NDArray[np.float32]:
    """Pixels in [0, 1], (n, values): as stored where all are small arrays of one size, else resized."""
    arrays = [content for content in images.contents if isinstance(content, np.ndarray)]
    if (
        len(arrays) == len(images)
        and len({a.shape for a in arrays}) == 1
        and max(arrays[0].shape) <= LARGEST_RAW
    ):
        return np.stack(arrays).reshape(len(arrays), -1) / np.float32(255)
    return np.float32(0.5) * (tensors(images, size, channels).reshape(len(images), -1) + 1)


def tensors(images: ImageSet, size: int, channels: int) -> NDArray[np.float32]:
    """What the networks see, (n, channels, size, size) in [-1, 1]. Raises PadError for an unreadable one."""
    pixels, _, errors = load_all(images, Config(size=size, channels=channels))
    if errors:
        raise PadError(f"{images.samples[errors[0][0]].name}: {errors[0][1]}")
    return pixels.numpy()


def metrics(scores: NDArray[np.floating[Any]], labels: NDArray[np.bool_]) -> dict[str, Any]:
    """ROC AUC, average precision and the false-alarm rate at 95 % found, each `{"value", "low", "high"}`."""
    return dict(detection_metrics(scores[~labels], scores[labels]))


def train_and_score(
    task: Task,
    recipe: str | None,
    settings: Mapping[str, Any],
    folder: Path,
    device: str,
    minutes: float | None = None,
    data_root: Path | None = None,
    trained: Path | None = None,
) -> dict[str, Any]:
    """Trains as `train.py` does, going on from a checkpoint if there is one, and judges the task's test
    images as `evaluate.py` does. The model stays in `folder`; its checkpoints do not. What is trained to the
    end, there or in the run folder `trained`, is not trained again: then only what comes after training is
    done anew."""
    config = build_config(recipe, settings, task.train)
    training, calibration = split_images(task.train, config)
    detector = finished_detector(trained or folder, config, training, calibration, device)
    if detector is not None:
        detector.save(folder / "model")
    else:
        detector = train_detector(
            config,
            training,
            calibration,
            pick_device(device),
            folder,
            minutes,
            checkpoint=RunFolder(folder).read_checkpoint(),
            progress=True,
            data_root=data_root,
        )
    begun = time.perf_counter()
    rows = list(score_rows(detector, task.test, 0.05, BATCH_SIZE))
    seconds = time.perf_counter() - begun
    unreadable = [row for row in rows if row.score is None]
    if unreadable:
        raise PadError(f"{unreadable[0].path}: {unreadable[0].error}")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    scores = np.array([row.score for row in rows])
    return {
        **metrics(scores, task.labels()),
        "train_images": len(training),
        "test_images": len(rows),
        "training": {"commit": detector.card["versions"].get("commit"), **detector.card["training"]},
        "score_seconds": round(seconds, 2),
        "recipe": to_mapping(config),
    }
