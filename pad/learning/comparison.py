"""What fine-tuning gained and what it cost: normal images, and anomalies, before and after.

Normal images that calibrate say nothing about their own threshold: of n scores no more than the allowed
share lies above it, whatever the model. So each half of them is judged by a calibration on the other half.

A wider normal may hide what was found before. Real anomalies show it best (`--check`). Without any, normal
images stand in for them that are turned by a quarter (as in Golan and El-Yaniv, "Deep anomaly detection using
geometric transformations", 2018) or whose pieces are shuffled (the jigsaw of Noroozi and Favaro, 2016): as
strange in both models, and measured on seven fine-tunings of clothes the share of them that was found fell
where that of the other classes fell, and stayed where it stayed, but for one whose new kind (shirts) looked
like what was missed afterwards (coats).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pad.config import FPR
from pad.detector import Detector
from pad.images.imageset import ImageSet
from pad.images.stream import load_all
from pad.judging.calibration import Calibration
from pad.learning.replay import Replay, known_scores, make_replay

PSEUDO_IMAGES = 128  # of the old and of the new normal that are made strange, in both ways
PIECES = 4  # a side
FALL = 0.1  # of the share that is found: more is said in a warning

Scores = NDArray[np.float64]
Quality = dict[str, dict[str, Any]]


def compare(
    old: Detector,
    new: Detector,
    replay: Replay | None,
    held_out: ImageSet,
    check: ImageSet | None = None,
    new_normal: Calibration | None = None,
    known: Scores | None = None,
) -> Quality:
    """Images under both models: `{"old" | "new" | "pseudo" | "check": {"images", "before", "after"}}`, each
    of the last two with the `mean_score` and, where calibrated, the share `flagged` at 5 %.

    old: the model that was fine-tuned. held_out: the new normal images that calibrate. check: anomalies that
    should go on being found; `pseudo` are stand-ins for them (see the module's text). new_normal: of the
    new model, on `held_out` alone; None: their scores are computed, which says too little of views that were
    fitted on them. known: scores of an old normal by which it was calibrated besides, without a replay.
    """
    of_new = (
        old.score(held_out).astype(np.float64),
        new_normal.scores if new_normal else new.score(held_out).astype(np.float64),
    )
    of_old = None if replay is None else _both(old, new, replay.held_out)
    if replay is not None and of_old is not None:
        known = known_scores(old, new, replay, *of_old)
    elif known is None:
        known = np.empty(0)
    real = replay is not None and not replay.generated
    apart = _judged_apart(of_new[1], known, real) if new.calibration else {}
    quality: Quality = {}
    if of_old is not None:
        quality["old"] = _entry(old, new, of_old, apart.get("old"), known_apart=real)
    quality["new"] = _entry(old, new, of_new, apart.get("new"), known_apart=True)
    strange = [_both(old, new, made) for made in _pseudo_of(old, replay, held_out)]
    before, after = (np.concatenate(scores) for scores in zip(*strange, strict=True))
    quality["pseudo"] = _entry(old, new, (before, after))
    if check is not None:
        quality["check"] = {**_entry(old, new, _both(old, new, check)), "source": check.source}
    return quality


def _both(old: Detector, new: Detector, images: Any) -> tuple[Scores, Scores]:
    return old.score(images).astype(np.float64), new.score(images).astype(np.float64)


def _entry(
    old: Detector,
    new: Detector,
    scores: tuple[Scores, Scores],
    apart: float | None = None,
    known_apart: bool = False,
) -> dict[str, Any]:
    """A line of the comparison. `known_apart`: the images calibrate the new model, so that only the share
    `apart`, if there is one, says how many are flagged after."""
    entry: dict[str, Any] = {"images": len(scores[0])}
    for when, detector, of in zip(("before", "after"), (old, new), scores, strict=True):
        entry[when] = {"mean_score": round(float(of.mean()), 5)}
        share = apart if when == "after" and known_apart else _flagged(detector.calibration, of)
        if share is not None:
            entry[when]["flagged"] = round(share, 5)
    return entry


def _flagged(calibration: Calibration | None, scores: Scores) -> float | None:
    return None if calibration is None else float(calibration.verdicts(scores, FPR).mean())


def _judged_apart(new: Scores, known: Scores, real: bool, seed: int = 0) -> dict[str, float]:
    """The share of the new, and of `real` old normal images, that is flagged by a calibration on the other
    half (and on the `known` scores of the old normal where these are not real images'); nothing where half of
    them cannot hold the rate."""
    measured = {"new": new, "old": known} if real else {"new": new}
    fixed = np.empty(0) if real else known
    random = np.random.default_rng(seed)
    first = {name: random.permutation(len(of)) < len(of) // 2 for name, of in measured.items()}
    flagged = dict.fromkeys(measured, 0)
    for half in (first, {name: ~of for name, of in first.items()}):
        others = [of[~half[name]] for name, of in measured.items()]
        calibration = Calibration(np.concatenate([*others, fixed]))
        if calibration.note(FPR):
            return {}
        for name, of in measured.items():
            flagged[name] += int(calibration.verdicts(of[half[name]], FPR).sum())
    return {name: flagged[name] / len(of) for name, of in measured.items()}


# Stand-ins for anomalies ----------------------------------------------------------------------------


def _pseudo_of(old: Detector, replay: Replay | None, held_out: ImageSet) -> Iterator[Tensor]:
    """New and, where there are any, old normal images made strange."""
    new, _, _ = load_all(held_out.subset(range(min(PSEUDO_IMAGES, len(held_out)))), old.config)
    yield pseudo_anomalies(new, old.config.seed)
    if replay is None and old.generator is not None:
        replay = make_replay(old, 1)
    if replay is not None:
        yield pseudo_anomalies(replay.held_out[:PSEUDO_IMAGES], old.config.seed)


def pseudo_anomalies(images: Tensor, seed: int = 0) -> Tensor:
    """Images (n, channels, size, size), each turned by a quarter, then each with its pieces in another order:
    (2 n, channels, size, size)."""
    random = torch.Generator().manual_seed(seed)
    return torch.cat([images.rot90(1, (2, 3)), torch.stack([_shuffled(image, random) for image in images])])


def _shuffled(image: Tensor, random: torch.Generator) -> Tensor:
    """(channels, size, size) with its 4x4 pieces in random order; what the size leaves over stays."""
    side = image.shape[-1] // PIECES
    whole = side * PIECES
    pieces = image[:, :whole, :whole].unfold(1, side, side).unfold(2, side, side).flatten(1, 2)
    mixed = pieces[:, torch.randperm(PIECES**2, generator=random)].unflatten(1, (PIECES, PIECES))
    result = image.clone()
    result[:, :whole, :whole] = mixed.permute(0, 1, 3, 2, 4).reshape(-1, whole, whole)
    return result


# For the terminal -----------------------------------------------------------------------------------


def format_quality(quality: Mapping[str, Any], generated: bool) -> str:
    """The comparison as a table."""
    names = {
        "old": "old normal, generated" if generated else "old normal, held out",
        "new": "new normal, held out",
        "pseudo": "pseudo-anomalies",
        "check": "anomalies of --check",
    }
    lines = [f"{'':24}{'':>8}  {'mean score':>16}  {'flagged at 5 %':>16}"]
    lines.append(f"{'':24}{'images':>8}  {'before':>8}{'after':>8}  {'before':>8}{'after':>8}")
    for key, of in quality.items():
        cells = [f"{of[when]['mean_score']:8.3f}" for when in ("before", "after")]
        flags = [_share(of[when].get("flagged")) for when in ("before", "after")]
        lines.append(f"{names[key]:24}{of['images']:8,}  {''.join(cells)}  {''.join(flags)}".rstrip())
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return f"{'':>8}" if value is None else f"{100 * value:6.1f} %"


def warnings_of(quality: Mapping[str, Any]) -> Iterator[str]:
    """A line for each kind of anomaly of which clearly fewer are found after fine-tuning than before."""
    more = {
        "pseudo": "pseudo-anomalies (normal images turned or in pieces)",
        "check": "the anomalies of --check",
    }
    advice = {
        "pseudo": "others may be missed as well; to measure it on yours: --check DATA",
        "check": "what is normal has become too wide for them; a model for each kind would find them",
    }
    for key in (key for key in more if key in quality):
        before, after = (quality[key][when].get("flagged") for when in ("before", "after"))
        if before is not None and after is not None and before - after > FALL:
            yield (
                f"of {more[key]} {100 * before:.1f} % were found before fine-tuning and {100 * after:.1f} % "
                f"are found now: {advice[key]}"
            )
