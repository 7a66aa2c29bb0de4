"""The detector: A(x) = rho(x, G(E(x))), higher is more anomalous (arXiv:1909.05904, section 3.2); rho weighs
features by how well normal images are reconstructed there (pad/similarity/relative.py), unless the recipe
says not to.

`pad.load(MODEL)` gives one that is trained, `pad.fit(images)` trains one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pad.config import BATCH_SIZE, Config, to_mapping
from pad.devices import cast_similarity, in_parallel, lanes, pick_device, pick_precision, to_device
from pad.errors import PadError, warn
from pad.images.identity import Hashes, pack, unpack
from pad.images.ranges import warn_of_unit_range
from pad.judging.calibration import Calibration
from pad.networks import build_networks
from pad.similarity.build import Similarity, build_similarity
from pad.similarity.relative import RelativePerceptualL1

if TYPE_CHECKING:
    from pad.showing.explanation import Explanation
    from pad.store.weights import TensorSpec

Result = TypeVar("Result")


_TRAINED_ON = "trained_on"  # in calibration.json, under "extra"


class Examined(NamedTuple):
    """All that the detector says of a batch of n images, float32 on the CPU."""

    scores: Tensor  # (n,), higher is more anomalous
    nearest: Tensor  # (n, channels, size, size) in [-1, 1]: the nearest images that the generator can make
    maps: Tensor  # (n, size, size) >= 0: where they differ; the mean over the pixels is the score
    latents: Tensor  # (n, d * r * r): E(x)


class Detector:
    """Scores images by how far they lie from the nearest image that the generator can make.

    Attributes:
        config: the recipe it was trained by.
        calibration: the scores of held-out normal images, or None.
        card: where it comes from: versions, data, training (plain types).
        device: where it computes.
        trained_on: hashes of the images that it was trained on (pad/images/identity.py), or None where that
            is not known: models made by an older version do not say.
    """

    def __init__(
        self,
        config: Config,
        networks: nn.ModuleDict,
        similarity: Similarity,
        device: torch.device,
        calibration: Calibration | None = None,
        card: Mapping[str, Any] | None = None,
        trained_on: Hashes | None = None,
    ) -> None:
        self.config, self.device, self.calibration = config, device, calibration
        self.card: dict[str, Any] = dict(card or {})
        self.trained_on = trained_on
        self.dtype = pick_precision(config.precision, device)
        self.networks = to_device(networks, device)
        self.networks.requires_grad_(False).eval()
        self.similarity = similarity.to(device)
        cast_similarity(self.similarity, self.dtype)

    # Batches of tensors (n, channels, size, size) in [-1, 1]

    def encode(self, x: Tensor) -> Tensor:
        """E(x), (n, d * r * r) float32 on the CPU: near N(0, I) for normal images."""
        with torch.no_grad(), self._autocast():
            return self.networks["encoder"](x.to(self.device)).float().flatten(1).cpu()

    def reconstruct(self, x: Tensor) -> Tensor:
        """The nearest normal image that the generator can make, (n, channels, size, size) in [-1, 1]."""
        return self._nearest(x.to(self.device))[1].clamp(-1, 1).cpu()

    def score_batch(self, x: Tensor) -> Tensor:
        """A(x), (n,) float32 on the CPU."""
        reference, nearest, _ = self._nearest(x.to(self.device))
        with torch.no_grad(), self._autocast():
            return self.similarity.compare(reference, nearest).float().cpu()

    def anomaly_map(self, x: Tensor) -> Tensor:
        """Where the image differs, (n, size, size) float32 >= 0; the mean over its pixels is the score.

        It is smoothed over a sixteenth of the image: what matters is the region, not the sharpest pixel.
        """
        return self.examine(x).maps

    def examine(self, x: Tensor) -> Examined:
        """Scores, nearest normal images, anomaly maps and latents in one go, the same as one by one."""
        x = x.to(self.device)
        reference, nearest, latents = self._nearest(x)
        with torch.no_grad(), self._autocast():
            scores = self.similarity.compare(reference, nearest).float().cpu()
            maps = self.similarity.map(x, nearest.clamp(-1, 1)).float().cpu()
        # What a map says is where; how much is said by the score.
        maps = maps * (scores / maps.mean((1, 2)).clamp_min(1e-12))[:, None, None]
        maps = smooth(maps, self.config.size / 16)
        return Examined(scores, nearest.clamp(-1, 1).cpu(), maps, latents.flatten(1).cpu())

    def _nearest(self, x: Tensor) -> tuple[Any, Tensor, Tensor]:
        """What the similarity needs of x; G(z) for z = E(x), drawn into the prior, and refined if the recipe
        says so; and E(x)."""
        with torch.no_grad(), self._autocast():
            reference = self.similarity.prepare(x)
            latents = self.networks["encoder"](x).float()
        z = self._within_prior(latents)
        z = self._refine(reference, z) if self.config.refine_steps else z
        with torch.no_grad(), self._autocast():
            return reference, self.networks["generator"](z).float(), latents

    def _within_prior(self, z: Tensor) -> Tensor:
        """z, or the closest point to it in the ball that holds `prior_mass` of N(0, I).

        Of an image unlike anything normal, E(x) lies far outside, where G has never been and makes shapeless
        blots; from the edge of the ball it still makes the most similar image of the normal kind.
        """
        from scipy.special import gammaincinv

        dimensions = z[0].numel()  # |z|^2 is chi-squared with so many degrees of freedom
        radius = (2 * float(gammaincinv(dimensions / 2, self.config.prior_mass))) ** 0.5
        length = z.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        return z * (radius / length).clamp_max(1)

    def _refine(self, reference: Any, z: Tensor) -> Tensor:
        """Gradient steps on z from E(x) towards the closest generated image, argmin_z rho(x, G(z)); after
        each z is drawn into the prior again."""
        z = z.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([z], lr=self.config.refine_rate)
        for _ in range(self.config.refine_steps):
            with torch.enable_grad(), self._autocast():
                # A sum, and Adam is elementwise: each image goes its own way whatever its batch.
                distance = self.similarity.compare(reference, self.networks["generator"](z).float()).sum()
            (z.grad,) = torch.autograd.grad(distance, z)
            optimizer.step()
            with torch.no_grad():
                z.copy_(self._within_prior(z))
        return z.detach()

    def scoring_by(self, config: Config) -> Detector:
        """The same networks under a recipe that differs in SCORING_SETTINGS at most (pad/config.py): what it
        knows of errors on normal images, and the calibration, are to be had anew."""
        similarity = build_similarity(config)
        if isinstance(similarity, RelativePerceptualL1):
            assert isinstance(self.similarity, RelativePerceptualL1)
            similarity.take_statistics(self.similarity)
        return Detector(
            config, self.networks, similarity, self.device, card=self.card, trained_on=self.trained_on
        )

    def fit_residuals(self, batches: Iterable[Tensor], known: Detector | None = None) -> None:
        """Sets what the score takes into account of errors on normal images (which channels count, the
        weights of the features, and the components that do not count) from batches of the images that were
        trained on; to be done before `calibrate`. Where the recipe wants none of it, or its similarity has no
        features, it does nothing.

        known: a detector of the same recipe whose components are kept: the one that was fine-tuned.
        """
        config = self.config
        wanted = config.feature_weights or config.residual_components or config.feature_channels < 1
        if not wanted or not isinstance(self.similarity, RelativePerceptualL1):
            return
        self.similarity.choose_channels()

        def differences(similarity: RelativePerceptualL1) -> Iterator[list[Tensor]]:
            for x in batches:
                reference, nearest, _ = self._nearest(x.to(self.device))
                with torch.no_grad(), self._autocast():
                    yield similarity.differences(reference, nearest)

        kept = known.similarity if known and isinstance(known.similarity, RelativePerceptualL1) else None
        self.similarity.fit_residuals(differences(self.similarity), kept)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    # Images of any kind

    def score(self, images: Any) -> np.ndarray:
        """Anomaly scores, (n,) float32; higher is more anomalous.

        Args:
            images: paths, PIL images, uint8 arrays (n, H, W[, C]), float tensors (n, C, H, W) in [-1, 1],
                or an ImageSet. Arrays and tensors of three channels are RGB; OpenCV's are BGR, and want
                `array[..., ::-1]`.

        Raises:
            PadError: an image that cannot be read, named.

        Warns (pad.PadWarning) if float tensors look as if they were scaled to [0, 1].
        """
        warn_of_unit_range(images)
        scores = [scores.numpy() for scores in self._each_batch(self.score_batch, images)]
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    def p_values(self, images: Any) -> np.ndarray:
        """Conformal p-values, (n,) float64 in (0, 1]: how often a normal image scores at least as high.

        Raises PadError if the model has no calibration, or an image cannot be read.
        """
        return self._calibrated().p_values(self.score(images))

    def predict(self, images: Any, fpr: float = 0.05, confidence: float | None = None) -> np.ndarray:
        """True for anomalies, (n,) bool; on new normal images at most the share `fpr` is flagged, on average
        over calibration sets or, with a `confidence` such as 0.95, by this very model with that probability.

        Raises PadError if the model has no calibration, or an image cannot be read. Warns (pad.PadWarning) if
        the calibration images are too few for this rate: then nothing is flagged, whatever the images show.
        """
        calibration = self._calibrated()
        _warn_if_nothing_can_be_flagged(calibration, fpr, confidence)
        return calibration.verdicts(self.score(images), fpr, confidence)

    def explain(self, images: Any, fpr: float = 0.05, confidence: float | None = None) -> list[Explanation]:
        """Why: for each image the nearest normal image that the generator can make, and where it differs;
        with the verdict that `predict` gives.

        Raises PadError if an image cannot be read. Warns as `score` and `predict` do.
        """
        from pad.showing.explanation import explain_images

        warn_of_unit_range(images)
        if self.calibration is not None:
            _warn_if_nothing_can_be_flagged(self.calibration, fpr, confidence)
        return list(explain_images(self, images, fpr, confidence))

    def trained_among(self, images: Any) -> np.ndarray:
        """Which of some images the model was trained on, (n,) bool: the same pictures, whatever their names,
        order or (lossless) file format; all False where the model does not know.

        Raises PadError for what are no images (see `fit`).
        """
        from pad.images.identity import hashes_of
        from pad.images.resolve import as_image_set

        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            images = torch.from_numpy(images)
        single = isinstance(images, str | Path) or not hasattr(images, "__len__")
        images = as_image_set([images] if single else images)
        if self.trained_on is None:
            return np.zeros(len(images), bool)
        return np.isin(hashes_of(images), self.trained_on)

    def calibrate(
        self, images: Any, extra: Mapping[str, Any] | None = None, allow_trained: bool = False
    ) -> Calibration:
        """Sets the calibration from normal images that were not trained on; with it the scale of anomaly
        maps, and some latents, from which fine-tuning can replay what is normal (pad/learning/replay.py).

        Raises PadError if an image cannot be read, or if the model was trained on one: such images score
        too low, so that the threshold would be too low for new ones. `allow_trained` takes them all the
        same. Warns as `score` does.
        """
        from pad.learning.replay import kept_latents
        from pad.showing.explanation import MapScale

        warn_of_unit_range(images)
        extra = dict(extra or {})
        if self.trained_on is not None:
            images = images if hasattr(images, "__len__") else list(images)
            seen = int(self.trained_among(images).sum())
            if seen and not allow_trained:
                message = trained_message(seen, len(images))
                raise PadError(f"{message}; leave them out, or say allow_trained=True")
            extra |= {"trained_images": seen} if seen else {}
        scores: list[Tensor] = []
        latents: list[Tensor] = []

        def maps() -> Iterator[np.ndarray]:
            for examined in self._each_batch(self.examine, images):
                scores.append(examined.scores)
                latents.append(examined.latents)
                yield from examined.maps.numpy()

        scale = MapScale.from_maps(maps())
        all_scores = torch.cat(scores)
        kept = kept_latents(torch.cat(latents), all_scores)
        measured = {"map_scale": scale.to_dict(), "replay": kept, **extra}
        self.calibration = Calibration(all_scores.double().numpy(), measured)
        return self.calibration

    def _calibrated(self) -> Calibration:
        if self.calibration is None:
            raise PadError("the model has no calibration; make one with `pad calibrate MODEL NORMAL_IMAGES`")
        return self.calibration

    def _each_batch(self, function: Callable[[Tensor], Result], images: Any) -> Iterator[Result]:
        """`function` of all images, batch by batch in order."""
        from pad.images.decode import ImageError
        from pad.images.imageset import ImageSet
        from pad.images.stream import Batch, each_batch

        if not isinstance(images, ImageSet):
            workers = lanes(self.device, BATCH_SIZE)
            return in_parallel(function, self._batches(images, BATCH_SIZE // workers), workers)

        def of_readable(batch: Batch) -> Result:
            for index, reason in batch.errors:
                raise ImageError(images.samples[index].name, reason)
            return function(batch.tensor)

        return each_batch(of_readable, images, self.config, self.device, BATCH_SIZE)

    def _batches(self, images: Any, size: int) -> Iterator[Tensor]:
        from pad.images.decode import batch_tensor

        if isinstance(images, np.ndarray | Tensor):
            for start in range(0, len(images), size):
                yield batch_tensor(images[start : start + size], self.config, first=start)
        else:
            if isinstance(images, str | Path) or not hasattr(images, "__iter__"):
                images = [images]
            iterator, start = iter(images), 0
            while chunk := list(islice(iterator, size)):
                yield batch_tensor(chunk, self.config, first=start)
                start += len(chunk)

    # Model folders

    def save(self, folder: str | Path, readme: str | None = None) -> None:
        """Writes a model folder (DESIGN: model.safetensors, config.yaml, calibration.json, README.md), whole
        or not at all. Raises PadError if it cannot be written."""
        from pad.showing.model_card import model_card
        from pad.store.model_folder import write_model

        tensors = {**self.networks.state_dict(), **_statistics(self.similarity)}
        # The path of a weights file means nothing on another machine; the fingerprint says which it was.
        recipe = {**to_mapping(self.config), "backbone_weights": None}
        config = {"recipe": recipe, "backbone": _backbone_card(self.similarity, self.config), **self.card}
        calibration = None if self.calibration is None else self.calibration.to_dict()
        if calibration is not None and self.trained_on is not None:
            calibration["extra"][_TRAINED_ON] = pack(self.trained_on)
        write_model(Path(folder), tensors, config, calibration, readme or model_card(self))

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str = "auto",
        backbone_weights: str | None = None,
        allow_downloads: bool = False,
    ) -> Detector:
        """See `load`."""
        from pad.store.hub import resolve_model
        from pad.store.model_folder import read_model

        folder = resolve_model(str(model))
        files = read_model(folder, _expected_tensors)
        config = dataclasses.replace(files.recipe, backbone_weights=backbone_weights)
        similarity = build_similarity(config, download=allow_downloads)
        _make_room(similarity, files.tensors)
        _check_backbone(files.config.get("backbone"), similarity, folder)
        with torch.device("meta"):
            networks = build_networks(config)
        networks.load_state_dict({k: files.tensors[k] for k in networks.state_dict()}, assign=True)
        if isinstance(similarity, RelativePerceptualL1):
            statistics = similarity.statistics
            statistics.load_state_dict({k: files.tensors[f"similarity.{k}"] for k in statistics.state_dict()})
        calibration = files.calibration and Calibration.from_dict(
            files.calibration, f"{folder / 'calibration.json'}"
        )
        card = {k: v for k, v in files.config.items() if k not in ("format", "recipe", "backbone")}
        packed = calibration.extra.pop(_TRAINED_ON, None) if calibration else None
        trained_on = None if packed is None else unpack(packed)
        return cls(config, networks, similarity, pick_device(device), calibration or None, card, trained_on)


def trained_message(seen: int, images: int) -> str:
    """What is said where a model is to be calibrated on `seen` of `images` that it was trained on."""
    return (
        f"the model was trained on {seen} of the {images} images given: such images score too low, so more "
        "new normal images would be flagged than promised"
    )


def _warn_if_nothing_can_be_flagged(calibration: Calibration, fpr: float, confidence: float | None) -> None:
    if note := calibration.note(fpr, confidence):
        warn(note)


def _expected_tensors(config: Config, found: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """What model.safetensors must hold for a recipe, on the `meta` device: it takes no memory."""
    with torch.device("meta"):
        tensors = build_networks(config).state_dict()
        if config.similarity == "relative-perceptual-l1":
            similarity = build_similarity(
                dataclasses.replace(config, backbone_weights=None), pretrained=False
            )
            _make_room(similarity, found)
            tensors |= _statistics(similarity)
    return tensors


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Maps (n, h, w) blurred by a Gaussian of deviation `sigma` pixels; each keeps its mean.

    Beyond the border lies zero, so that an edge that runs off the image counts less than a region inside it.
    """
    radius = math.ceil(3 * sigma)
    line = torch.exp(-torch.arange(-radius, radius + 1, dtype=maps.dtype).square() / (2 * sigma**2))
    line = line / line.sum()
    blurred = functional.conv2d(maps[:, None], line.view(1, 1, -1, 1), padding=(radius, 0))
    blurred = functional.conv2d(blurred, line.view(1, 1, 1, -1), padding=(0, radius))[:, 0]
    means = blurred.mean((1, 2), keepdim=True).clamp_min(1e-12)
    return blurred * (maps.mean((1, 2), keepdim=True) / means)


