"""`pad train`: data -> run folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pad.config import Config, from_mapping, load_recipe, parse_assignments, to_mapping
from pad.detector import Detector
from pad.devices import pick_device
from pad.errors import PadError
from pad.images.identity import Hashes, hashes_of, joined
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.learning.comparison import compare, format_quality, warnings_of
from pad.learning.replay import NO_REPLAY, Replay, make_replay
from pad.learning.run import read_checkpoint, readable, split_images, train_detector
from pad.recipes import build_config
from pad.store.files import atomic

if TYPE_CHECKING:
    pass

FINE_TUNING_SHARE = (
    0.15  # of the steps of the model it starts from: with all around them, a fifth of its time
)
FINE_TUNING_STEPS = 75  # at least, if that model has had as many: it may itself come from fine-tuning
FREE_ON_RESUME = ("steps", "log_every", "sample_every", "checkpoint_every", "tensorboard")


def train(arguments: argparse.Namespace) -> int:
    """`pad train`: data -> run folder."""
    folder = Path(arguments.out)
    device = pick_device(arguments.device)
    settings = parse_assignments(arguments.set)
    for key, value in (("steps", arguments.steps), ("seed", arguments.seed)):
        if value is not None:
            settings[key] = value
    checkpoint = _checkpoint(folder, arguments.resume)
    asked = _asked(folder, arguments, checkpoint is not None)
    images = resolve(asked["data"], "train", asked["data_root"])
    start = Detector.load(asked["from"], arguments.device) if asked["from"] else None
    check = _check(asked, start.config) if start and asked["check"] else None
    if checkpoint is not None:
        config = _resumed_config(checkpoint["recipe"], arguments.config, settings)
    else:
        config = _fresh_config(start, arguments.config, settings, images)
    trained = start.trained_on if start else None
    training, calibration = split_images(images, config, trained, progress=True)
    replay = (
        _replay(start, asked, len(training), joined(hashes_of(training), hashes_of(calibration)))
        if start
        else None
    )
    _write_run(folder, asked)
    length = f"{asked['minutes']:g} minutes" if asked["minutes"] else f"{config.steps} steps"
    print(
        f"training on {training.describe()} for {length}; {len(calibration)} more are kept for calibration",
        flush=True,
    )
    if start is not None:
        _say_what_was_trained_on(start, training)
    detector = train_detector(
        config,
        training,
        calibration,
        device,
        folder,
        asked["minutes"],
        resume=checkpoint is not None,
        start=start,
        progress=True,
        data_root=asked["data_root"],
        replay=replay,
    )
    _report(detector, folder)
    if start is not None:
        _report_fine_tuning(start, detector, replay, calibration, check, folder)
    return 0


def _checkpoint(folder: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from. Raises PadError if the folder holds a run and there is no `--resume`."""
    if folder.exists() and not folder.is_dir():
        raise PadError(f"--out {folder} is a file; name a folder")
    if resume:
        checkpoint = read_checkpoint(folder)
        if checkpoint is None:
            print(f"{folder} has no checkpoint yet: starting from the beginning", file=sys.stderr)
        return checkpoint
    if (folder / "checkpoints").is_dir() or (folder / "model").is_dir():
        raise PadError(f"--out {folder} already holds a run; go on with --resume, or name another folder")
    return None


def _asked(folder: Path, arguments: argparse.Namespace, resuming: bool) -> dict[str, Any]:
    """The data and the time that were asked for: now, or when the run was started."""
    before: dict[str, Any] = {}
    path = folder / "run.yaml"
    if (resuming or arguments.resume) and path.is_file():
        before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    data = arguments.data or before.get("data")
    if not data:
        raise PadError("--data is missing: name your normal images")
    minutes = arguments.minutes if arguments.minutes or arguments.steps else before.get("minutes")
    root = arguments.data_root or before.get("data_root")
    start, replay = arguments.start or before.get("from"), arguments.replay or before.get("replay")
    check = arguments.check or before.get("check")
    if replay and not start:
        raise PadError("--replay goes with --from MODEL: it is what keeps that model's old normal")
    if check and not start:
        raise PadError("--check goes with --from MODEL: it is what that model finds and should go on finding")
    return {
        "data": data, "data_root": root, "minutes": minutes, "from": start, "replay": replay, "check": check
    }  # fmt: skip


