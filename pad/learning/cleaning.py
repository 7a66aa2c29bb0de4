"""Which images of an unlabelled folder do not belong there: a ranking, in which each image is judged by views
that did not see it.

A few strangers of a kind make all of their kind look normal. So the group that stands apart is kept from the
views that judge, or where there is none, the tenth that belongs least. To a model that would be a loss where
all belong; a ranking loses nothing by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pad.config import BATCH_SIZE, FPR, MOST_STRANGERS, Config, parse_assignments
from pad.detector import Detector
from pad.errors import PadError
from pad.images.imageset import ImageSet
from pad.images.stream import Batch, each_batch
from pad.judging.fusion import Fusion
from pad.judging.rows import ANOMALY, NORMAL, Row, make_row
from pad.learning.cross_fit import out_of_fold_scores
from pad.learning.images import MINIMUM_IMAGES
from pad.learning.quick import Looked, fit_on, fitted_indices, look, quick_of
from pad.learning.strangers import beyond_a_gap, farthest, standing_apart
from pad.recipes import build_config
from pad.views.quick import build_quick

LEFT_OUT = 0.1  # of the images, where none stand apart and nothing was said


@dataclass(frozen=True)
class CleanRequest:
    """What `pad clean` is asked for; each attribute is the argument or option of its name.

    Attributes:
        data: the images: files, folders, globs, or datasets.
        data_root: where named datasets lie.
        out: the folder of the ranking and the report; None: none are kept.
        move_to: a folder where the marked files go.
        first: mark so many of the ranking; None: the group that stands apart, or the share of the setting
            `contamination`.
        report: write report.html.
        config, set: a recipe, and settings on top of it.
        seed: of all random numbers.
        device: auto, cpu, cuda or mps.
        quiet: no progress bars.

    Raises:
        PadError: what does not go together.
    """

    data: tuple[str, ...]
    data_root: str | None = None
    out: str | None = None
    move_to: str | None = None
    first: int | None = None
    report: bool = False
    config: str | None = None
    set: tuple[str, ...] = ()
    seed: int | None = None
    device: str = "auto"
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.report and self.folder is None:
            raise PadError("--report writes files: name a folder for them with --out")
        if self.move_to is not None and (within := _folder_around(Path(self.move_to), self.data)):
            raise PadError(f"--move-to {self.move_to} lies in {within}: name a folder outside")

    @property
    def folder(self) -> Path | None:
        """Where files are written; None: nowhere."""
        return Path(self.out) if self.out else None

    def recipe(self, images: ImageSet) -> Config:
        """The recipe: of the quick views alone, which see whole pictures as they are. Raises PadError for
        settings that do not fit."""
        settings = {**parse_assignments(self.set), "steps": 0, "tolerate": "none"}
        if self.seed is not None:
            settings["seed"] = self.seed
        config = build_config(self.config, settings, images)
        if config.tile is not None:
            raise PadError("images are ranked as a whole: leave 'tile' away")
        return config


def _folder_around(folder: Path, data: tuple[str, ...]) -> str | None:
    """Of the folders among `data` one that holds `folder`."""
    around = (folder.resolve(), *folder.resolve().parents)
    return next((given for given in data if Path(given).is_dir() and Path(given).resolve() in around), None)


class Ranking(NamedTuple):
    """What is found of n images."""

    detector: Detector  # fitted on those that belong
    rows: list[Row]  # in the order of the images; marked ones have the verdict "anomaly"
    order: list[int]  # the indices of those that can be read: what stands apart, then the others; by scores
    marked: int  # so many of `order` are marked


def rank(
    images: ImageSet, config: Config, device: torch.device, first: int | None = None, progress: bool = False
) -> Ranking:
    """Ranks images by how little they belong among the others: first a group that stands apart (or the share
    `contamination` of the recipe), and all others after it, the highest score first.

    Each is judged by a fit without it: those that the views are fitted on (at most FIT_IMAGES) in folds, all
    others by a fit on the former, among which alone a group is looked for. first: mark so many; see
    `CleanRequest`.

    Raises PadError if fewer than MINIMUM_IMAGES can be read.
    """
    chosen = fitted_indices(len(images), 0, config)
    detector = Detector(config, None, build_quick(config), device)
    looked = _look(detector, images, chosen, progress)
    scores, strangers = judged(detector, looked)
    rows = _rows(images, chosen, looked.indices, scores, looked.errors)
    others = sorted(set(range(len(images))) - set(chosen))
    for indices, of_batch, errors in _scored(detector, images.subset(others)):
        rows |= _rows(images, others, indices, of_batch, errors)
    apart = {chosen[looked.indices[place]] for place in strangers.nonzero().flatten().tolist()}
    scored = (i for i in rows if rows[i].score is not None)
    order = sorted(scored, key=lambda i: (i not in apart, -(rows[i].score or 0.0), i))
    marked = min(len(apart) if first is None else first, len(order))
    for place, index in enumerate(order):
        rows[index] = dataclasses.replace(rows[index], verdict=ANOMALY if place < marked else NORMAL)
    return Ranking(detector, [rows[i] for i in range(len(images))], order, marked)


def _rows(
    images: ImageSet,
    among: list[int],
    indices: list[int],
    scores: list[float],
    errors: list[tuple[int, str]],
) -> dict[int, Row]:
    """A row for each of some images, by its index; `indices` and those of `errors` are places in `among`."""
    rows = {among[i]: Row(images.samples[among[i]].name, error=why) for i, why in errors}
    for i, score in zip(indices, scores, strict=True):
        rows[among[i]] = make_row(images.samples[among[i]].name, score, None, FPR)
    return rows


def _scored(
    detector: Detector, images: ImageSet
) -> Iterator[tuple[list[int], list[float], list[tuple[int, str]]]]:
    """Indices, scores and errors of images, batch by batch."""

    def score(batch: Batch) -> tuple[list[int], list[float], list[tuple[int, str]]]:
        scores = detector.score_batch(batch.pictures).tolist() if batch.indices else []
        return batch.indices, scores, batch.errors

    return each_batch(score, images, detector.config, detector.device, BATCH_SIZE)


def _look(detector: Detector, images: ImageSet, chosen: list[int], progress: bool) -> Looked:
    if len(images) < MINIMUM_IMAGES:
        raise PadError(f"ranking takes at least {MINIMUM_IMAGES} images; found {images.describe()}")
    looked = look(detector, images.subset(chosen), progress)
    if len(looked.indices) < MINIMUM_IMAGES:
        raise PadError(
            f"ranking takes at least {MINIMUM_IMAGES} images; only {len(looked.indices)} of {len(chosen)} in "
            f"{images.source} can be read"
        )
    return looked


def judged(detector: Detector, looked: Looked) -> tuple[list[float], Tensor]:
    """Fits a detector on the images that belong. Returns the score of each of n images, by fits that did not
    see it, and which of them do not belong, (n,) bool."""
    quick, seed = quick_of(detector), detector.config.seed
    strangers, left_out = _strangers(looked, detector.config)
    views = out_of_fold_scores(quick, looked.features, looked.hashes, seed, teaching=~left_out)
    fit_on(detector, looked, ~left_out)
    if len(detector.views) > 1:
        detector.fusion = Fusion.fit(detector.views, views[~left_out].numpy(), likeness=quick.likeness)
    return detector.fused(views).tolist(), strangers


def _strangers(looked: Looked, config: Config) -> tuple[Tensor, Tensor]:
    """Which images do not belong, (n,) bool, and which are kept from the views, (n,) bool."""
    deep, hashes, seed = looked.features.deep[-1], looked.hashes, config.seed
    if config.contamination is not None:
        strangers = farthest(deep, hashes, config.contamination, seed)
        return strangers, strangers
    beyond = beyond_a_gap(deep, hashes, seed)
    left_out = beyond if beyond.any() else farthest(deep, hashes, LEFT_OUT, seed)
    return standing_apart(deep, hashes, seed, MOST_STRANGERS), left_out
