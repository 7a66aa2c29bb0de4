"""Fine-tuning that keeps what was normal: images of the old normal are replayed among the new ones.

Where they come from:

- From the model alone. It keeps the latents of some held-out normal images (`calibration.json`, `replay`);
  pairs of them are mixed, `z = cos(t) z_1 + sin(t) z_2`, which keeps mean zero and covariance, and the old
  generator makes images of them. A model that kept none is asked for images of the prior instead.
- From a folder of images of the old normal (`--replay`).

Calibration after fine-tuning: new held-out normal images have their own scores. With a folder, a part of it
is held out as well, and the promise on false alarms holds for old and new images in the proportion of the
calibration set. From the model alone, the scores of the old calibration images are known only under the old
model: they are taken as they were, or multiplied by how much the scores of generated images have grown, if
these have (that they fall says nothing: those of the old generator are easy to learn). So for the old normal,
and for the mixture, the rate is an estimate, and the model's card says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pad.detector import Detector
from pad.errors import PadError
from pad.images.hashes import NO_HASHES, Hashes
from pad.images.identity import hashes_of, with_hashes
from pad.images.imageset import ImageSet
from pad.images.resize import at_side
from pad.images.stream import load_all
from pad.images.variation import in_variation
from pad.judging.calibration import Calibration, calibration_split
from pad.latents import KEPT_IMAGES, kept_latents
from pad.learning.images import Images, MemoryImages
from pad.views.generator import GeneratorView


@dataclass(frozen=True)
class Replay:
    """Images of the old normal, (n, channels, size, size) in [-1, 1].

    training: to mix among the new ones. held_out: never trained on, to measure and to calibrate by.
    generated: made by the old model, not real. hashes: of the content of `training`, where it is real.
    """

    training: Tensor
    held_out: Tensor
    source: str
    generated: bool
    hashes: Hashes = field(default_factory=lambda: NO_HASHES)


class MixedImages:
    """New images followed by replayed ones, as one set to draw from."""

    def __init__(self, new: Images, replayed: Tensor, size: int) -> None:
        self.new, self.replayed = new, MemoryImages(at_side(replayed, size))

    def __len__(self) -> int:
        return len(self.new) + len(self.replayed)

    def batch(self, indices: Tensor) -> Tensor:
        old = indices >= len(self.new)
        parts = []
        for source, chosen in ((self.new, indices[~old]), (self.replayed, indices[old] - len(self.new))):
            if len(chosen):
                parts.append(source.batch(chosen))
        # Back in the order that was asked for.
        order = torch.cat([(~old).nonzero()[:, 0], old.nonzero()[:, 0]])
        return torch.cat(parts)[order.argsort()]


# Latents that a model keeps -------------------------------------------------------------------------


def stored_latents(detector: Detector) -> Tensor | None:
    """The latents that the model keeps, (n, d, r, r), or None. Raises PadError if they do not fit it."""
    kept = detector.calibration.extra.get("replay") if detector.calibration else None
    if not kept:
        return None
    shape = _latent_shape(detector)
    try:
        latents = torch.tensor(kept, dtype=torch.float32).view(-1, *shape)
    except (TypeError, ValueError, RuntimeError):
        latents = torch.full((1, *shape), torch.nan)
    if not latents.isfinite().all():
        raise PadError(f"calibration.json: 'replay' must hold lists of {np.prod(shape)} finite numbers")
    return latents


def mix(latents: Tensor, count: int, random: torch.Generator) -> Tensor:
    """`count` latents, each from two of those given."""
    first, second = (latents[torch.randint(len(latents), (count,), generator=random)] for _ in range(2))
    angle = torch.rand(count, 1, 1, 1, generator=random) * (torch.pi / 2)
    return angle.cos() * first + angle.sin() * second


def _latent_shape(detector: Detector) -> tuple[int, int, int]:
    config = detector.config
    return config.latent_dim, config.latent_resolution, config.latent_resolution


# Making a replay ------------------------------------------------------------------------------------


def make_replay(old: Detector, count: int, folder: ImageSet | None = None, new: Hashes = NO_HASHES) -> Replay:
    """A replay of what `old` calls normal.

    Args:
        old: the model that is fine-tuned.
        count: how many images to train on; of `folder`, at most as many as it has.
        folder: images of the old normal; None: the model makes them.
        new: hashes of the new images, those kept for calibration too: what is among them is not replayed.

    Raises PadError if images of the folder cannot be read, are fewer than two, or were all trained on.
    """
    return _from_model(old, count) if folder is None else _from_images(old, count, folder, new)


def _from_model(old: Detector, count: int) -> Replay:
    random = torch.Generator().manual_seed(old.config.seed)
    latents = stored_latents(old)
    if latents is None:
        shape = _latent_shape(old)
        return Replay(
            generate(old, torch.randn(count, *shape, generator=random)),
            generate(old, torch.randn(KEPT_IMAGES, *shape, generator=random)),
            "the model's own images of the prior",
            True,
        )
    source = "the model's own images of latents that it keeps"
    return Replay(generate(old, mix(latents, count, random)), generate(old, latents), source, True)


def _from_images(old: Detector, count: int, folder: ImageSet, new: Hashes) -> Replay:
    config = old.config
    others = np.flatnonzero(~np.isin(hashes_of(folder := with_hashes(folder)), new))
    if len(others) < 2:
        raise PadError(
            f"--replay takes at least 2 normal images that are not among --data; {len(others)} of "
            f"{folder.describe()} are not"
        )
    pixels, kept, _ = load_all(folder.subset(others.tolist()), config)
    if len(kept) < 2:
        raise PadError(
            f"--replay takes at least 2 normal images; {len(kept)} of {folder.describe()} can be read"
        )
    hashes = hashes_of(folder)[others][kept]
    try:
        training, held_out = calibration_split(
            hashes, config.calibration_fraction, seed=config.seed, trained=old.trained_on
        )
    except PadError as error:
        raise PadError(f"--replay {folder.source}: {error}") from None
    training = training[:count]
    return Replay(
        pixels[training.tolist()], pixels[held_out.tolist()], folder.source, False, hashes[training]
    )


def generator_of(detector: Detector) -> GeneratorView:
    """Raises PadError if a model has none, and so nothing to replay by itself."""
    if detector.generator is None:
        raise PadError("the model has no generator to replay its old normal: give images of it, --replay DIR")
    return detector.generator


def generate(old: Detector, z: Tensor) -> Tensor:
    """G(z) for latents (n, d, r, r), in [-1, 1] on the CPU."""
    generator = generator_of(old).networks["generator"]
    with torch.no_grad():
        made = [generator(part.to(old.device)).clamp(-1, 1).cpu() for part in z.split(64)]
    return torch.cat(made)


# Afterwards -----------------------------------------------------------------------------------------


def known_scores(
    old: Detector,
    new: Detector,
    replay: Replay,
    before: NDArray[np.float64],
    after: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The scores of the old normal by which the new model is calibrated (see the module's text), of those of
    the replay's `held_out` under the old model (`before`) and under the new one (`after`). None, where it has
    several views and no real images: the views do not know the old normal."""
    if new.fusion is not None and replay.generated:
        return np.empty(0)
    if not replay.generated or old.calibration is None:
        return after
    return old.calibration.scores * max(1.0, after.mean() / before.mean())


