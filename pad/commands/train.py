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
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.learning.replay import NO_REPLAY, Replay, compare, format_quality, make_replay
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
    start = _start(asked["from"], arguments)
    if checkpoint is not None:
        config = _resumed_config(checkpoint["recipe"], arguments.config, settings)
    else:
        config = _fresh_config(start, arguments.config, settings, images)
    training, calibration = split_images(images, config)
    replay = _replay(start, asked, len(training)) if start else None
    _write_run(folder, asked)
    length = f"{asked['minutes']:g} minutes" if asked["minutes"] else f"{config.steps} steps"
    print(
        f"training on {training.describe()} for {length}; {len(calibration)} more are kept for calibration",
        flush=True,
    )
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
        _report_fine_tuning(start, detector, replay, calibration, folder)
    return 0


def _start(model: str | None, arguments: argparse.Namespace) -> Detector | None:
    """The model that is fine-tuned."""
    if model is None:
        return None
    return Detector.load(model, arguments.device, allow_downloads=arguments.allow_downloads)


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
    if replay and not start:
        raise PadError("--replay goes with --from MODEL: it is what keeps that model's old normal")
    return {"data": data, "data_root": root, "minutes": minutes, "from": start, "replay": replay}


def _replay(start: Detector, asked: dict[str, Any], count: int) -> Replay | None:
    """What is replayed of the model that is fine-tuned, as many images as there are new ones."""
    if asked["replay"] == [NO_REPLAY]:
        return None
    folder = resolve(asked["replay"], "train", asked["data_root"]) if asked["replay"] else None
    return make_replay(start, count, folder)


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
    start: Detector, detector: Detector, replay: Replay | None, held_out: ImageSet, folder: Path
) -> None:
    """Old and new normal images before and after, on the terminal and in the model's card."""
    held_out, _ = readable(held_out, detector.config)
    quality = compare(start, detector, replay, held_out)
    detector.card["fine_tuning"]["quality"] = quality
    detector.save(folder / "model")
    print(f"\n{format_quality(quality, replay is not None and replay.generated)}")
    if replay is not None and replay.generated:
        print(
            "the old normal was replayed from the model itself, so its false-alarm rate is an estimate; "
            "to measure it, give images of it: --replay DIR, or pad calibrate"
        )
