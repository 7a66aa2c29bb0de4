"""`pad train`: data -> run folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pad.config import Config, from_mapping, load_recipe, parse_assignments, to_mapping
from pad.detector import Detector
from pad.devices import pick_device
from pad.errors import PadError
from pad.images.hashes import joined
from pad.images.identity import hashes_of
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.calibration import round_up
from pad.learning.comparison import format_quality, warnings_of
from pad.learning.quick import most_fitted
from pad.learning.replay import NO_REPLAY, Replay, make_replay
from pad.learning.run import check_recipe, readable, split_images, train_detector
from pad.recipes import build_config
from pad.store.files import CannotWrite
from pad.store.hub import resolve_model
from pad.store.model_folder import fingerprint
from pad.store.run_folder import RunFolder
from pad.tolerance import describe_tolerance

FINE_TUNING_SHARE = (
    0.15  # of the steps of the model it starts from: with all around them, a fifth of its time
)
FINE_TUNING_STEPS = 75  # at least, if that model has had as many: it may itself come from fine-tuning
FREE_ON_RESUME = (
    "steps",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "tensorboard",
    "backbone_weights",  # where the file lies; what is in it is checked
    "view_backbone_weights",
)


def train(arguments: argparse.Namespace) -> int:
    """`pad train`: data -> run folder."""
    folder = RunFolder(arguments.out)
    with folder.locked():
        try:
            return _train(arguments, folder)
        except CannotWrite as error:
            if not folder.started:
                raise
            raise PadError(
                f"{error}; what {folder.path} holds is kept: make room, and go on with --resume"
            ) from None


def _train(arguments: argparse.Namespace, folder: RunFolder) -> int:
    device = pick_device(arguments.device)
    if folder.started and not arguments.resume:
        raise PadError(
            f"--out {folder.path} already holds a run; go on with --resume, or name another folder"
        )
    before = _before(folder) if arguments.resume else {}
    checkpoint = folder.read_checkpoint() if arguments.resume else None
    request = _request(before, arguments, folder)
    settings = _given(arguments)
    images = resolve(request["data"], "train", request["data_root"])
    recipe = before.get("recipe") or (checkpoint["recipe"] if checkpoint else None)
    start = _start(request, before, {**(recipe or {}), **settings}, arguments)
    if recipe is None:
        config = _fresh_config(start, arguments.config, settings, images, bool(request["minutes"]))
    else:
        config = _resumed_config(recipe, arguments.config, settings)
    if request["minutes"]:
        config = _to_be_trained(config, settings)
    if checkpoint is not None:
        _check_unchanged(from_mapping(checkpoint["recipe"]), config)
    check_recipe(config, start, request["data_root"])
    check = _check(request, config) if request["check"] else None
    trained = start.trained_on if start else None
    training, calibration = split_images(images, config, trained, progress=True)
    new = joined(hashes_of(training), hashes_of(calibration))
    if start is not None and start.generator is None and not request["replay"]:
        raise PadError(
            "--from: the model has no generator to replay its old normal by: give images of it with "
            "--replay, or let it be forgotten with --replay none"
        )
    old_images = _old_images(request, before) if start else None
    replay = None
    if start is not None and config.has_generator and request["replay"] != [NO_REPLAY]:
        replay = make_replay(start, len(training), old_images, new)
    folder.write_request({**request, "recipe": to_mapping(config)})
    if arguments.resume and checkpoint is None and config.has_generator:
        print(f"{folder.path} has no checkpoint yet: starting from the beginning", file=sys.stderr)
    _announce(config, training, calibration, request["minutes"], checkpoint)
    if start is not None:
        _say_what_was_trained_on(start, training)
    detector = train_detector(
        config,
        training,
        calibration,
        device,
        folder.path,
        request["minutes"],
        checkpoint=checkpoint,
        start=start,
        progress=True,
        data_root=request["data_root"],
        replay=replay,
        check=check,
        old_images=old_images,
    )
    _report(detector, folder.path)
    if start is not None:
        _report_fine_tuning(detector, replay)
    return 0


def _announce(
    config: Config,
    training: ImageSet,
    calibration: ImageSet,
    minutes: float | None,
    checkpoint: dict[str, Any] | None,
) -> None:
    """What is seen of the images, what will be done, and which rates can be held afterwards."""
    tiles = f"cut into overlapping tiles of {config.tile} pixels, " if config.tile else ""
    seen = f"{tiles}read at {config.input_side}x{config.input_side}, "
    seen += "grey" if config.channels == 1 else "colour"
    if config.fit == "crop":
        seen += ", cropped to their centre where they are not square"
    if config.tolerate:
        seen += f"; as normal: {describe_tolerance(config.tolerate)}"
    if not config.has_generator:
        later = "; no generator: --resume --steps N adds one" if "generator" in config.views else ""
        later = "; no generator: it does not look at tiles" if config.tile else later
        print(f"fitting the views {', '.join(config.quick_views)} on {training.describe()} ({seen}){later}")
        judges = min(len(training), most_fitted(config))
    else:
        length = f"{minutes:g} minutes" if minutes else f"{config.steps} steps"
        since = f", from step {checkpoint['trainer']['steps_done']}" if checkpoint else ""
        print(
            f"training on {training.describe()} ({seen}) for {length}{since}; "
            f"{len(calibration)} more are kept for calibration"
        )
        judges = min(len(calibration), most_fitted(config) // 2) if config.quick_views else len(calibration)
    print(f"false-alarm rates can be held from --fpr {round_up(1 / (judges + 1))} up", flush=True)


# What was asked for, now or when the run was started -----------------------------------------------

_KINDS: dict[str, type | tuple[type, ...]] = {
    "data": list,
    "data_root": str,
    "config": str,
    "set": list,
    "steps": int,
    "minutes": (int, float),
    "seed": int,
    "from": str,
    "from_sha256": str,
    "replay": list,
    "replay_sha256": str,
    "check": list,
    "recipe": dict,
}


def _before(folder: RunFolder) -> dict[str, Any]:
    """What the run was started with, as far as it is recorded. Raises PadError for a damaged record."""
    before = folder.read_request()
    for key, kind in _KINDS.items():
        if before.get(key) is not None and not isinstance(before[key], kind):
            raise PadError(f"{folder.path / 'run.yaml'}: '{key}' is not what `pad train` writes there")
    return before


def _request(before: dict[str, Any], arguments: argparse.Namespace, folder: RunFolder) -> dict[str, Any]:
    """The whole request: what is asked for now, and else what was asked for before."""
    data = arguments.data or before.get("data")
    if not data and arguments.resume and not folder.started:
        raise PadError(f"--resume: {folder.path} holds no run to go on with; start one with --data")
    if not data:
        raise PadError("--data is missing: name your normal images")
    minutes, steps = arguments.minutes, arguments.steps
    if minutes is None and steps is None:
        minutes, steps = before.get("minutes"), before.get("steps")
    start, replay = arguments.start or before.get("from"), arguments.replay or before.get("replay")
    if replay and not start:
        raise PadError("--replay goes with --from MODEL: it is what keeps that model's old normal")
    check = arguments.check or before.get("check")
    if check and not start:
        raise PadError("--check goes with --from MODEL: it is what that model finds and should go on finding")
    known = before.get("set") or []
    return {
        "data": data,
        "data_root": arguments.data_root or before.get("data_root"),
        "config": arguments.config or before.get("config"),
        "set": [*known, *(word for word in arguments.set if word not in known)],
        "steps": steps,
        "minutes": minutes,
        "seed": before.get("seed") if arguments.seed is None else arguments.seed,
        "from": start,
        "from_sha256": None,
        "replay": replay,
        "replay_sha256": None,
        "check": check,
    }


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of the recipe that are asked for now, unchecked."""
    settings = parse_assignments(arguments.set)
    for key, value in (
        ("steps", arguments.steps),
        ("seed", arguments.seed),
        ("tolerate", arguments.tolerate),
        ("tile", arguments.tile),
    ):
        if value is not None:
            settings[key] = value
    return settings