def calibrate_both(detector: Detector, old: Detector, replay: Replay) -> Calibration:
    """Adds the old normal to a calibration that knows the new normal alone; see the module's text."""
    new = detector.calibration
    assert new is not None
    if detector.fusion is not None:
        return _calibrate_fused(detector, replay)
    held_out = _in_variation(detector, replay)
    before, after = (model.score(held_out).astype(np.float64) for model in (old, detector))
    known = known_scores(old, detector, replay, before, after)
    extra = {**new.extra, "old_normal": "estimated" if replay.generated else "measured"}
    # The next fine-tuning replays both.
    latents = torch.cat([detector.encode(part) for part in replay.held_out.split(64)])
    extra["replay"] = new.extra["replay"][::2] + kept_latents(latents, torch.from_numpy(after))[::2]
    detector.calibration = Calibration(np.concatenate([new.scores, known]), extra)
    return detector.calibration


def _in_variation(detector: Detector, replay: Replay) -> Tensor:
    """The images of the old normal that calibrate, judged as those of the new normal are."""
    return in_variation(replay.held_out, detector.config.tolerate, detector.config.seed)


def _calibrate_fused(detector: Detector, replay: Replay) -> Calibration:
    """Adds held-out images of the old normal; without real ones the old normal is not known to the views."""
    new = detector.calibration
    assert new is not None
    if replay.generated:
        return new
    held_out = _in_variation(detector, replay)
    views = torch.cat([detector.score_views(part) for part in held_out.split(64)])
    scores = np.concatenate([new.scores, detector.fused(views).numpy()])
    rows = new.rows(detector.views)
    assert rows is not None  # it was made in this run
    extra = {**new.extra, "old_normal": "measured"}
    both = np.concatenate([rows, views.numpy()])
    detector.calibration = Calibration.of_views(scores, detector.views, both, extra)
    return detector.calibration