def _check(asked: dict[str, Any], config: Config) -> ImageSet:
    """The anomalies of --check: of labelled images those that are anomalous, otherwise all."""
    images = resolve(asked["check"], "evaluate", asked["data_root"])
    images = images.subset(i for i, sample in enumerate(images.samples) if sample.anomalous is not False)
    images, errors = readable(images, config)
    if not len(images):
        raise PadError(f"--check: {errors[0] if errors else f'all images in {images.source} are normal'}")
    return images


def _say_what_was_trained_on(start: Detector, training: ImageSet) -> None:
    if start.trained_on is None:
        print(
            "note: the model to go on from does not say which images it was trained on (an older version "
            "made it); if any are among --data or --replay, more new normal images than promised may be "
            "flagged",
            file=sys.stderr,
        )
    elif before := int(start.trained_among(training).sum()):
        print(f"{before} of these were trained on before; none of them calibrates", flush=True)


def _replay(start: Detector, asked: dict[str, Any], count: int, new: Hashes) -> Replay | None:
    """What is replayed of the model that is fine-tuned, as many images as there are new ones."""
    if asked["replay"] == [NO_REPLAY]:
        return None
    folder = resolve(asked["replay"], "train", asked["data_root"]) if asked["replay"] else None
    return make_replay(start, count, folder, new)


def _write_run(folder: Path, asked: dict[str, Any]) -> None:
    with atomic(folder / "run.yaml") as file:
        file.write(yaml.safe_dump(asked, sort_keys=False, allow_unicode=True).encode())


def _fresh_config(
    start: Detector | None, name: str | None, settings: dict[str, Any], images: ImageSet
) -> Config:
    if start is None:
        return build_config(name, settings, images)
    steps = max(round(FINE_TUNING_SHARE * start.config.steps), min(FINE_TUNING_STEPS, start.config.steps))
    # In so few steps the critics, which are as they were, add time and nothing that was measurable.
    values = {**to_mapping(start.config), "steps": steps, "warm_up": 1.0, "critic_head_start": 0.0}
    return from_mapping({**values, **(load_recipe(name) if name else {}), **settings})


def _resumed_config(recipe: dict[str, Any], name: str | None, settings: dict[str, Any]) -> Config:
    """The recipe of the run. Raises PadError if a setting is to change that the weights depend on."""
    config = from_mapping(recipe)
    wanted = {**(load_recipe(name) if name else {}), **settings}
    wanted = {key: value for key, value in wanted.items() if value != "auto" or key == "precision"}
    changed = config.replace(**wanted) if wanted else config
    for key, value in to_mapping(config).items():
        new = to_mapping(changed)[key]
        if new != value and key not in FREE_ON_RESUME:
            raise PadError(
                f"--resume: the run was started with {key}={value!r} and cannot go on with {new!r}"
            )
    return changed


def _report(detector: Detector, folder: Path) -> None:
    training = detector.card["training"]
    print(
        f"trained for {training['steps']} steps in {training['seconds'] / 60:.1f} minutes; "
        f"calibrated on {len(detector.calibration.scores) if detector.calibration else 0} normal images"
    )
    print(f"model: {folder / 'model'}\nscore images with: python evaluate.py {folder} IMAGES --out RESULTS")


def _report_fine_tuning(
    start: Detector,
    detector: Detector,
    replay: Replay | None,
    held_out: ImageSet,
    check: ImageSet | None,
    folder: Path,
) -> None:
    """Normal images and anomalies before and after, on the terminal and in the model's card."""
    held_out, _ = readable(held_out, detector.config)
    quality = compare(start, detector, replay, held_out, check)
    detector.card["fine_tuning"]["quality"] = quality
    detector.save(folder / "model")
    print(f"\n{format_quality(quality, replay is not None and replay.generated)}")
    for warning in warnings_of(quality):
        print(f"warning: {warning}", file=sys.stderr)
    if replay is not None and replay.generated:
        print(
            "the old normal was replayed from the model itself, so its false-alarm rate is an estimate; "
            "to measure it, give images of it: --replay DIR, or pad calibrate"
        )