def _start(
    request: dict[str, Any], before: dict[str, Any], settings: dict[str, Any], arguments: argparse.Namespace
) -> Detector | None:
    """The model to go on from; its fingerprint is recorded in the request. Raises PadError if it is another
    one than before."""
    if request["from"]:
        folder = resolve_model(request["from"])
        request["from_sha256"] = fingerprint(folder)
    if "recipe" in before and before.get("from_sha256") != request["from_sha256"]:
        raise PadError(
            f"--resume: {request['from']} is not the model that the run was started from, or was changed "
            "since; put that one back, or start anew with another --out"
        )
    if not request["from"]:
        return None
    files = [settings.get(key) for key in ("backbone_weights", "view_backbone_weights")]
    weights, view_weights = (None if file is None else str(file) for file in files)
    return Detector.load(folder, arguments.device, weights, arguments.allow_downloads, view_weights)


def _check(request: dict[str, Any], config: Config) -> ImageSet:
    """The anomalies of --check: of labelled images those that are anomalous, otherwise all."""
    images = resolve(request["check"], "evaluate", request["data_root"])
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
    elif before := int(start.trained_among(training, views=False).sum()):
        print(f"{before} of these were trained on before; none of them calibrates", flush=True)


def _old_images(request: dict[str, Any], before: dict[str, Any]) -> ImageSet | None:
    """Images of what the model that is fine-tuned calls normal, if any were given; their fingerprint is
    recorded in the request. Raises PadError if it is another replay than before."""
    images = None
    if request["replay"] and request["replay"] != [NO_REPLAY]:
        images = resolve(request["replay"], "train", request["data_root"])
        request["replay_sha256"] = images.fingerprint()["sha256"]
    if "recipe" in before and _what_is_replayed(before) != _what_is_replayed(request):
        raise PadError("--resume: the run was started with another --replay; give that, or another --out")
    return images


