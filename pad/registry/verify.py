"""Whether a model of the zoo is whole, loads, and scores its sample images as recorded in verify.json."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pad.config import zoo_folder
from pad.detector import Detector
from pad.errors import PadError
from pad.remote.cache import sha256
from pad.store.files import atomic
from pad.store.hub import resolve_model
from pad.store.index import is_inside, read_index
from pad.store.model_folder import MAX_OTHER, check_inside, read_inside, read_model
from pad.store.plain_json import parse_json

VERIFY = "verify.json"  # beside the card: {"tolerance": 0.03, "scores": {"samples/a.png": 0.73, ...}}


def verify_model(name: str, root: Path | None = None) -> str:
    """Checks one model of the zoo: its files' sha256, that it loads, and that it scores its sample images
    (`verify.json`) as recorded, within the recorded relative tolerance.

    Returns what was checked, as a phrase. Raises PadError that names the file, or the image and its scores.
    """
    root = root or zoo_folder()
    model = read_index(root).get(name)
    folder = resolve_model(f"zoo:{name}", root)
    done = []
    if model is not None and folder == root / model.folder:
        for file, digest in model.files.items():
            check_inside(folder, folder / file)
            if not (folder / file).is_file():
                raise PadError(f"{folder / file} is missing")
            if sha256(folder / file) != digest:
                raise PadError(f"{folder / file} is not the file of the index: its sha256 differs")
        done.append(f"{len(model.files)} files as in the index")
    elif model is not None:
        done.append("files as in the index")  # download() has compared them
    else:
        done.append("not in the index")
    read_model(folder)
    record = _read_record(folder)
    if record is None:
        Detector.load(folder, "cpu")
        return ", ".join([*done, f"loads, no {VERIFY} to score"])
    tolerance, scores = record
    done.append(_score_again(folder, scores, tolerance))
    return ", ".join(done)


def _score_again(folder: Path, scores: dict[str, float], tolerance: float) -> str:
    for image in scores:
        check_inside(folder, folder / image)
    detector = Detector.load(folder, "cpu")
    found = detector.score([folder / image for image in scores])
    worst = 0.0
    for (image, recorded), score in zip(scores.items(), found.tolist(), strict=True):
        apart = abs(score - recorded) / max(abs(recorded), 1e-12)
        if not apart <= tolerance:  # also when it is NaN
            raise PadError(f"{folder / image} scores {score:.6g}, recorded is {recorded:.6g}")
        worst = max(worst, apart)
    return f"{len(scores)} images score as recorded (within {worst:.1e})"


def _read_record(folder: Path) -> tuple[float, dict[str, float]] | None:
    """(tolerance, {image: score}) of verify.json, or None where there is none."""
    path = folder / VERIFY
    if not path.exists():
        return None
    try:
        record = parse_json(read_inside(folder, VERIFY, MAX_OTHER), path)
        tolerance, scores = float(record["tolerance"]), dict(record["scores"])
        good = all(is_inside(image) and math.isfinite(score) for image, score in scores.items())
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
        good = False
    if not good or not scores or not 0 <= tolerance <= 0.1:
        raise PadError(
            f'{path} is not of the form {{"tolerance": 0.03, "scores": {{"samples/a.png": 0.73}}}}'
        )
    return tolerance, scores


def write_record(folder: Path, scores: dict[str, float], tolerance: float = 0.03) -> None:
    """Records the scores of sample images for `pad zoo verify`.

    Args:
        folder: the model's folder in the zoo.
        scores: by the image's path inside the folder, such as "samples/normal-0.png".
        tolerance: relative; a machine that computes in bfloat16 differs from one in float32 by about 1 %.
    """
    text = json.dumps({"tolerance": tolerance, "scores": {k: float(v) for k, v in scores.items()}}, indent=1)
    with atomic(folder / VERIFY) as file:
        file.write(f"{text}\n".encode())
    _read_record(folder)
