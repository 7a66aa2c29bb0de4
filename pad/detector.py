"""The detector: an image is looked at by one view or several, their scores are fused, and calibrated as one.

The views are the generator's A(x) = rho(x, G(E(x))) (pad/views/generator.py) and quick ones of deep features
(pad/views/). `pad.load(MODEL)` gives a detector that is trained, `pad.fit(images)` trains one.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pad.config import BATCH_SIZE, Config, fitting_batch, to_mapping
from pad.devices import autocast, in_parallel, lanes, pick_device, pick_precision
from pad.errors import PadError, shown, warn
from pad.images.hashes import NO_HASHES, Hashes, joined_hashes, pack, unpack
from pad.images.identity import hashes_of
from pad.images.imageset import ImageSet
from pad.images.ranges import warn_of_unit_range
from pad.images.read import ImageError
from pad.images.resize import at_side
from pad.images.resolve import as_image_set, named_images
from pad.images.stream import Batch, each_batch, shares
from pad.images.tiles import Pictures, as_seen
from pad.images.variation import in_variation
from pad.judging.calibration import Calibration
from pad.judging.fusion import Fusion
from pad.judging.map_scale import MapScale, scale_of
from pad.judging.rows import make_row
from pad.latents import kept_latents
from pad.networks import build_networks
from pad.showing.explanation import (
    EXPLAINED_AT_ONCE,
    Explanation,
    html_picture,
    make_explanation,
    pictures_of,
)
from pad.showing.model_card import model_card
from pad.showing.pictures import to_picture
from pad.similarity.build import build_similarity
from pad.store.hub import resolve_model
from pad.store.model_folder import read_model, write_model
from pad.store.weights import TensorSpec
from pad.views.examined import Examined
from pad.views.features import Features
from pad.views.generator import GeneratorView
from pad.views.likeness import UNKNOWN
from pad.views.quick import QuickViews, build_quick
from pad.views.tiles import largest, stitched

Result = TypeVar("Result")
Named = TypeVar("Named")


_NOT_OF_THE_CARD = ("format", "recipe", "backbone", "view_backbone")  # in config.yaml
_FUSION = ("fusion.mean", "fusion.deviation", "fusion.weights")  # in model.safetensors
MAP_SIDE = 64  # pixels of the maps that the quick views make
EXPLAINED_IMAGES = 256  # which say what the generator is worth
_SHOWN = 8  # normal images in a notebook
_PLACED = 32  # numbers that place an image in a map of images, where there is no latent


class Detector:
    """Scores images by how unusual they look in any of its views.

    Attributes:
        config: the recipe it was trained by.
        generator: the view of encoder and generator, or None.
        quick: the views of deep features, or None.
        fusion: how the views' scores make one; None with a single view, and before anything is calibrated.
        calibration: the scores of held-out normal images, or None.
        card: where it comes from: versions, data, training (plain types).
        device: where it computes.
        trained_on: hashes of the images that its generator was trained on (pad/images/identity.py), or None
            where that is not known: models made by an older version do not say.
        fitted_on: hashes of the images that its quick views were fitted on.
    """

    def __init__(
        self,
        config: Config,
        generator: GeneratorView | None,
        quick: QuickViews | None,
        device: torch.device,
        calibration: Calibration | None = None,
        card: Mapping[str, Any] | None = None,
        trained_on: Hashes | None = None,
        fusion: Fusion | None = None,
        fitted_on: Hashes = NO_HASHES,
    ) -> None:
        if generator is None and quick is None:
            raise PadError("setting 'views': a model needs a view; with --steps 0, one besides the generator")
        self.config, self.device, self.calibration = config, device, calibration
        self.card: dict[str, Any] = dict(card or {})
        self.trained_on, self.fitted_on, self.fusion = trained_on, fitted_on, fusion
        self.generator, self.quick = generator, quick
        self.dtype = pick_precision(config.precision, device)
        if quick is not None:
            quick.backbone.to(device).to(memory_format=torch.channels_last)

    def __repr__(self) -> str:
        return f"<pad.Detector: {'; '.join(f'{name} {text}' for name, text in self._described().items())}>"

    def _described(self) -> dict[str, str]:
        """What it is, in words."""
        config, data = self.config, self.card.get("data", {})
        kind = "grey" if config.channels == 1 else "colour"
        read = f"{config.input_side}x{config.input_side} in {kind}"
        said = {
            "views": "+".join(self.views),
            "pictures read at": f"{read}, in tiles of {config.tile} pixels" if config.tile else read,
        }
        if isinstance(data, Mapping) and "images" in data:
            said["trained on"] = f"{data['images']} images of {shown(data.get('source'))}"
        count = 0 if self.calibration is None else len(self.calibration)
        said["calibrated on"] = f"{count} images" if count else "nothing yet"
        return {**said, "on": str(self.device)}

    def _repr_html_(self) -> str:
        """What a notebook shows: what it is, and some images that are normal to it."""
        rows = [f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
                for name, text in self._described().items()]  # fmt: skip
        pictures = () if self.quick is None else self.quick.kept.pictures[:_SHOWN]
        kept = "".join(
            html_picture(to_picture(picture / 127.5 - 1), "a normal image that the model keeps")
            for picture in pictures
        )
        return f"<table>{''.join(rows)}</table><div>{kept}</div>"

    @property
    def views(self) -> tuple[str, ...]:
        """The names of its views, the generator's first."""
        return self.config.model_views

    # Batches of tensors (n, channels, input_side, input_side) in [-1, 1]

    def encode(self, x: Tensor) -> Tensor:
        """E(x), (n, d * r * r) float32 on the CPU: near N(0, I) for normal images; without a generator, where
        an image lies along the first directions of its deep features."""
        if self.generator is not None:
            return self.generator.encode(self.for_generator(x))
        assert self.quick is not None
        return self._placed(self._features(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The nearest normal image that the generator can make, (n, channels, size, size) in [-1, 1].

        Raises PadError if there is no generator."""
        if self.generator is None:
            raise PadError("the model has no generator: train one with --steps")
        return self.generator.reconstruct(self.for_generator(x))

    def score_views(self, x: Pictures) -> Tensor:
        """The score in each view, (n, v) float32 on the CPU; of pictures in tiles, the largest of a tile."""
        if isinstance(x, list):
            return torch.stack([largest(picture, self.score_views, self.tiles_at_once) for picture in x])
        return self.looked(x)[0]

    def looked(self, x: Tensor) -> tuple[Tensor, Features | None]:
        """The score in each view, (n, v) float32 on the CPU, and what the quick views see, None without
        any."""
        columns, features = [], None
        if self.generator is not None:
            columns.append(self.generator.score(self.for_generator(x))[:, None])
        if self.quick is not None:
            features = self._features(x)
            columns.append(self.quick.scores(features))
        return torch.cat(columns, 1), features

    def score_batch(self, x: Pictures) -> Tensor:
        """A(x), (n,) float32 on the CPU."""
        return self.fused(self.score_views(x))

    def fused(self, views: Tensor) -> Tensor:
        """A(x), (n,), of the scores in each view, (n, v). Raises PadError for several views that are not
        calibrated: without it nobody knows what is unusual in each."""
        if views.shape[1] == 1:
            return views[:, 0]
        if self.fusion is None:
            raise PadError("its views are not calibrated; `pad calibrate MODEL NORMAL_IMAGES` does it")
        return torch.from_numpy(self.fusion.fuse(views.numpy()))

    def anomaly_map(self, x: Pictures) -> Tensor:
        """Where the image differs, (n, s, s) float32 >= 0: by *parts*, else by the generator.

        That of the generator is smoothed: what matters is the region, not the sharpest pixel.
        """
        return self.examine(x).maps

    def examine(self, x: Pictures) -> Examined:
        """Scores, nearest normal images, anomaly maps and latents in one go, the same as one by one. Of
        pictures in tiles, nearest images and maps lie on a grid over the whole (pad/images/canvas.py)."""
        if isinstance(x, list):
            at_once, channels = self.tiles_at_once, self.config.channels
            each = [stitched(picture, self.examine, self._fused_if_known, at_once, channels) for picture in x]
            return Examined(*(torch.cat(parts) for parts in zip(*each, strict=True)))
        examined = self.examine_views(x)
        return examined._replace(scores=self._fused_if_known(examined.views))

    def examine_views(self, x: Tensor) -> Examined:
        """As `examine`, before the views are fused: its scores are those of the first view. Of tensors it
        makes tensors, all the way, so that torch can export it."""
        columns, compared = [], None
        if self.generator is not None:
            compared = self.generator.compare(self.for_generator(x))
            columns.append(compared.scores[:, None])
        if self.quick is not None:
            features = self._features(x)
            columns.append(self.quick.scores(features))
        views = torch.cat(columns, 1)
        nearest = compared.nearest if compared else self._nearest_kept(x, features)
        latents = compared.latents if compared else self._placed(features)
        if compared is not None and (self.quick is None or "parts" not in self.quick.names):
            maps = compared.maps
        else:
            maps = self.quick_maps(features)
        return Examined(views[:, 0], nearest, maps, latents, views)

    def _fused_if_known(self, views: Tensor) -> Tensor:
        """`fused`, and before there is a fusion the score in the first view."""
        return self.fused(views) if self.fusion else views[:, 0]

    @property
    def tiles_at_once(self) -> int:
        """How many tiles of a picture are looked at in one go, in each lane."""
        size, workers = fitting_batch(self.config, BATCH_SIZE), lanes(self.device, BATCH_SIZE)
        return max(1, size // workers)

    def varied(self, x: Pictures) -> Pictures:
        """Each image in a variation that the recipe tolerates (pad/images/variation.py), on the CPU."""
        tolerate, seed = self.config.tolerate, self.config.seed
        if isinstance(x, list):
            return [picture.in_variation(tolerate, seed) for picture in x]
        return in_variation(x.cpu(), tolerate, seed)

    def for_generator(self, x: Tensor) -> Tensor:
        """Images at the size of the networks."""
        return at_side(x, self.config.size)

    def _features(self, x: Tensor) -> Features:
        assert self.quick is not None
        with autocast(self.device, self.dtype):
            return self.quick.features(at_side(x.to(self.device), self.quick.backbone.side))

    def features(self, x: Tensor) -> Features:
        """What the quick views see of images. Raises PadError if there are none."""
        if self.quick is None:
            raise PadError("the model has no views of features")
        return self._features(x)

    def quick_maps(self, features: Features) -> Tensor:
        """Where images differ from what is normal there, (n, s, s) float32 >= 0, s = MAP_SIDE."""
        assert self.quick is not None
        # As it is: blurred maps were behind in AUPRO, and would fade towards the border.
        size = (MAP_SIDE, MAP_SIDE)
        return F.interpolate(self.quick.map(features)[:, None], size=size, mode="bilinear")[:, 0]

    def _placed(self, features: Features) -> Tensor:
        assert self.quick is not None
        return self.quick.placed(features)[:, :_PLACED]

    def _nearest_kept(self, x: Tensor, features: Features) -> Tensor:
        assert self.quick is not None
        if len(self.quick.kept):
            return self.quick.kept.nearest(features)
        return torch.zeros_like(at_side(x.cpu(), min(MAP_SIDE, x.shape[-1])))

    def scoring_by(self, config: Config) -> Detector:
        """The same networks under a recipe that differs in SCORING_SETTINGS at most (pad/config.py): what it
        knows of errors on normal images, and the calibration, are to be had anew."""
        generator = None
        if self.generator is not None:
            similarity = build_similarity(config)
            similarity.take_statistics(self.generator.similarity)
            generator = GeneratorView(config, self.generator.networks, similarity, self.device)
        return Detector(
            config, generator, self.quick, self.device, None, self.card, self.trained_on, None, self.fitted_on
        )

    # Images of any kind

    def score(self, images: Any) -> np.ndarray:
        """Anomaly scores, (n,) float32; higher is more anomalous.

        Args:
            images: a file, a folder, a glob or a dataset, as on the command line, or a list of these; PIL
                images, uint8 arrays (n, H, W[, C]), float tensors (n, C, H, W) in [-1, 1], or an ImageSet.
                Arrays and tensors of three channels are RGB; OpenCV's are BGR, and want `array[..., ::-1]`;
                floats in [0, 1] want `pad.from_unit_range`. Of files that are named one by one there is a
                score for each; what folders hold is scored once, in sorted order.

        Raises:
            PadError: an image that cannot be read, named.

        Warns (pad.PadWarning) if float tensors look as if they were scaled to [0, 1].
        """
        images = named_images(images)
        warn_of_unit_range(images)
        scores = [scores.numpy() for scores in self._each_batch(self.score_batch, images)]
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    def view_p_values(self, images: Any) -> dict[str, np.ndarray]:
        """How often a normal image looks at least as unusual, in each view by itself: name -> (n,) float64 in
        (0, 1]. They say why; the verdict is by the fused score alone.

        Raises PadError if the model has no calibration, or an image cannot be read.
        """
        calibration, images = self.calibrated(), named_images(images)
        warn_of_unit_range(images)
        batches = [views.numpy() for views in self._each_batch(self.score_views, images)]
        scores = np.concatenate(batches) if batches else np.empty((0, len(self.views)), np.float32)
        return calibration.view_p_values(self.views, scores)

    def each_view_p_values(self, views: Tensor) -> list[dict[str, float]]:
        """The p-value in each view by its name, for each of n images with the scores (n, v); empty without a
        calibration."""
        if self.calibration is None:
            return [{} for _ in views]
        columns = self.calibration.view_p_values(self.views, views.numpy())
        return [{name: float(p[row]) for name, p in columns.items()} for row in range(len(views))]

    def p_values(self, images: Any) -> np.ndarray:
        """Conformal p-values, (n,) float64 in (0, 1]: how often a normal image scores at least as high.

        Raises PadError if the model has no calibration, or an image cannot be read.
        """
        return self.calibrated().p_values(self.score(images))

    def predict(self, images: Any, fpr: float = 0.05, confidence: float | None = None) -> np.ndarray:
        """True for anomalies, (n,) bool; on new normal images at most the share `fpr` is flagged, on average
        over calibration sets or, with a `confidence` such as 0.95, by this very model with that probability.

        Raises PadError if the model has no calibration, or an image cannot be read. Warns (pad.PadWarning) if
        the calibration images are too few for this rate: then nothing is flagged, whatever the images show.
        """
        calibration = self.calibrated()
        _warn_if_nothing_can_be_flagged(calibration, fpr, confidence)
        return calibration.verdicts(self.score(images), fpr, confidence)

    def explain(self, images: Any, fpr: float = 0.05, confidence: float | None = None) -> list[Explanation]:
        """Why: for each image the nearest normal image (that the generator can make or, without one, that the
        model keeps), where it differs, and in which views it is unusual; with the verdict of `predict`.

        Raises PadError if an image cannot be read. Warns as `score` and `predict` do.
        """
        images = named_images(images)
        warn_of_unit_range(images)
        if self.calibration is not None:
            _warn_if_nothing_can_be_flagged(self.calibration, fpr, confidence)
        return list(self._explanations(images, fpr, confidence))

    def _explanations(self, images: Any, fpr: float, confidence: float | None) -> Iterator[Explanation]:
        """One after the other, in flat memory."""
        config, scale = self.config, scale_of(self.calibration)
        iterator = pictures_of(images)
        while chunk := list(islice(iterator, 1 if self.config.tile else EXPLAINED_AT_ONCE)):
            examined = self.examine(as_seen([given for _, given in chunk], config))
            for (picture, given), score, nearest, anomaly_map, views in zip(
                chunk,
                examined.scores.tolist(),
                examined.nearest,
                examined.maps,
                self.each_view_p_values(examined.views),
                strict=True,
            ):
                # Tensors come prepared: the recipe's crop is already behind them.
                seen = config.replace(crop=None) if hasattr(given, "detach") else config
                row = make_row("", score, self.calibration, fpr, confidence=confidence, views=views)
                yield make_explanation(
                    picture, nearest, anomaly_map, seen, score, row.p_value, row.verdict, scale, row.views
                )

    def trained_among(self, images: Any, views: bool = True) -> np.ndarray:
        """Which of some images the model was trained or fitted on, (n,) bool: the same pictures, whatever
        their names, order or (lossless) file format; all False where the model does not know.
        Without `views`, those that its quick views were fitted on do not count.

        Raises PadError for what are no images (see `fit`).
        """
        if isinstance(images, np.ndarray) and images.dtype.kind == "f":
            images = torch.from_numpy(images)
        single = isinstance(images, str | Path) or not hasattr(images, "__len__")
        images = as_image_set([images] if single else images)
        trained = NO_HASHES if self.trained_on is None else self.trained_on
        known = joined_hashes(trained, self.fitted_on) if views else trained
        return np.isin(hashes_of(images), known) if len(known) else np.zeros(len(images), bool)

    def calibrate(
        self,
        images: Any,
        extra: Mapping[str, Any] | None = None,
        allow_trained: bool = False,
        quick_scores: np.ndarray | None = None,
        belonging: np.ndarray | None = None,
        map_scale: MapScale | None = None,
    ) -> Calibration:
        """Sets the calibration from normal images that were not trained on; with it how views are fused, the
        scale of anomaly maps, and some latents, from which fine-tuning can replay what is normal
        (pad/latents.py). Each image is judged in a variation that the recipe tolerates.

        quick_scores: of the same images in the quick views, (n, v), by fits that did not see them, where
            these views were fitted on the images as well (pad/learning/cross_fit.py).
        belonging: which of the images say how views are fused, (n,) bool; all of them by default.
        map_scale: of the maps of such images by the same fits; by default it is measured on the images.

        Raises PadError if an image cannot be read, or if the model was trained on one: such images score
        too low, so that the threshold would be too low for new ones. `allow_trained` takes them all the
        same. Warns as `score` does.
        """
        images = named_images(images, normal=True)
        warn_of_unit_range(images)
        extra = dict(extra or {})
        if self.trained_on is not None:
            images = images if hasattr(images, "__len__") else list(images)
            seen = int(self.trained_among(images, views=quick_scores is None).sum())
            if seen and not allow_trained:
                message = trained_message(seen, len(images))
                raise PadError(f"{message}; leave them out, or say allow_trained=True")
            extra |= {"trained_images": seen} if seen else {}
        views: list[Tensor] = []
        latents: list[Tensor] = []

        def maps() -> Iterator[np.ndarray]:
            for examined in self._each_batch(lambda x: self.examine(self.varied(x)), images):
                views.append(examined.views)
                latents.append(examined.latents)
                yield from examined.maps.numpy()

        measured = MapScale.from_maps(maps())
        extra["map_scale"] = (map_scale or measured).to_dict()
        scores = torch.cat(views).numpy()
        if quick_scores is not None:
            extra["cross_fitted"] = True
            scores[:, len(self.views) - quick_scores.shape[1] :] = quick_scores
        return self.calibrate_on(scores, torch.cat(latents), extra, self._explained(images), belonging)

    def _explained(self, images: Any) -> float:
        """The share of the differences between (the first) normal images that the generator explains."""
        if self.generator is None or self.quick is None:
            return 0.0
        generator, first = self.generator, range(EXPLAINED_IMAGES)
        if hasattr(images, "subset"):
            images = images.subset(first[: len(images)])
        elif hasattr(images, "__getitem__") and not isinstance(images, str):
            images = images[: len(first)]
        sums = list(self._each_batch(lambda x: generator.explained(self.for_generator(x)), images))
        own, other = np.sum(sums, axis=0)
        return 1 - float(own) / max(float(other), 1e-12)

    def calibrate_on(
        self,
        views: np.ndarray,
        latents: Tensor | None,
        extra: Mapping[str, Any],
        explained: float = 0.0,
        belonging: np.ndarray | None = None,
    ) -> Calibration:
        """Sets fusion and calibration from the scores (n, v) of normal images in each view, their latents,
        and the share of their differences that the generator explains. belonging: see `calibrate`."""
        measured: dict[str, Any] = dict(extra)
        fused_by = views if belonging is None else views[belonging]
        likeness = self.quick.likeness if self.quick is not None else UNKNOWN
        self.fusion = Fusion.fit(self.views, fused_by, explained, likeness) if len(self.views) > 1 else None
        scores = self.fused(torch.from_numpy(views))
        if self.generator is not None and latents is not None:
            measured["replay"] = kept_latents(latents, scores)
        if len(self.views) > 1:
            self.calibration = Calibration.of_views(scores.numpy(), self.views, views, measured)
        else:
            self.calibration = Calibration(scores.double().numpy(), measured)
        return self.calibration

    def calibrated(self) -> Calibration:
        """The calibration. Raises PadError if there is none."""
        if self.calibration is None:
            raise PadError("the model has no calibration; make one with `pad calibrate MODEL NORMAL_IMAGES`")
        return self.calibration

    def _each_batch(self, function: Callable[[Any], Result], images: Any) -> Iterator[Result]:
        """`function` of all images, batch by batch in order."""
        if not isinstance(images, ImageSet):
            size, workers = shares(self.config, self.device, BATCH_SIZE)
            return in_parallel(function, self._batches(images, size), workers)

        def of_readable(batch: Batch) -> Result:
            for index, reason in batch.errors:
                raise ImageError(images.samples[index].name, reason)
            return function(batch.pictures)

        return each_batch(of_readable, images, self.config, self.device, BATCH_SIZE)

    def _batches(self, images: Any, size: int) -> Iterator[Pictures]:
        if isinstance(images, np.ndarray | Tensor):
            for start in range(0, len(images), size):
                yield as_seen(images[start : start + size], self.config, first=start)
        else:
            if isinstance(images, str | Path) or not hasattr(images, "__iter__"):
                images = [images]
            iterator, start = iter(images), 0
            while chunk := list(islice(iterator, size)):
                yield as_seen(chunk, self.config, first=start)
                start += len(chunk)

    # Model folders

    def save(self, folder: str | Path, readme: str | None = None) -> None:
        """Writes a model folder (DESIGN: model.safetensors, config.yaml, calibration.json, README.md), whole
        or not at all. Raises PadError if it cannot be written."""
        tensors: dict[str, Tensor] = {}
        if self.generator is not None:
            tensors |= self.generator.networks.state_dict()
            tensors |= _named(self.generator.similarity.statistics_state(), "similarity.")
        if self.quick is not None:
            tensors |= _named(self.quick.state_dict(), "views.")
        if self.fusion is not None:
            numbers = (self.fusion.mean, self.fusion.deviation, self.fusion.weights)
            tensors |= {key: torch.from_numpy(values) for key, values in zip(_FUSION, numbers, strict=True)}
        # The path of a weights file means nothing on another machine; the fingerprint says which it was.
        recipe = {**to_mapping(self.config), "backbone_weights": None, "view_backbone_weights": None}
        config = {"recipe": recipe, **self._backbone_cards(), **self.card}
        calibration = None if self.calibration is None else self.calibration.to_dict()
        if calibration is not None and self.trained_on is not None:
            calibration["extra"]["trained_on"] = pack(self.trained_on)
        if calibration is not None and len(self.fitted_on):
            calibration["extra"]["fitted_on"] = pack(self.fitted_on)
        write_model(Path(folder), tensors, config, calibration, readme or self._readme())

    def _readme(self) -> str:
        side = self.quick.backbone.side if self.quick is not None else None
        return model_card(self.config, self.card, self.calibration, side)

    @classmethod
    def load(
        cls,
        model: str | Path,
        device: str = "auto",
        backbone_weights: str | None = None,
        allow_downloads: bool = False,
        view_backbone_weights: str | None = None,
        precision: str | None = None,
    ) -> Detector:
        """See `load`. `view_backbone_weights` is a file for the backbone of the quick views; without it, the
        first file is for whichever of the two took its weights from a file."""
        folder = resolve_model(str(model))
        files = read_model(folder, _expected_tensors)
        recorded = files.config.get("view_backbone")
        if view_backbone_weights is None and isinstance(recorded, Mapping) and "file" in recorded:
            backbone_weights, view_backbone_weights = None, backbone_weights
        config = dataclasses.replace(
            files.recipe,
            backbone_weights=backbone_weights,
            view_backbone_weights=view_backbone_weights,
            precision=precision or files.recipe.precision,
        )
        target = pick_device(device)
        generator = quick = fusion = None
        if config.has_generator:
            similarity = build_similarity(config, download=allow_downloads)
            statistics = _part(files.tensors, "similarity.")
            similarity.make_room({key: tensor.shape for key, tensor in statistics.items()})
            _check_backbone("backbone", files.config, similarity.backbone_card(), folder)
            with torch.device("meta"):
                networks = build_networks(config)
            networks.load_state_dict({k: files.tensors[k] for k in networks.state_dict()}, assign=True)
            for key in ("encoder.norm.count", "encoder.norm.variance"):
                if (files.tensors[key] < 0).any():
                    raise PadError(f"{folder}: tensor '{key}' must not be negative; refused")
            similarity.load_statistics_state(statistics)
            generator = GeneratorView(config, networks, similarity, target)
        if config.quick_views:
            quick = build_quick(config, download=allow_downloads)
            _check_backbone("view_backbone", files.config, quick.backbone.card(), folder)
            quick.load(_part(files.tensors, "views."))
        if _FUSION[0] in files.tensors:
            fusion = Fusion.checked(config.model_views, [files.tensors[key] for key in _FUSION], str(folder))
        calibration = files.calibration and Calibration.from_dict(
            files.calibration, f"{folder / 'calibration.json'}"
        )
        card = {k: v for k, v in files.config.items() if k not in _NOT_OF_THE_CARD}
        trained_on, fitted_on = _hashes_in(calibration) if calibration else (None, NO_HASHES)
        return cls(config, generator, quick, target, calibration or None, card, trained_on, fusion, fitted_on)

    def _backbone_cards(self) -> dict[str, dict[str, str]]:
        cards = {}
        if self.generator is not None:
            card = self.generator.similarity.backbone_card()
            cards["backbone"] = _with_file(card, self.config.backbone_weights)
        if self.quick is not None:
            file = self.config.view_backbone_weights
            cards["view_backbone"] = _with_file(self.quick.backbone.card(), file)
        return cards


def _hashes_in(calibration: Calibration) -> tuple[Hashes | None, Hashes]:
    """Takes what the model was trained and fitted on out of what it keeps with its calibration."""
    trained, fitted = (calibration.extra.pop(key, None) for key in ("trained_on", "fitted_on"))
    return None if trained is None else unpack(trained), NO_HASHES if fitted is None else unpack(fitted)


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
    """What model.safetensors must hold for a recipe, on the `meta` device: it takes no memory. The state of
    the quick views is checked where it is loaded, against the backbone that they see through."""
    tensors: dict[str, Tensor] = {}
    with torch.device("meta"):
        if config.has_generator:
            tensors |= build_networks(config).state_dict()
            if config.similarity == "relative-perceptual-l1":
                similarity = build_similarity(
                    dataclasses.replace(config, backbone_weights=None), pretrained=False
                )
                similarity.make_room({k: v.shape for k, v in _part(found, "similarity.").items()})
                tensors |= _named(similarity.statistics_state(), "similarity.")
        if config.quick_views:
            quick = {k: v for k, v in found.items() if k.startswith("views.")}
            tensors |= {k: torch.empty(v.shape, dtype=v.dtype) for k, v in quick.items()}
        if any(key in found for key in _FUSION):  # before it is calibrated, a model has none
            tensors |= {key: torch.empty(len(config.model_views), dtype=torch.float64) for key in _FUSION}
    return tensors


def _part(tensors: Mapping[str, Named], prefix: str) -> dict[str, Named]:
    """What is named so in model.safetensors, by the rest of its name."""
    return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The inverse of `_part`."""
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def _with_file(card: dict[str, str], weights: str | None) -> dict[str, str]:
    """Which weights they were; `file` where they came from a local one, which nobody else may have."""
    return {**card, "file": Path(weights).name} if card and weights else card


def _check_backbone(key: str, card: Mapping[str, Any], present: Mapping[str, str], folder: Path) -> None:
    recorded, option = card.get(key), f"{key}_weights"
    if not isinstance(recorded, Mapping) or not present:
        return
    if recorded.get("fingerprint") != present["fingerprint"]:
        raise PadError(
            f"{folder} was trained with other weights of the backbone {present['name']} than these, "
            f"so its scores would not be comparable; give the right file with --{option.replace('_', '-')} "
            f"(in training with --set {option}=FILE)"
        )
