"""A training run: its images, its loop, and what is saved on the way and at the end.

A run saves checkpoints, which cost little, and nothing else before it is done. Then it saves the last one,
calibrates, and writes the model. Whatever a kill leaves undone of this, `--resume` finds out from the last
checkpoint and does: the model says of which step it is.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pad import distributed
from pad.config import BATCH_SIZE, SCORING_SETTINGS, Config, to_mapping
from pad.detector import Detector
from pad.errors import PadError
from pad.images.hashes import NO_HASHES, Hashes, joined_hashes
from pad.images.identity import hashes_of, with_hashes
from pad.images.imageset import ImageSet, joined_sets
from pad.images.resize import at_side
from pad.images.resolve import resolve
from pad.images.stream import stream
from pad.images.variation import in_variation
from pad.judging.calibration import Calibration
from pad.learning.comparison import compare
from pad.learning.images import MINIMUM_IMAGES, in_batches, load_images, readable
from pad.learning.loggers import Loggers, check_loggers, logging_to
from pad.learning.quick import calibrate_quick, fit_quick, fitted_on, look, most_fitted
from pad.learning.replay import MixedImages, Replay, calibrate_both, generator_of
from pad.learning.tiles import fit_tiles
from pad.learning.trainer import Trainer, check_losses, check_weights, diverged
from pad.networks import build_networks
from pad.progress import progress_bar
from pad.provenance import hardware, versions
from pad.similarity.base import Similarity
from pad.similarity.build import build_similarity
from pad.store.files import atomic
from pad.store.model_folder import present, read_model
from pad.store.run_folder import RunFolder
from pad.views.generator import GeneratorView
from pad.views.quick import build_quick

log = logging.getLogger(__name__)

GRID_COLUMNS = 8
RESIDUAL_IMAGES = 2048  # of the training images, which say how a model errs on normal ones
_BOOKKEEPING = (
    "log_every",
    "sample_every",
    "checkpoint_every",
    "loggers",
    "backbone_weights",
    "view_backbone_weights",
)


# What the weights of a model depend on.
_FIXED_BY_MODEL = (
    "size",
    "channels",
    "latent_dim",
    "latent_resolution",
    "generator_channels",
    "encoder_channels",
    "critic_channels",
    "latent_critic_channels",
    "latent_norm",
    "similarity",
    "backbone",
    "layers",
    "feature_channels",
    "backbone_scale",
    "feature_weights",
    "residual_components",
    "views",
    "view_backbone",
    "view_size",
    "input_size",
    "tile",
)
# Of a model without a generator, which may get one now.
_FIXED_BY_VIEWS = ("channels", "quick_views", "view_backbone", "view_size", "input_size", "tile")


class Interrupted(PadError):
    """The run was asked to stop, and saved itself. `status` is the exit status that shells expect."""

    def __init__(self, number: int, step: int, trained: bool) -> None:
        name = signal.Signals(number).name
        if trained:
            text = f"stopped by {name} before the model of step {step} was written; finish it with --resume"
        else:
            text = (
                f"stopped by {name} after step {step}; go on with --resume, or have a model of what is there "
                f"with --resume --steps {step}"
            )
        super().__init__(text)
        self.status = 128 + number


# Training ----------------------------------------------------------------------------------------


def train_detector(
    config: Config,
    training: ImageSet,
    calibration: ImageSet,
    device: torch.device,
    folder: Path | None = None,
    minutes: float | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    start: Detector | None = None,
    progress: bool = False,
    data_root: str | Path | None = None,
    replay: Replay | None = None,
    check: ImageSet | None = None,
    old_images: ImageSet | None = None,
    stoppable: bool = False,
) -> Detector:
    """Trains, calibrates, and (with a folder) keeps checkpoints, samples, a log and the model.

    Args:
        config: the recipe; its `steps` hold unless `minutes` are given.
        training, calibration: normal images; the second are never trained on.
        device: where to train.
        folder: the run folder; None: nothing is written.
        minutes: wall-clock time to train for, everything but the last calibration counted in.
        checkpoint: of this run, to go on from.
        start: a trained detector to start from; its mu and sigma stay, so that scores stay comparable.
        replay: images of what `start` calls normal, to train on besides.
        check: anomalies; how many of them `start` finds, and the new detector, is put on its card.
        old_images: images of what `start` calls normal, on which quick views are fitted besides where there
            is no generator.
        progress: show progress bars (on a terminal).
        stoppable: SIGINT and SIGTERM stop it between two steps, once it has saved itself; for that it takes
            the place of the process's own handlers while it runs. Only with a folder.

    Raises:
        PadError: too few readable images, settings that do not fit (`minutes` without a generator, say), or a
            loss that is no longer finite.
        Interrupted: SIGINT or SIGTERM came, and the run was saved.
    """
    begun = time.monotonic()
    if minutes is not None and not config.has_generator:
        raise PadError("a time to train for, and no generator to train: leave the time away, or give steps")
    if not config.has_generator:
        detector = _fit_views(config, training, device, begun, progress, start, old_images, check)
        if folder is not None:
            detector.save(RunFolder(folder).model)
        return detector
    source, errors = load_images(training, config, progress)
    calibration, more_errors = readable(calibration, config)
    _tell_skipped(errors + more_errors)
    if not len(source) or not len(calibration) or len(source) + len(calibration) < MINIMUM_IMAGES:
        raise PadError(
            f"training takes at least {MINIMUM_IMAGES} normal images; only {len(source) + len(calibration)} "
            f"of {len(training) + len(errors) + len(calibration)} in {training.source} can be read"
        )
    statistics = None
    generator = start.generator if start else None  # None beside a start: quick views, which get one now
    if config.statistics != "normal" and generator is None:
        statistics, _ = load_images(resolve([config.statistics], "evaluate", data_root), config)
    trained = joined_hashes(
        hashes_of(training),
        replay.hashes if replay else NO_HASHES,
        start.trained_on if start is not None and start.trained_on is not None else NO_HASHES,
    )
    images = MixedImages(source, replay.training, config.size) if replay else source
    trainer = Trainer(config, images, device, statistics, generator.similarity if generator else None)
    if start is not None and generator is not None:
        start_from(trainer, start)
    card: dict[str, Any] = {
        "versions": versions(),
        "data": {
            **training.fingerprint(),
            "images": len(source),
            "calibration_images": len(calibration),
            "skipped": len(errors) + len(more_errors),
        },
    }
    if start is not None:
        card["fine_tuning"] = {
            "from": start.card.get("data", {}),
            "replay": replay.source if replay else "none",
            "replayed_images": len(replay.training) if replay else 0,
        }
    run_folder = None if folder is None else RunFolder(folder)
    run = Run(trainer, calibration, card, run_folder, minutes, begun, progress, trained, start, replay, check)
    run.training_images, run.stoppable = (
        training,
        stoppable and (folder is not None or not distributed.is_first()),
    )
    if checkpoint is not None:
        run.resume(checkpoint)
    return run.run()


def _fit_views(
    config: Config,
    new: ImageSet,
    device: torch.device,
    begun: float,
    progress: bool,
    start: Detector | None,
    old: ImageSet | None,
    check: ImageSet | None,
) -> Detector:
    """A detector of the quick views alone: fitted, cross-fitted and calibrated on all images, those of an old
    normal among them."""
    images = new
    if old is not None:
        old = with_hashes(old)
        old = old.subset(np.flatnonzero(~np.isin(hashes_of(old), hashes_of(new))).tolist())
        images = joined_sets(new, old)
    detector = Detector(config, None, build_quick(config), device)
    chosen = fitted_on(images, 0, config)
    looked = look(detector, chosen, progress)
    skipped = [f"{chosen.samples[i].name}: {reason}" for i, reason in looked.errors]
    _tell_skipped(skipped)
    seen = sorted(set(looked.indices))
    if config.tile is None:
        fitted = fit_quick(detector, looked, known=start is not None)
        calibrate_quick(detector, fitted)
    else:
        fitted = fit_tiles(detector, looked, chosen, progress)
    detector.card = {
        "versions": versions(),
        "data": {
            **images.fingerprint(),
            "images": len(seen),
            "calibration_images": int(fitted.calibrating.sum()),
            "skipped": len(skipped),
            "apart": int((~fitted.belonging).sum()),
        },
        "training": {
            "steps": 0,
            "seconds": round(time.monotonic() - begun, 1),
            "hardware": hardware(device),
            "finished": True,
        },
    }
    detector.trained_on, detector.fitted_on = NO_HASHES, hashes_of(images)
    if start is not None:
        fused = detector.fusion.fuse(fitted.scores) if detector.fusion else fitted.scores[:, 0]
        among_new = np.isin(hashes_of(chosen)[seen], hashes_of(new))
        judged, known = (fused[rows].astype(np.float64) for rows in (among_new, ~among_new))
        new, _ = readable(new, config)
        detector.card["fine_tuning"] = {
            "from": start.card.get("data", {}),
            "replay": old.source if old else "none",
            "replayed_images": int((~among_new).sum()),
            "quality": compare(start, detector, None, new, check, Calibration(judged), known),
        }
    return detector


def _tell_skipped(lines: list[str]) -> None:
    for line in lines[:20]:
        log.warning("skipped %s", line)
    if len(lines) > 20:
        log.warning("skipped %d more", len(lines) - 20)


def check_recipe(config: Config, start: Detector | None = None, data_root: str | Path | None = None) -> None:
    """Finds what is wrong with a recipe before anything is read, written or said; see `train_detector`.

    Raises PadError for widths that do not fit the sizes, a backbone or a layer that cannot be had, images too
    small for it, no folder of `statistics`, no package of a logger, and what does not go with `start`.
    """
    if start is not None:
        check_start(config, start)
    if config.has_generator:
        with torch.device("meta"):  # sizes without memory
            build_networks(config)
        build_similarity(config).prepare(torch.zeros(1, config.channels, config.size, config.size))
    if config.quick_views:
        build_quick(config)
    if config.statistics != "normal" and start is None:
        resolve([config.statistics], "evaluate", data_root)
    check_loggers(config.loggers)


def check_start(config: Config, start: Detector) -> None:
    """Raises PadError if a recipe does not go with a trained detector: other sizes, channels or backbone."""
    for key in _FIXED_BY_VIEWS if start.generator is None else _FIXED_BY_MODEL:
        theirs, ours = getattr(start.config, key), getattr(config, key)
        if theirs != ours:
            raise PadError(
                f"--from: the model has {key} {theirs!r} and cannot go on with {ours!r}; "
                f"leave '{'views' if key == 'quick_views' else key}' as it is"
            )


def start_from(trainer: Trainer, start: Detector) -> None:
    """Takes the weights of a trained detector, the critics' too."""
    weights = generator_of(start).networks.state_dict()
    trainer.networks.load_state_dict(weights)
    trainer.averaged.load_state_dict({k: v for k, v in weights.items() if "critic" not in k})


