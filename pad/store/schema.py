"""What `config.yaml` and `calibration.json` of a model may hold: everything that is ever read of them is
checked here, once, by its type and its range.

A model may come from a stranger. Values that this version does not know are kept, as long as they are plain:
text, whole numbers of 64 bits, finite numbers, true, false, null, and lists and mappings of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec

from pad.config import MOST_LATENT, Config, from_mapping
from pad.errors import PadError, shown
from pad.images.hashes import unpack

FORMAT = 2  # of config.yaml; a newer one is refused. 1: of the time when there was one view
MOST_TEXT = 10_000  # characters
MOST_NESTED = 16  # lists and mappings in one another
MOST_LATENTS = 512  # images that fine-tuning can replay; a model keeps 256
MOST_SCORE = 3e38  # float32

# What settings mean that the recipe of an older model does not name.
_UNNAMED = {"residual_components": 0, "feature_channels": 1.0}

Text = Annotated[str, msgspec.Meta(max_length=MOST_TEXT)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Score = Annotated[float, msgspec.Meta(ge=-MOST_SCORE, le=MOST_SCORE)]


class _Backbone(msgspec.Struct, frozen=True):
    """The pretrained network that the model was trained with."""

    name: Text = ""
    fingerprint: Text | int = ""  # an old hand may have left out the quotes
    revision: Text = ""  # on the hub


class Data(msgspec.Struct, frozen=True):
    """A set of images, as `ImageSet.fingerprint` says it."""

    source: Text = ""
    images: Count = 0
    sha256: Text = ""
    calibration_images: Count = 0
    skipped: Count = 0
    apart: Count = 0  # images that the quick views were not to learn


class Training(msgspec.Struct, frozen=True):
    """What training took."""

    steps: Count = 0
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    hardware: Text = ""
    finished: bool = False
    weights: dict[Text, float] = {}
    commit: Text = ""


class FineTuning(msgspec.Struct, frozen=True, rename={"start": "from"}):
    """What the model was fine-tuned from."""

    start: Data
    replay: Text
    replayed_images: Count = 0
    quality: dict[Text, Any] = {}


class _ModelConfig(msgspec.Struct, frozen=True):
    """config.yaml without its `recipe`, which pad.config checks."""

    backbone: _Backbone = _Backbone()
    view_backbone: _Backbone = _Backbone()
    versions: dict[Text, Text] = {}
    data: Data = Data()
    training: Training = Training()
    fine_tuning: FineTuning | None = None
    calibration: Data = Data()


class _MapScale(msgspec.Struct, frozen=True):
    """What anomaly maps are drawn on: 0 <= low < high."""

    low: Annotated[float, msgspec.Meta(ge=0, le=MOST_SCORE)]
    high: Annotated[float, msgspec.Meta(gt=0, le=MOST_SCORE)]


class _Extra(msgspec.Struct, frozen=True):
    """What else was measured on the calibration images."""

    map_scale: _MapScale | None = None
    old_normal: Literal["estimated", "measured"] | None = None
    trained_images: Count | None = None
    views: dict[Text, list[Score]] | None = None
    view_ranks: dict[Text, list[Count]] | None = None


def check_config(values: Any, where: str) -> Config:
    """The recipe of a model whose `config.yaml` holds `values`.

    Raises PadError, beginning with `where`, for anything that is not as this module says, for a newer
    format, and for unknown settings or unusable values of the recipe.
    """
    if not isinstance(values, dict):
        raise PadError(f"{where} is not a mapping of 'key: value' lines; refused")
    version = values.get("format")
    if type(version) is not int or version < 1:
        raise PadError(f"{where} has no 'format: {FORMAT}' line: not the config of a model")
    if version > FORMAT:
        raise PadError(
            f"{where} was made by a newer pad (format {shown(version)}, this one reads {FORMAT}): upgrade pad"
        )
    if not isinstance(values.get("recipe"), dict):
        raise PadError(f"{where} has no 'recipe' mapping; refused")
    _check_plain(values, where)
    _convert(values, _ModelConfig, where)
    try:
        return from_mapping({**_UNNAMED, **values["recipe"]}, where)
    except PadError as error:
        text = str(error).removeprefix(f"{where}: ")
        raise PadError(f"{where}: {text:.400}") from None


def check_calibration(values: Any, config: Config, where: str) -> None:
    """Raises PadError, beginning with `where`, unless `values` calibrate a model of that recipe."""
    scores = values.get("scores") if isinstance(values, dict) else None
    if not isinstance(scores, list):
        raise PadError(f"{where} has no list of 'scores'; refused")
    if not scores:
        raise PadError(f"{where}: 'scores' is empty; refused")
    if not all(type(s) in (int, float) and -MOST_SCORE < s < MOST_SCORE for s in scores):
        raise PadError(f"{where}: its scores are not all finite numbers; refused")
    if any(a > b for a, b in pairwise(scores)):
        raise PadError(f"{where}: its scores are not sorted, so it was changed by hand; refused")
    extra = values.get("extra", {})
    if not isinstance(extra, dict):
        raise PadError(f"{where}: 'extra' is not a mapping; refused")
    _check_latents(extra.get("replay"), config.latent_dim * config.latent_resolution**2, where)
    large = ("replay", "trained_on", "fitted_on")
    for key in large[1:]:
        _check_hashes(extra.get(key), key, where)
    rest = {key: value for key, value in values.items() if key not in ("scores", "extra")}
    _check_plain({**rest, "extra": {k: v for k, v in extra.items() if k not in large}}, where)
    checked = _convert(extra, _Extra, f"{where}: extra")
    if any(not known or known != sorted(known) for known in (checked.views or {}).values()):
        raise PadError(f"{where}: 'views' must hold sorted scores; refused")
    for view, ranks in (checked.view_ranks or {}).items():
        if sorted(ranks) != list(range(len((checked.views or {}).get(view, ())))):
            raise PadError(f"{where}: 'view_ranks' must hold the rank of each score of 'views'; refused")
    scale = checked.map_scale
    if scale is not None and not scale.low < scale.high:
        raise PadError(f"{where}: 'map_scale' must hold numbers, 0 <= low < high; refused")


def _check_latents(kept: Any, numbers: int, where: str) -> None:
    if kept is None:
        return
    if not isinstance(kept, list) or len(kept) > MOST_LATENTS:
        raise PadError(f"{where}: 'replay' must be a list of at most {MOST_LATENTS} latents; refused")
    for row in kept:
        if not isinstance(row, list) or len(row) != numbers or not all(map(_is_latent, row)):
            raise PadError(f"{where}: 'replay' must hold lists of {numbers:,} finite numbers; refused")


def _check_hashes(text: Any, key: str, where: str) -> None:
    if text is None:
        return
    try:
        unpack(text)
    except ValueError:
        raise PadError(f"{where}: '{key}' must hold hashes of images in base64; refused") from None


def _is_latent(value: Any) -> bool:
    return type(value) in (int, float) and -MOST_LATENT <= value <= MOST_LATENT


def _check_plain(value: Any, where: str, name: str = "", depth: int = 0) -> None:
    """Raises PadError for what is not plain: a date, bytes, a number that is not finite or too large, a
    mapping by something other than text, and what is nested too deeply."""

    def refuse(what: str) -> PadError:
        return PadError(f"{where}: {name or 'it'} {what}; refused")

    if depth > MOST_NESTED:
        raise refuse("is nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or len(key) > MOST_TEXT or not _is_unicode(key):
                raise refuse(f"has the key {shown(key)}, which is no short text")
            _check_plain(item, where, f"{name}.{key}" if name else key, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, where, name, depth + 1)
    elif isinstance(value, str):
        if len(value) > MOST_TEXT:
            raise refuse(f"holds a text of {len(value):,} characters, at most {MOST_TEXT:,}")
        if not _is_unicode(value):
            raise refuse(f"holds {shown(value)}, which is no text: half a character")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise refuse(f"cannot be {shown(value)}: a whole number has at most 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise refuse(f"cannot be {value}")
    elif value is not None:
        raise refuse(f"holds a {type(value).__name__}, {shown(value)}: write it as text, in quotes")


def _convert(values: Mapping[str, Any], kind: Any, where: str) -> Any:
    """`values`, which `_check_plain` has passed, as a `kind`."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise PadError(f"{where}: {error!s:.300}; refused".replace(" - at `$.", " at `")) from None


def _is_unicode(text: str) -> bool:
    """Whether no half of a pair of surrogates stands alone in it, which JSON and YAML can spell."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