def _make_room(similarity: Similarity, tensors: Mapping[str, Tensor | TensorSpec]) -> None:
    """For the channels that count, and for as many components as a model holds: fewer than its recipe asks
    for where images were few, more where it was fine-tuned."""
    if isinstance(similarity, RelativePerceptualL1):
        similarity.choose_channels()
        for layer in similarity.layers:
            found = tensors.get(f"similarity.{layer}.components")
            similarity.of(layer).make_room(found.shape[0] if found is not None and len(found.shape) else 0)


def _statistics(similarity: Similarity) -> dict[str, Tensor]:
    """mu, sigma and the like as they are named in model.safetensors; all that a similarity adds to it."""
    if not isinstance(similarity, RelativePerceptualL1):
        return {}
    return {f"similarity.{k}": v for k, v in similarity.statistics.state_dict().items()}


def _backbone_card(similarity: Similarity, config: Config) -> dict[str, str]:
    """Which weights they were; `file` where they came from a local one, which nobody else may have."""
    if not isinstance(similarity, RelativePerceptualL1):
        return {}
    card = {"name": similarity.backbone.name, "fingerprint": similarity.backbone.fingerprint}
    return {**card, "file": Path(config.backbone_weights).name} if config.backbone_weights else card


def _check_backbone(recorded: Any, similarity: Similarity, folder: Path) -> None:
    if not isinstance(recorded, Mapping) or not isinstance(similarity, RelativePerceptualL1):
        return
    if recorded.get("fingerprint") != similarity.backbone.fingerprint:
        raise PadError(
            f"{folder} was trained with other weights of the backbone {similarity.backbone.name} than these, "
            "so its scores would not be comparable; give the right file with --backbone-weights (in training "
            "with --set backbone_weights=FILE)"
        )