def residual_indices(n: int) -> Tensor:
    """Which of n training images say how a model errs on normal ones, in random order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:RESIDUAL_IMAGES]


def finished_detector(
    folder: Path, config: Config, training: ImageSet, calibration: ImageSet, device: str
) -> Detector | None:
    """The detector of a run that is finished, with all that comes after training done anew by this version
    and by the scoring settings of `config`: what the score knows of errors on normal images, and the
    calibration. None if the run is not finished. If that was another version, the card's `training` says at
    which commit.

    Raises PadError if the run was made from other images or with other settings of the training.
    """
    if not present(folder / "model"):
        return None
    detector = _load(folder, device, config)
    if not detector.card.get("training", {}).get("finished"):
        return None
    asked, found = to_mapping(config), to_mapping(detector.config)
    for key in asked.keys() - {*_BOOKKEEPING, *SCORING_SETTINGS}:
        if asked[key] != found[key]:
            raise PadError(
                f"{folder} was trained with {key}={found[key]!r}, not {asked[key]!r}: name another folder"
            )
    if detector.card["data"].get("sha256") != training.fingerprint()["sha256"]:
        raise PadError(f"{folder} was trained on other images than {training.source}: name another folder")
    detector = detector.scoring_by(config)
    if detector.generator is None:
        raise PadError(f"{folder} has no generator: there is nothing to be taken over")
    images, _ = load_images(training.subset(residual_indices(len(training)).tolist()), config)
    batches = in_batches(images, torch.arange(len(images)))
    detector.generator.fit_residuals(_with_variations(batches, config))
    _calibrate(detector, training, calibration, False)
    now, then = versions(), detector.card["versions"].get("commit")
    if then and then != now.get("commit"):
        detector.card["training"].setdefault("commit", then)
        detector.card["versions"] = now
    return detector


def _with_variations(batches: Iterable[Tensor], config: Config) -> Iterator[Tensor]:
    """Each batch, and where the recipe tolerates variations, the same images in one each."""
    for x in batches:
        yield x
        if config.tolerate:
            yield in_variation(x, config.tolerate, config.seed)


def _calibrate(
    detector: Detector, training: ImageSet, calibration: ImageSet, progress: bool, known: bool = False
) -> None:
    """Fits the quick views, if there are any, on all images, and calibrates all views on held-out ones.
    known: see `fit_quick`."""
    if detector.quick is None:
        detector.calibrate(calibration)
        return
    first = len(calibration)
    images = fitted_on(joined_sets(calibration, training), first, detector.config)
    looked = look(detector, images, progress)
    fitted = fit_quick(detector, looked, known)
    most = min(first, most_fitted(detector.config) // 2)
    rows = [row for row, index in enumerate(looked.indices) if index < most and fitted.calibrating[row]]
    judged = fitted.take(rows)
    detector.calibrate(
        calibration.subset([looked.indices[row] for row in rows]),
        quick_scores=judged.scores,
        belonging=judged.belonging,
        map_scale=fitted.map_scale if "parts" in detector.quick.names else None,
    )
    detector.card["data"] = {**detector.card["data"], "apart": int((~fitted.belonging).sum())}
    detector.fitted_on = joined_hashes(hashes_of(training), hashes_of(calibration))


class Run:
    """The loop of a run and what it saves. `begun` is when it began by time.monotonic(); `start` is the model
    that is fine-tuned."""

    def __init__(
        self,
        trainer: Trainer,
        calibration: ImageSet,
        card: dict[str, Any],
        folder: RunFolder | None,
        minutes: float | None,
        begun: float,
        progress: bool,
        trained_on: Hashes,
        start: Detector | None = None,
        replay: Replay | None = None,
        check: ImageSet | None = None,
    ) -> None:
        self.trainer, self.config = trainer, trainer.config
        self.calibration, self.card, self.folder, self.minutes = calibration, card, folder, minutes
        self.begun, self.progress = begun, progress
        self.trained_on, self.start, self.replay, self.check = trained_on, start, replay, check
        self.received: list[int] = []  # signals
        self.stoppable = False  # by signals
        self.saved: int | None = None  # the step of the newest checkpoint
        self.trained = False  # to the end, and saved
        self.loggers = Loggers({})
        self.training_images: ImageSet = calibration.subset([])
        self.new_normal: Calibration | None = None  # without an old normal

    def run(self) -> Detector:
        """Trains to the end, or from where `resume` has put it, and makes the model."""
        with self._signals() if self.stoppable else contextlib.nullcontext():
            if not self.trained:
                self._train()
            elif self.folder is not None and _is_model_of(self.folder, self.trainer.steps_done):
                return _load(self.folder.model, str(self.trainer.device), self.config)
            return self._finish()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint. Raises PadError if it was made of other images or another backbone."""
        if state["data"] != self.card["data"]:
            raise PadError(
                f"--resume: this run was trained on other images ({state['data']['images']} from "
                f"{state['data']['source']}); give the same --data, or another --out"
            )
        if state.get("backbone", ours := _backbone(self.trainer.similarity)) != ours:
            raise PadError("--resume: this run was trained with other weights of the backbone: give those")
        machine = hardware(self.trainer.device)
        if state.get("hardware", machine) != machine:
            log.warning(
                "this run was begun on %s and goes on with %s: the model will not be the same as one trained "
                "in one go",
                state["hardware"],
                machine,
            )
        self.trainer.load_state_dict(state["trainer"])
        self.begun = time.monotonic() - state["elapsed"]
        self.saved = self.trainer.steps_done
        self.trained = state["finished"] and self.share_done() >= 1

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all sittings."""
        return time.monotonic() - self.begun

    def share_done(self) -> float:
        """Of the steps or the minutes, in [0, 1]."""
        done = self.trainer.steps_done / self.config.steps
        return (
            distributed.from_first(min(1.0, self.elapsed / (60 * self.minutes)))
            if self.minutes
            else min(1.0, done)
        )

    # Training

    def _train(self) -> None:
        """Steps until the end, a signal, or a loss that is not finite; saves on the way."""
        config, trainer, folder = self.config, self.trainer, self.folder

        # Where it begins: at the newest checkpoint, or with one of its own ------------------------
        if folder is not None:
            folder.cut_log(trainer.steps_done)
            if self.saved is None:
                self._save()
        with logging_to(config, folder.path if folder else None, trainer.steps_done) as self.loggers:
            self._steps()

        # The end, which the last checkpoint says --------------------------------------------------
        self.trained = True
        self._save()
        if self.received:
            raise Interrupted(self.received[0], self.trainer.steps_done, True)

    def _steps(self) -> None:
        """The loop of `_train`."""
        config, trainer = self.config, self.trainer
        mark, marked_step = time.monotonic(), trainer.steps_done
        done = self.share_done() >= 1 and trainer.steps_done > 0

        with self._training_bar() as bar:
            while not done:
                # A step, at the learning rates of the share that is done -----------------------
                losses = trainer.step(min(self.share_done(), 0.999))
                stopping = self._agreed_signal()
                step = trainer.steps_done
                done = self.share_done() >= 1
                saving = done or bool(stopping) or step % config.checkpoint_every == 0
                sampling = config.sample_every and (done or step % config.sample_every == 0 or step == 1)
                logging_now = step % config.log_every == 0

                # Its numbers, which have to be finite ------------------------------------------
                # Elsewhere than on a CPU, to read them at every step would stall the device.
                if trainer.device.type == "cpu" or saving or logging_now:
                    numbers = check_losses(losses, step)
                if saving or sampling:
                    check_weights(trainer)

                # The log and the bar -----------------------------------------------------------
                if logging_now:
                    now = time.monotonic()
                    rate = config.batch_size * (step - marked_step) / (now - mark)
                    mark, marked_step = now, step
                    self._log(step, numbers, rate)
                    bar.set_postfix(self._postfix(numbers, rate))
                bar.update(self._done() - bar.n)

                # Samples -----------------------------------------------------------------------
                if sampling:
                    self._sample(step)

                # A checkpoint; a signal stops the run after one --------------------------------
                if stopping:
                    self._save()
                    raise Interrupted(stopping, step, False)
                if saving and not done:
                    self._save()

    def _agreed_signal(self) -> int:
        """The signal by which to stop now, or 0: one to any of the processes stops all, after the same
        step."""
        return distributed.largest(self.received[0] if self.received else 0)

    def _training_bar(self) -> Any:
        """A bar over the seconds or the steps, so that it shows the time left in both cases."""
        if self.minutes:
            bar = progress_bar(round(60 * self.minutes), "training", "s", self.progress)
        else:
            bar = progress_bar(self.config.steps, "training", "step", self.progress)
        bar.update(self._done())
        return bar

    def _done(self) -> int:
        return min(round(60 * self.minutes), int(self.elapsed)) if self.minutes else self.trainer.steps_done

    # The model

    def _finish(self) -> Detector:
        """Makes the model of the run, and saves it. Of several processes the first one calibrates it."""
        detector = self._detector()
        if not distributed.is_first():
            return detector
        self._calibrate(detector)
        if self.start is not None:
            quality = compare(
                self.start, detector, self.replay, self.calibration, self.check, self.new_normal
            )
            detector.card["fine_tuning"]["quality"] = quality
        if self.folder is not None:
            detector.save(self.folder.model)
            log.info("saved the model of step %d", self.trainer.steps_done)
        return detector

    def _detector(self) -> Detector:
        """The detector of the averaged weights, not calibrated yet."""
        trainer = self.trainer
        networks = {k: copy.deepcopy(v) for k, v in trainer.networks.items()}
        networks.update({k: copy.deepcopy(v) for k, v in trainer.averaged.items()})
        training = {
            "steps": trainer.steps_done,
            "seconds": round(self.elapsed, 1),
            "hardware": hardware(trainer.device),
            "finished": True,
            "weights": {name: round(w, 6) for name, w in trainer.weights.items()},
        }
        similarity = copy.deepcopy(trainer.similarity)
        card = {**self.card, "training": training}
        generator = GeneratorView(self.config, nn.ModuleDict(networks), similarity, trainer.device)
        quick = build_quick(self.config) if self.config.quick_views else None
        return Detector(self.config, generator, quick, trainer.device, None, card, self.trained_on)

    def _calibrate(self, detector: Detector) -> None:
        generator, trainer = generator_of(detector), self.trainer
        few = self.calibration.subset(range(min(BATCH_SIZE, len(self.calibration))))
        for batch in stream(few, self.config, BATCH_SIZE):
            if not generator.score(at_side(batch.tensor, self.config.size)).isfinite().all():
                raise diverged(trainer.steps_done, "the scores of held-out normal images are not finite")
        chosen = residual_indices(len(trainer.images))
        # The replayed images of an old model are its own and easy for it: how it errs on real ones it knows.
        old = self.start.generator if self.start and self.replay else None
        batches = in_batches(trainer.images, chosen)
        generator.fit_residuals(_with_variations(batches, self.config), old)
        known = self.start is not None
        _calibrate(detector, self.training_images, self.calibration, self.progress, known)
        self.new_normal = detector.calibration
        if self.start is not None and self.replay is not None:
            calibrate_both(detector, self.start, self.replay)

    # What is written on the way

    def _save(self) -> None:
        """A checkpoint."""
        if self.folder is None:
            return
        state = {
            "trainer": self.trainer.state_dict(),
            "recipe": to_mapping(self.config),
            "data": self.card["data"],
            "backbone": _backbone(self.trainer.similarity),
            "hardware": hardware(self.trainer.device),
            "elapsed": self.elapsed,
            "finished": self.trained,
        }
        self.folder.write_checkpoint(self.trainer.steps_done, state)
        self.saved = self.trainer.steps_done
        log.info("saved the checkpoint of step %d", self.saved)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Collects SIGINT and SIGTERM, so that the loop can stop between two steps; once the training is done
        and saved they stop the run at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.received.append(number)
            if self.trained and self.saved == self.trainer.steps_done:
                raise Interrupted(number, self.saved, True)

        try:
            before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: leave signals to the program that called us
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _log(self, step: int, losses: dict[str, float], rate: float) -> None:
        weights = {f"w_{name}": weight for name, weight in self.trainer.weights.items()}
        self.loggers.scalars(step, {**losses, **weights, "images_per_second": rate})
        if self.folder is None:
            return
        entry = {
            "step": step,
            "seconds": round(self.elapsed, 2),
            "images_per_second": round(rate, 1),
            **{key: float(f"{value:.6g}") for key, value in {**losses, **weights}.items()},
        }
        self.folder.append_log(entry)

    def _postfix(self, losses: dict[str, float], rate: float) -> dict[str, str]:
        short = {"rec_loss": "rec", "image_critic_loss": "D_x", "latent_critic_loss": "D_z"}
        shown = {short[key]: f"{value:.3g}" for key, value in losses.items() if key in short}
        weights = {f"w_{name[0].upper()}": f"{w:.3g}" for name, w in self.trainer.weights.items()}
        return {**shown, **weights, "images/s": f"{rate:.0f}"}

    @torch.no_grad()
    def _sample(self, step: int) -> None:
        """A grid of three rows: normal images, their reconstructions, and images generated from the prior."""
        if self.folder is None:
            return
        from torchvision.transforms.functional import to_pil_image
        from torchvision.utils import make_grid

        trainer = self.trainer
        x = trainer.images.batch(torch.arange(min(GRID_COLUMNS, len(trainer.images)))).to(trainer.device)
        own = torch.Generator().manual_seed(self.config.seed + 1)  # leaves the run's own numbers alone
        r = self.config.latent_resolution
        z = torch.randn(GRID_COLUMNS, self.config.latent_dim, r, r, generator=own).to(trainer.device)
        encoder, generator = trainer.averaged["encoder"], trainer.averaged["generator"]
        rows = [x, generator(encoder(x)), generator(z)[: len(x)]]
        grid = make_grid(
            torch.cat(rows).cpu().nan_to_num(0).clamp(-1, 1), nrow=len(x), normalize=True, value_range=(-1, 1)
        )
        picture = to_pil_image(grid)
        self.loggers.images(step, "samples", np.asarray(picture))
        with atomic(self.folder.sample(step)) as file:
            picture.save(file, format="png")


def _is_model_of(folder: RunFolder, step: int) -> bool:
    """Whether the model in the run folder is that of this step, whole."""
    if not present(folder.model):
        return False
    try:
        training = read_model(folder.model).config.get("training")
    except PadError:
        return False
    return isinstance(training, Mapping) and bool(training.get("finished")) and training.get("steps") == step


def _load(model: Path, device: str, config: Config) -> Detector:
    view_weights = config.view_backbone_weights
    return Detector.load(model, device, config.backbone_weights, view_backbone_weights=view_weights)


def _backbone(similarity: Similarity) -> str | None:
    return similarity.backbone_card().get("fingerprint")