def _what_is_replayed(request: dict[str, Any]) -> Any:
    """By its content, wherever it lies."""
    return request.get("replay_sha256") or request.get("replay")


# The recipe ----------------------------------------------------------------------------------------


def _fresh_config(
    start: Detector | None, name: str | None, settings: dict[str, Any], images: ImageSet, timed: bool
) -> Config:
    if start is None:
        return build_config(name, settings, images, timed)
    steps = max(round(FINE_TUNING_SHARE * start.config.steps), min(FINE_TUNING_STEPS, start.config.steps))
    # In so few steps the critics, which are as they were, add time and nothing that was measurable.
    values = {**to_mapping(start.config), "steps": steps, "warm_up": 1.0, "critic_head_start": 0.0}
    return from_mapping({**values, **(load_recipe(name) if name else {}), **settings})


def _resumed_config(recipe: dict[str, Any], name: str | None, settings: dict[str, Any]) -> Config:
    """The recipe of the run with what may change while it rests. Raises PadError if something else is to."""
    config = from_mapping(recipe)
    wanted = {**(load_recipe(name) if name else {}), **settings}
    wanted = {key: value for key, value in wanted.items() if value != "auto" or key == "precision"}
    changed = config.replace(**wanted) if wanted else config
    _check_unchanged(config, changed)
    return changed


def _to_be_trained(config: Config, settings: dict[str, Any]) -> Config:
    """A recipe for `--minutes`: with a generator, also where the run had the quick views alone so far. Raises
    PadError if it is to have none."""
    if not config.steps and settings.get("steps") != 0:
        config = config.replace(steps=Config.steps)
    if config.tile:
        raise PadError("--minutes trains a generator, which does not look at tiles: leave it or --tile away")
    if not config.has_generator:
        raise PadError(
            "--minutes trains a generator, and the recipe has none (settings 'views' and 'steps'): leave one "
            "of them away"
        )
    return config


def _check_unchanged(before: Config, now: Config) -> None:
    """Raises PadError if a setting differs that the weights depend on."""
    theirs, ours = to_mapping(before), to_mapping(now)
    for key in theirs:
        if key not in FREE_ON_RESUME and ours[key] != theirs[key]:
            raise PadError(
                f"--resume: the run was started with {key}={theirs[key]!r} and cannot have {ours[key]!r} now"
            )


# What is said at the end ---------------------------------------------------------------------------


def _report(detector: Detector, folder: Path) -> None:
    training = detector.card["training"]
    done = f"trained for {training['steps']} steps" if training["steps"] else "fitted"
    print(
        f"{done} in {training['seconds'] / 60:.1f} minutes; "
        f"calibrated on {len(detector.calibration.scores) if detector.calibration else 0} normal images"
    )
    print(f"model: {folder / 'model'}\nscore images with: python evaluate.py {folder} IMAGES --out RESULTS")


def _report_fine_tuning(detector: Detector, replay: Replay | None) -> None:
    """Normal images and anomalies before and after."""
    generated = replay is not None and replay.generated
    quality = detector.card["fine_tuning"]["quality"]
    print(f"\n{format_quality(quality, generated)}")
    for warning in warnings_of(quality):
        print(f"warning: {warning}", file=sys.stderr)
    if generated:
        print(
            "the old normal was replayed from the model itself, so its false-alarm rate is an estimate; "
            "to measure it, give images of it: --replay DIR, or pad calibrate"
        )
