"""All that a training will do, made out before it does anything: a run's images, recipe and beginnings.

with planned(request) as plan:
    detector = carry_out(plan)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from pad import distributed
from pad.config import Config, from_mapping, load_recipe, to_mapping
from pad.detector import Detector
from pad.devices import pick_device
from pad.errors import PadError
from pad.images.hashes import joined_hashes
from pad.images.identity import hashes_of
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.learning.images import readable, split_images
from pad.learning.quick import most_fitted
from pad.learning.replay import Replay, make_replay
from pad.learning.request import NO_REPLAY, RunRecord, TrainRequest
from pad.learning.run import check_recipe, train_detector
from pad.recipes import build_config
from pad.store.files import CannotWrite
from pad.store.hub import resolve_model
from pad.store.model_folder import fingerprint
from pad.store.run_folder import RunFolder

FINE_TUNING_SHARE = (
    0.15  # of the steps of the model it starts from: with all around them, a fifth of its time
)
FINE_TUNING_STEPS = 75  # at least, if that model has had as many: it may itself come from fine-tuning
FREE_ON_RESUME = (
    "steps",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "loggers",
    "backbone_weights",  # where the file lies; what is in it is checked
    "view_backbone_weights",
)


@dataclass(frozen=True)
class Plan:
    """A training that has not begun.

    Attributes:
        request, folder: what was asked for now, and the folder of the run.
        record: the whole request, with the recipe.
        config: the recipe.
        training, calibration: normal images; the second are kept from the first. Without a generator there
            are none: all are fitted on and judged, in turn.
        device: where to compute.
        checkpoint: to go on from, or None.
        start: the model that is fine-tuned, or None.
        replay: of its old normal, or None.
        old_images: images of its old normal that were given, or None.
        check: anomalies that both models are tried on, or None.
    """

    request: TrainRequest
    folder: RunFolder
    record: RunRecord
    config: Config
    training: ImageSet
    calibration: ImageSet
    device: torch.device
    checkpoint: Mapping[str, Any] | None
    start: Detector | None
    replay: Replay | None
    check: ImageSet | None
    old_images: ImageSet | None

    @property
    def judges(self) -> int:
        """How many images will calibrate, if all can be read."""
        most = most_fitted(self.config)
        if self.config.has_generator:
            count = (
                min(len(self.calibration), most // 2) if self.config.quick_views else len(self.calibration)
            )
        else:
            count = min(len(self.training), most)
        return count - round((self.config.contamination or 0) * count)


@contextmanager
def planned(request: TrainRequest, progress: bool = False) -> Iterator[Plan]:
    """The plan of a run whose folder is locked meanwhile. Raises PadError as `make_plan` does, or if another
    process writes there. progress: show progress bars (on a terminal)."""
    folder = RunFolder(request.out)
    with folder.locked():
        try:
            yield make_plan(request, folder, progress)
        except CannotWrite as error:
            if not folder.started:
                raise
            raise PadError(
                f"{error}; what {folder.path} holds is kept: make room, and go on with --resume"
            ) from None


def carry_out(plan: Plan, progress: bool = False, stoppable: bool = False) -> Detector:
    """Trains as planned, in the folder of the run; see `train_detector`. Several processes
    (pad/distributed.py) begin when all have planned, and the first one writes."""
    distributed.wait()
    if distributed.is_first():
        plan.folder.write_request(plan.record.to_dict())
    return train_detector(
        plan.config,
        plan.training,
        plan.calibration,
        plan.device,
        plan.folder.path if distributed.is_first() else None,
        plan.record.minutes,
        checkpoint=plan.checkpoint,
        start=plan.start,
        progress=progress,
        data_root=plan.record.data_root,
        replay=plan.replay,
        check=plan.check,
        old_images=plan.old_images,
        stoppable=stoppable,
    )


def make_plan(request: TrainRequest, folder: RunFolder, progress: bool = False) -> Plan:
    """Reads what there is, checks it all, and writes nothing.

    Raises PadError for what cannot be done as it is asked for, or goes against what the folder holds.
    """
    device = pick_device(request.device)
    if folder.started and not request.resume:
        raise PadError(
            f"--out {folder.path} already holds a run; go on with --resume, or name another folder"
        )
    before = RunRecord()
    if request.resume:
        before = RunRecord.read(folder.read_request(), folder.path / "run.yaml")
    checkpoint = folder.read_checkpoint() if request.resume else None
    record = before.with_request(request, folder.started)
    assert record.data is not None
    settings = request.settings()
    images = resolve(record.data, "train", record.data_root)
    recipe = before.recipe or (checkpoint["recipe"] if checkpoint else None)
    record, start = _start(request, record, before, {**(recipe or {}), **settings})
    if recipe is None:
        config = fresh_config(start, request.config, settings, images, bool(record.minutes))
    else:
        config = _resumed_config(recipe, request.config, settings)
    if record.minutes:
        config = _to_be_trained(config, settings)
    if checkpoint is not None:
        _check_unchanged(from_mapping(checkpoint["recipe"]), config)
    check_recipe(config, start, record.data_root)
    check = _anomalies(record, config) if record.check else None
    trained = start.trained_on if start else None
    training, calibration = split_images(images, config, trained, progress)
    replay = old_images = None
    if start is not None:
        record, old_images = _old_images(start, record, before)
        if config.has_generator and record.replay != [NO_REPLAY]:
            new = joined_hashes(hashes_of(training), hashes_of(calibration))
            replay = make_replay(start, len(training), old_images, new)
    record = msgspec.structs.replace(record, recipe=to_mapping(config))
    return Plan(
        request,
        folder,
        record,
        config,
        training,
        calibration,
        device,
        checkpoint,
        start,
        replay,
        check,
        old_images,
    )


# What is gone on from ------------------------------------------------------------------------------


def _start(
    request: TrainRequest, record: RunRecord, before: RunRecord, settings: Mapping[str, Any]
) -> tuple[RunRecord, Detector | None]:
    """The model to go on from, and the record with its fingerprint. Raises PadError if it is another one than
    before."""
    model = resolve_model(record.start) if record.start else None
    if model is not None:
        record = msgspec.structs.replace(record, start_sha256=fingerprint(model))
    if before.recipe is not None and before.start_sha256 != record.start_sha256:
        raise PadError(
            f"--resume: {record.start} is not the model that the run was started from, or was changed "
            "since; put that one back, or start anew with another --out"
        )
    if model is None:
        return record, None
    files = [settings.get(key) for key in ("backbone_weights", "view_backbone_weights")]
    weights, view_weights = (None if file is None else str(file) for file in files)
    return record, Detector.load(model, request.device, weights, request.allow_downloads, view_weights)


def _anomalies(record: RunRecord, config: Config) -> ImageSet:
    """The anomalies of --check: of labelled images those that are anomalous, otherwise all."""
    images = resolve(record.check or [], "evaluate", record.data_root)
    images = images.subset(i for i, sample in enumerate(images.samples) if sample.anomalous is not False)
    images, errors = readable(images, config)
    if not len(images):
        raise PadError(f"--check: {errors[0] if errors else f'all images in {images.source} are normal'}")
    return images


def _old_images(start: Detector, record: RunRecord, before: RunRecord) -> tuple[RunRecord, ImageSet | None]:
    """Images of what the model that is fine-tuned calls normal, if any were given; and the record with their
    fingerprint. Raises PadError if there have to be some, or if it is another replay than before."""
    check_replayed(start, bool(record.replay))
    images = None
    if record.replay and record.replay != [NO_REPLAY]:
        images = resolve(record.replay, "train", record.data_root)
        record = msgspec.structs.replace(record, replay_sha256=str(images.fingerprint()["sha256"]))
    if before.recipe is not None and before.replayed() != record.replayed():
        raise PadError("--resume: the run was started with another --replay; give that, or another --out")
    return record, images


def check_replayed(start: Detector, given: bool) -> None:
    """Raises PadError where a model that is fine-tuned cannot replay its old normal, and nothing was given in
    its place."""
    if start.generator is None and not given:
        raise PadError(
            "--from: the model has no generator to replay its old normal by: give images of it with "
            "--replay, or let it be forgotten with --replay none"
        )


# The recipe ----------------------------------------------------------------------------------------


def fresh_config(
    start: Detector | None, name: str | None, settings: Mapping[str, Any], images: ImageSet, timed: bool
) -> Config:
    """The recipe of a run that begins: `build_config`, or that of the model that is fine-tuned, in a seventh
    of its steps."""
    if start is None:
        return build_config(name, settings, images, timed)
    values = {**to_mapping(fine_tuned_recipe(start.config)), **(load_recipe(name) if name else {})}
    return from_mapping({**values, **settings})


def fine_tuned_recipe(config: Config) -> Config:
    """The recipe by which a model of this one is fine-tuned."""
    steps = max(round(FINE_TUNING_SHARE * config.steps), min(FINE_TUNING_STEPS, config.steps))
    # In so few steps the critics, which are as they were, add time and nothing that was measurable. The
    # contamination was that of other images; whom to tell is for those who train to say, not for a model.
    return config.replace(steps=steps, warm_up=1.0, critic_head_start=0.0, contamination=None, loggers=())


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
