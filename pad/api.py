"""What `import pad` gives: `pad.load` takes a detector from where it lies, `pad.fit` makes one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pad.config import BATCH_SIZE, FPR, Config
from pad.detector import Detector
from pad.devices import pick_device
from pad.errors import PadError, warn
from pad.images.hashes import joined_hashes
from pad.images.identity import hashes_of
from pad.images.imageset import ImageSet
from pad.images.ranges import warn_of_unit_range
from pad.images.resolve import as_image_set, files_or_pictures, named_images
from pad.judging.rows import COLUMNS
from pad.learning.images import split_images
from pad.learning.plan import check_replayed, fresh_config
from pad.learning.replay import Replay, make_replay
from pad.learning.request import NO_REPLAY
from pad.learning.run import check_recipe, train_detector
from pad.scoring import score_batches

if TYPE_CHECKING:
    import pandas


def load(
    model: str | Path,
    device: str = "auto",
    backbone_weights: str | None = None,
    allow_downloads: bool = False,
    view_backbone_weights: str | None = None,
    precision: str | None = None,
) -> Detector:
    """A trained detector.

    Args:
        model: a run folder, a model folder, `zoo:NAME`, or `hf-hub:ORG/REPO[@REVISION]`.
        device: auto, cpu, cuda or mps.
        backbone_weights: a local file of weights for the backbones vgg16 and vgg19.
        allow_downloads: whether the weights of a backbone may be downloaded, if they are not on this machine:
            a model may come from a stranger, and does not start a download by itself.
        view_backbone_weights: a local file of weights for the backbone of the views, `timm:MODEL`.
        precision: auto, float32 or bfloat16; None: as the model's recipe says.

    Raises:
        PadError: no such model, or one that is damaged, unsafe or made by a newer format.
    """
    return Detector.load(model, device, backbone_weights, allow_downloads, view_backbone_weights, precision)


def fit(
    images: Any,
    config: Config | str | None = None,
    device: str = "auto",
    minutes: float | None = None,
    progress: bool = False,
    start: Detector | str | Path | None = None,
    replay: Any = None,
    **settings: Any,
) -> Detector:
    """Trains a detector on normal images and calibrates it on a part of them that it keeps back.

    Args:
        images: as for `Detector.score`.
        config: a Config, a recipe's name or file; default: the recipe `folder`, which looks at the images, or
            with a `start` the recipe of that model, in a seventh of its steps.
        device: auto, cpu, cuda or mps.
        minutes: train so long instead of for `steps`.
        progress: show a progress bar.
        start: a model to go on from (fine-tuning): `images` are a new kind of normal, beside the old one.
        replay: with a `start`, what keeps the old kind normal: images of it; None: those that the model
            itself makes; "none": it may be forgotten.
        settings: any setting of the recipe, such as `steps=300`.

    Raises:
        PadError: too few images, an image that cannot be read, or a setting that does not fit.
    """
    warn_of_unit_range(images)
    image_set = as_image_set(images)
    if replay is not None and start is None:
        raise PadError("replay goes with start: it is what keeps that model's old normal")
    old = load(start, device) if isinstance(start, str | Path) else start
    if isinstance(config, Config):
        recipe = config.replace(**settings) if settings else config
    else:
        recipe = fresh_config(old, config, settings, image_set, minutes is not None)
    check_recipe(recipe, old)
    training, calibration = split_images(image_set, recipe, old.trained_on if old else None)
    replayed, old_images = _replayed(old, replay, recipe, training, calibration)
    return train_detector(
        recipe,
        training,
        calibration,
        pick_device(device),
        minutes=minutes,
        progress=progress,
        start=old,
        replay=replayed,
        old_images=old_images,
    )


def _replayed(
    old: Detector | None, given: Any, recipe: Config, training: ImageSet, calibration: ImageSet
) -> tuple[Replay | None, ImageSet | None]:
    """The old normal that a fine-tuning trains on besides, and the images of it that were given."""
    if old is None:
        return None, None
    check_replayed(old, given is not None)
    forgotten = isinstance(given, str) and given == NO_REPLAY
    images = None if given is None or forgotten else as_image_set(given)
    if forgotten or not recipe.has_generator:
        return None, images
    new = joined_hashes(hashes_of(training), hashes_of(calibration))
    return make_replay(old, len(training), images, new), images


def table(
    model: Detector | str | Path,
    images: Any,
    fpr: float = FPR,
    confidence: float | None = None,
) -> pandas.DataFrame:
    """What `pad evaluate` writes as scores.csv, as a pandas DataFrame: a row for each image, also for one
    that cannot be read, with the columns path, score, p_value, verdict and error, `anomalous` and `kind`
    where labels are known, and the p-value in each view as `p_NAME`.

    images: as for `Detector.score`. Raises PadError if pandas is not installed. Warns as `Detector.predict`.
    """
    try:
        import pandas
    except ImportError:
        raise PadError("a DataFrame needs pandas: pip install 'pad-anomaly[pandas]'") from None
    detector = load(model) if isinstance(model, str | Path) else model
    images = named_images(images)
    image_set = images if isinstance(images, ImageSet) else files_or_pictures(images)
    rows = [row for batch in score_batches(detector, image_set, fpr, BATCH_SIZE, confidence=confidence)
            for row in batch.rows.values()]  # fmt: skip
    if detector.calibration is not None and (note := detector.calibration.note(fpr, confidence)):
        warn(note)
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    if image_set.labelled:
        columns |= {name: [getattr(row, name) for row in rows] for name in ("anomalous", "kind")}
    for view in detector.views if len(detector.views) > 1 else ():
        columns[f"p_{view}"] = [row.views.get(view) for row in rows]
    frame = pandas.DataFrame(columns)
    numbers = [name for name in frame if name in ("score", "p_value") or name.startswith("p_")]
    return frame.astype(dict.fromkeys(numbers, "float64"))
