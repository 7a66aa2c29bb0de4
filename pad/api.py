"""What `import pad` gives: `pad.load` takes a detector from where it lies, `pad.fit` makes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pad.config import Config
from pad.detector import Detector
from pad.devices import pick_device
from pad.images.ranges import warn_of_unit_range
from pad.images.resolve import as_image_set
from pad.learning.images import split_images
from pad.learning.run import train_detector
from pad.recipes import build_config


def load(
    model: str | Path,
    device: str = "auto",
    backbone_weights: str | None = None,
    allow_downloads: bool = False,
    view_backbone_weights: str | None = None,
) -> Detector:
    """A trained detector.

    Args:
        model: a run folder, a model folder, `zoo:NAME`, or `hf-hub:ORG/REPO[@REVISION]`.
        device: auto, cpu, cuda or mps.
        backbone_weights: a local file of weights for the backbones vgg16 and vgg19.
        allow_downloads: whether the weights of a backbone may be downloaded, if they are not on this machine:
            a model may come from a stranger, and does not start a download by itself.
        view_backbone_weights: a local file of weights for the backbone of the views, `timm:MODEL`.

    Raises:
        PadError: no such model, or one that is damaged, unsafe or made by a newer format.
    """
    return Detector.load(model, device, backbone_weights, allow_downloads, view_backbone_weights)


def fit(
    images: Any,
    config: Config | str | None = None,
    device: str = "auto",
    minutes: float | None = None,
    progress: bool = False,
    **settings: Any,
) -> Detector:
    """Trains a detector on normal images and calibrates it on a part of them that it keeps back.

    Args:
        images: as for `Detector.score`.
        config: a Config, a recipe's name or file; default: the recipe `folder`, which looks at the images.
        device: auto, cpu, cuda or mps.
        minutes: train so long instead of for `steps`.
        progress: show a progress bar.
        settings: any setting of the recipe, such as `steps=300`.

    Raises:
        PadError: too few images, an image that cannot be read, or a setting that does not fit.
    """
    warn_of_unit_range(images)
    image_set = as_image_set(images)
    if isinstance(config, Config):
        recipe = config.replace(**settings) if settings else config
    else:
        recipe = build_config(config, settings, image_set, timed=minutes is not None)
    training, calibration = split_images(image_set, recipe)
    return train_detector(
        recipe, training, calibration, pick_device(device), minutes=minutes, progress=progress
    )