def load(
    model: str | Path,
    device: str = "auto",
    backbone_weights: str | None = None,
    allow_downloads: bool = False,
) -> Detector:
    """A trained detector.

    Args:
        model: a run folder, a model folder, `zoo:NAME`, or `hf-hub:ORG/REPO[@REVISION]`.
        device: auto, cpu, cuda or mps.
        backbone_weights: a local file of weights for the backbones vgg16 and vgg19.
        allow_downloads: whether the weights of such a backbone may be downloaded, if they are not on this
            machine: a model may come from a stranger, and does not start a download by itself.

    Raises:
        PadError: no such model, or one that is damaged, unsafe or made by a newer format.
    """
    return Detector.load(model, device, backbone_weights, allow_downloads)


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
    from pad.images.resolve import as_image_set
    from pad.learning.run import split_images, train_detector
    from pad.recipes import build_config

    warn_of_unit_range(images)
    image_set = as_image_set(images)
    if isinstance(config, Config):
        recipe = config.replace(**settings) if settings else config
    else:
        recipe = build_config(config, settings, image_set)
    training, calibration = split_images(image_set, recipe)
    return train_detector(
        recipe, training, calibration, pick_device(device), minutes=minutes, progress=progress
    )


__all__ = ["Detector", "fit", "load"]
