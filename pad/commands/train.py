"""`pad train`: data -> run folder."""

from __future__ import annotations

import argparse
import sys
import textwrap

import yaml

from pad import distributed
from pad.commands.requests import request_of
from pad.config import Config, to_mapping
from pad.detector import Detector
from pad.images.imageset import ImageSet
from pad.judging.calibration import round_up
from pad.learning.comparison import format_quality, warnings_of
from pad.learning.plan import Plan, carry_out, make_plan, planned
from pad.learning.replay import Replay
from pad.learning.request import TrainRequest
from pad.store.run_folder import RunFolder
from pad.tolerance import describe_tolerance


def train(arguments: argparse.Namespace) -> int:
    """`pad train`: data -> run folder."""
    with distributed.processes():
        return _train(arguments) if distributed.is_first() else _follow(arguments)


def _follow(arguments: argparse.Namespace) -> int:
    """What all processes but the first one do: plan when it has done so, and train with it."""
    request = request_of(TrainRequest, arguments)
    if arguments.dry_run:
        return 0
    distributed.wait()
    plan = make_plan(request, RunFolder(request.out))
    if plan.config.has_generator:
        carry_out(plan, stoppable=True)
    else:
        distributed.wait()
    return 0


def _train(arguments: argparse.Namespace) -> int:
    talkative, request = not arguments.quiet, request_of(TrainRequest, arguments)
    if arguments.dry_run:
        return _show(make_plan(request, RunFolder(request.out), talkative))
    with planned(request, talkative) as plan:
        distributed.wait()
        if talkative:
            _announce(plan)
        detector = carry_out(plan, talkative, stoppable=True)
        if talkative:
            _report(detector, plan)
    return 0


def _show(plan: Plan) -> int:
    """All that would be done, for --dry-run."""
    _announce(plan)
    for view in plan.config.model_views:
        print(f"view {view}: {_described(view, plan.config)}")
    recipe = yaml.safe_dump(to_mapping(plan.config), sort_keys=False, allow_unicode=True)
    print(f"recipe:\n{textwrap.indent(recipe, '  ')}dry run: nothing was written")
    return 0


def _described(view: str, config: Config) -> str:
    if view != "generator":
        return f"features of {config.view_backbone}, of pictures of {config.view_size} pixels a side"
    latent = f"{config.latent_dim}x{config.latent_resolution}x{config.latent_resolution}"
    return f"{config.similarity}, of pictures of {config.size} pixels a side, from latents of {latent}"


def _announce(plan: Plan) -> None:
    """What is seen of the images, what will be done, and which rates can be held afterwards."""
    if plan.request.resume and plan.checkpoint is None and plan.config.has_generator:
        print(f"{plan.folder.path} has no checkpoint yet: starting from the beginning", file=sys.stderr)
    config, training, checkpoint = plan.config, plan.training, plan.checkpoint
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
    else:
        length = f"{plan.record.minutes:g} minutes" if plan.record.minutes else f"{config.steps} steps"
        since = f", from step {checkpoint['trainer']['steps_done']}" if checkpoint else ""
        print(
            f"training on {training.describe()} ({seen}) for {length}{since}; "
            f"{len(plan.calibration)} more are kept for calibration"
        )
    print(f"false-alarm rates can be held from --fpr {round_up(1 / (plan.judges + 1))} up", flush=True)
    if plan.start is not None:
        _say_what_was_trained_on(plan.start, plan.training)


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


def _report(detector: Detector, plan: Plan) -> None:
    folder, training = plan.folder.path, detector.card["training"]
    done = f"trained for {training['steps']} steps" if training["steps"] else "fitted"
    print(
        f"{done} in {training['seconds'] / 60:.1f} minutes; "
        f"calibrated on {len(detector.calibration.scores) if detector.calibration else 0} normal images"
    )
    print(f"model: {folder / 'model'}\nscore images with: python evaluate.py {folder} IMAGES --out RESULTS")
    if plan.start is not None:
        _report_fine_tuning(detector, plan.replay)


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
