"""A training run: its loop and its folder.

RUN/model/        the newest model folder
RUN/checkpoints/  step-00000500.pt: all that `--resume` needs; the newest two
RUN/samples/      PNG grids: normal images, their reconstructions, images generated from the prior
RUN/log.jsonl     one line every `log_every` steps
RUN/run.yaml      what was asked for
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pad.config import BATCH_SIZE, SCORING_SETTINGS, Config, to_mapping
from pad.detector import Detector
from pad.errors import PadError, printable
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.images.stream import load_all, stream
from pad.judging.calibration import calibration_split
from pad.learning.replay import MixedImages, Replay, calibrate_both
from pad.learning.trainer import (
    CACHE_BYTES,
    Images,
    MemoryImages,
    Trainer,
    check_finite,
    check_weights,
    diverged,
    in_batches,
)
from pad.provenance import hardware, versions
from pad.store.files import atomic
from pad.store.model_folder import present

MINIMUM_IMAGES = 8
KEPT_CHECKPOINTS = 2
GRID_COLUMNS = 8
RESIDUAL_IMAGES = 2048  # of the training images, which say how a model errs on normal ones
_BOOKKEEPING = ("log_every", "sample_every", "checkpoint_every", "tensorboard", "backbone_weights")


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
)


class Interrupted(PadError):
    """The run was asked to stop, and saved itself. `status` is the exit status that shells expect."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; go on with --resume")
        self.status = 128 + number


# Images ------------------------------------------------------------------------------------------


class FileImages:
    """Training images decoded whenever they are drawn, for sets that do not fit in memory."""

    def __init__(self, images: ImageSet, config: Config) -> None:
        self.images, self.config = images, config

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        chosen = self.images.subset(indices.tolist())
        batches = list(stream(chosen, self.config, batch_size=max(1, len(chosen) // 4), workers=4))
        readable = torch.cat([batch.tensor for batch in batches])
        if not len(readable):
            raise PadError(f"{self.images.describe()}: a whole batch of {len(chosen)} images cannot be read")
        # Others of the batch stand in for those that cannot be read, so that its size stays.
        return readable[torch.arange(len(chosen)) % len(readable)]


def load_images(images: ImageSet, config: Config, progress: bool = False) -> tuple[Images, list[str]]:
    """Training images, in memory if they fit, and a line for each that could not be read."""
    bytes_needed = 2 * len(images) * config.channels * config.size**2
    if bytes_needed > CACHE_BYTES:
        return FileImages(images, config), []
    with _bar(len(images), "reading", "image", progress) as bar:
        pixels, _, errors = load_all(images, config, half=True, progress=bar.update)
    return MemoryImages(pixels), [f"{images.samples[i].name}: {reason}" for i, reason in errors]


def split_images(images: ImageSet, config: Config) -> tuple[ImageSet, ImageSet]:
    """Normal images to train on, and those kept back for calibration.

    Raises PadError if there are fewer than 8, saying how many and where.
    """
    if len(images) < MINIMUM_IMAGES:
        raise PadError(f"training takes at least {MINIMUM_IMAGES} normal images; found {images.describe()}")
    training, calibration = calibration_split(len(images), config.calibration_fraction, seed=config.seed)
    return images.subset(training.tolist()), images.subset(calibration.tolist())


def readable(images: ImageSet, config: Config) -> tuple[ImageSet, list[str]]:
    """The images that can be read, and a line for each of the others."""
    kept: list[int] = []
    errors: list[str] = []
    for batch in stream(images, config, 64):
        kept += batch.indices
        errors += [f"{images.samples[i].name}: {reason}" for i, reason in batch.errors]
    return (images.subset(kept) if errors else images), errors


# Training ----------------------------------------------------------------------------------------


def train_detector(
    config: Config,
    training: ImageSet,
    calibration: ImageSet,
    device: torch.device,
    folder: Path | None = None,
    minutes: float | None = None,
    resume: bool = False,
    start: Detector | None = None,
    progress: bool = False,
    data_root: Path | None = None,
    replay: Replay | None = None,
) -> Detector:
    """Trains, calibrates, and (with a folder) keeps checkpoints, samples, a log and the model.

    Args:
        config: the recipe; its `steps` hold unless `minutes` are given.
        training, calibration: normal images; the second are never trained on.
        device: where to train.
        folder: the run folder; None: nothing is written.
        minutes: wall-clock time to train for, everything but the last calibration counted in.
        resume: go on from the newest checkpoint in `folder`, if there is one.
        start: a trained detector to start from; its mu and sigma stay, so that scores stay comparable.
        replay: images of what `start` calls normal, to train on besides.
        progress: show progress bars (on a terminal).

    Raises:
        PadError: too few readable images, settings that do not fit, or a loss that is no longer finite.
        Interrupted: SIGINT or SIGTERM came, and the run was saved.
    """
    begun = time.monotonic()
    source, errors = load_images(training, config, progress)
    calibration, more_errors = readable(calibration, config)
    for line in (errors + more_errors)[:20]:
        print(printable(f"skipped {line}"), file=sys.stderr)
    if len(errors + more_errors) > 20:
        print(f"skipped {len(errors + more_errors) - 20} more", file=sys.stderr)
    if not len(source) or not len(calibration) or len(source) + len(calibration) < MINIMUM_IMAGES:
        raise PadError(
            f"training takes at least {MINIMUM_IMAGES} normal images; only {len(source) + len(calibration)} "
            f"of {len(training) + len(errors) + len(calibration)} in {training.source} can be read"
        )
    statistics = None
    if config.statistics != "normal" and start is None:
        statistics, _ = load_images(resolve([config.statistics], "evaluate", data_root), config)
    if start is not None:
        check_start(config, start)
    images = MixedImages(source, replay.training) if replay else source
    trainer = Trainer(config, images, device, statistics, start.similarity if start else None)
    if start is not None:
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
    run = Run(trainer, calibration, card, folder, minutes, begun, progress)
    if start is not None and replay is not None:
        run.old_normal = start, replay
    if resume:
        run.resume()
    run.loop()
    return run.detector


def check_start(config: Config, start: Detector) -> None:
    """Raises PadError if a recipe does not go with a trained detector: other sizes, channels or backbone."""
    for key in _FIXED_BY_MODEL:
        theirs, ours = getattr(start.config, key), getattr(config, key)
        if theirs != ours:
            raise PadError(
                f"--from: the model has {key} {theirs!r} and cannot go on with {ours!r}; "
                f"leave '{key}' as it is"
            )


def start_from(trainer: Trainer, start: Detector) -> None:
    """Takes the weights of a trained detector, the critics' too."""
    weights = start.networks.state_dict()
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
    detector = Detector.load(folder, device, config.backbone_weights)
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
    images, _ = load_images(training.subset(residual_indices(len(training)).tolist()), config)
    detector.fit_residuals(in_batches(images, torch.arange(len(images))))
    detector.calibrate(calibration)
    now, then = versions(), detector.card["versions"].get("commit")
    if then and then != now.get("commit"):
        detector.card["training"].setdefault("commit", then)
        detector.card["versions"] = now
    return detector


class Run:
    """The loop of a run and what it writes."""

    def __init__(
        self,
        trainer: Trainer,
        calibration: ImageSet,
        card: dict[str, Any],
        folder: Path | None,
        minutes: float | None,
        begun: float,
        progress: bool,
    ) -> None:
        self.trainer, self.config = trainer, trainer.config
        self.calibration, self.card, self.folder, self.minutes = calibration, card, folder, minutes
        self.begun, self.progress = begun, progress
        self.writer = _tensorboard(self.config, folder)
        self.finished = False
        self.old_normal: tuple[Detector, Replay] | None = None  # the model fine-tuned, and what it replays
        self._detector: Detector | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, over all sittings."""
        return time.monotonic() - self.begun

    def share_done(self) -> float:
        """Of the steps or the minutes, in [0, 1]."""
        done = self.trainer.steps_done / self.config.steps
        return min(1.0, self.elapsed / (60 * self.minutes) if self.minutes else done)

    def loop(self) -> None:
        """Steps until the end, a signal, or a loss that is not finite; saves on the way."""
        config, trainer = self.config, self.trainer
        bar = self._training_bar()
        every_step = trainer.device.type == "cpu"  # elsewhere reading a number would stall the device
        mark, marked_step = time.monotonic(), trainer.steps_done
        losses: dict[str, Tensor] = {}
        with _signals() as received:
            while not self.finished and ((share := self.share_done()) < 1 or trainer.steps_done == 0):
                losses = trainer.step(min(share, 0.999))
                step = trainer.steps_done
                saving = step % config.checkpoint_every == 0
                if every_step or saving or step % config.log_every == 0:
                    numbers = check_finite(losses, step)
                if step % config.log_every == 0:
                    now = time.monotonic()
                    rate = config.batch_size * (step - marked_step) / (now - mark)
                    mark, marked_step = now, step
                    self._log(step, numbers, rate)
                    bar.set_postfix(self._postfix(numbers, rate))
                bar.update(self._done() - bar.n)
                sampling = config.sample_every and (step % config.sample_every == 0 or step == 1)
                if sampling or saving or received:
                    check_weights(trainer)
                if sampling:
                    self._sample(step)
                if received:
                    self._save()
                    bar.close()
                    raise Interrupted(received[0], step)
                if saving and self.share_done() < 1:
                    self._save()
            if not self.finished:
                if losses:
                    check_finite(losses, trainer.steps_done)
                check_weights(trainer)
                self.finished = True
                self._save()
        bar.close()
        if self.writer is not None:
            self.writer.close()

    def _training_bar(self) -> Any:
        """A bar over the seconds or the steps, so that it shows the time left in both cases."""
        if self.minutes:
            bar = _bar(round(60 * self.minutes), "training", "s", self.progress)
        else:
            bar = _bar(self.config.steps, "training", "step", self.progress)
        bar.update(self._done())
        return bar

    def _done(self) -> int:
        return min(round(60 * self.minutes), int(self.elapsed)) if self.minutes else self.trainer.steps_done

    @property
    def detector(self) -> Detector:
        """The detector of the averaged weights, calibrated."""
        if self._detector is None:
            self._detector = self._calibrated()
        return self._detector

    def _calibrated(self) -> Detector:
        import copy

        trainer = self.trainer
        networks = {k: copy.deepcopy(v) for k, v in trainer.networks.items()}
        networks.update({k: copy.deepcopy(v) for k, v in trainer.averaged.items()})
        training = {
            "steps": trainer.steps_done,
            "seconds": round(self.elapsed, 1),
            "hardware": hardware(trainer.device),
            "finished": self.finished,
            "weights": {name: round(w, 6) for name, w in trainer.weights.items()},
        }
        similarity = copy.deepcopy(trainer.similarity)
        detector = Detector(
            self.config,
            nn.ModuleDict(networks),
            similarity,
            trainer.device,
            None,
            {**self.card, "training": training},
        )
        few = self.calibration.subset(range(min(BATCH_SIZE, len(self.calibration))))
        if not np.isfinite(detector.score(few)).all():
            raise diverged(trainer.steps_done, "the scores of held-out normal images are not finite")
        chosen = residual_indices(len(trainer.images))
        # The replayed images of an old model are its own and easy for it: how it errs on real ones it knows.
        old = self.old_normal[0] if self.old_normal else None
        detector.fit_residuals(in_batches(trainer.images, chosen), old)
        detector.calibrate(self.calibration)
        if self.old_normal is not None:
            calibrate_both(detector, *self.old_normal)
        return detector

    # The folder

    def _save(self) -> None:
        """A checkpoint, and the model as it now is."""
        self._detector = self._calibrated()
        if self.folder is None:
            return
        state = {
            "trainer": self.trainer.state_dict(),
            "recipe": to_mapping(self.config),
            "data": self.card["data"],
            "elapsed": self.elapsed,
            "finished": self.finished,
        }
        checkpoints = self.folder / "checkpoints"
        with atomic(checkpoints / f"step-{self.trainer.steps_done:08d}.pt") as file:
            torch.save(state, file)
        self._detector.save(self.folder / "model")
        for old in sorted(checkpoints.glob("step-*.pt"))[:-KEPT_CHECKPOINTS]:
            old.unlink(missing_ok=True)

    def resume(self) -> None:
        """Goes on from the newest checkpoint. Raises PadError if it was made of other images."""
        state = read_checkpoint(self.folder) if self.folder else None
        if state is None or self.folder is None:
            return
        if state["data"] != self.card["data"]:
            raise PadError(
                f"--resume: {self.folder} was trained on other images ({state['data']['images']} from "
                f"{state['data']['source']}); give the same --data, or another --out"
            )
        self.trainer.load_state_dict(state["trainer"])
        self.begun = time.monotonic() - state["elapsed"]
        self.finished = state["finished"] and self.share_done() >= 1
        self._cut_log(self.trainer.steps_done)

    def _cut_log(self, step: int) -> None:
        """Drops what a killed run logged after the checkpoint it goes on from."""
        log = self._path("log.jsonl")
        if not log.exists():
            return
        lines = []
        for line in log.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    lines.append(line + "\n")
        with atomic(log) as file:
            file.write("".join(lines).encode())

    def _path(self, *parts: str) -> Path:
        assert self.folder is not None
        return self.folder.joinpath(*parts)

    def _log(self, step: int, losses: dict[str, float], rate: float) -> None:
        weights = {f"w_{name}": weight for name, weight in self.trainer.weights.items()}
        if self.writer is not None:
            for key, value in {**losses, **weights, "images_per_second": rate}.items():
                self.writer.add_scalar(key, value, step)
        if self.folder is None:
            return
        entry = {
            "step": step,
            "seconds": round(self.elapsed, 2),
            "images_per_second": round(rate, 1),
            **{key: float(f"{value:.6g}") for key, value in {**losses, **weights}.items()},
        }
        path = self._path("log.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _postfix(self, losses: dict[str, float], rate: float) -> dict[str, str]:
        short = {"rec_loss": "rec", "image_critic_loss": "D_x", "latent_critic_loss": "D_z"}
        shown = {short[key]: f"{value:.3g}" for key, value in losses.items() if key in short}
        weights = {f"w_{name[0].upper()}": f"{w:.3g}" for name, w in self.trainer.weights.items()}
        return {**shown, **weights, "images/s": f"{rate:.0f}"}

    @torch.no_grad()
    def _sample(self, step: int) -> None:
        """A grid of three rows: normal images, their reconstructions, and images generated from the prior."""
        if self.folder is None and self.writer is None:
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
        if self.writer is not None:
            self.writer.add_image("samples", grid, step)
        if self.folder is not None:
            with atomic(self._path("samples", f"step-{step:08d}.png")) as file:
                to_pil_image(grid).save(file, format="png")


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run folder, or None."""
    for path in sorted((folder / "checkpoints").glob("step-*.pt"), reverse=True):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises anything; an older one may be whole
            print(f"skipped checkpoint {path}: {str(error).splitlines()[0]}", file=sys.stderr)
    return None


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that the loop can stop between two steps."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: leave signals to the program that called us
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(total: int | None, what: str, unit: str, progress: bool) -> Any:
    # disable=None: a bar on a terminal, silence in a pipe.
    return tqdm(total=total, desc=what, unit=unit, disable=None if progress else True, leave=False)


def _tensorboard(config: Config, folder: Path | None) -> Any:
    if not config.tensorboard or folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PadError("setting 'tensorboard' needs the extra: pip install 'pad[tensorboard]'") from None
    return SummaryWriter(str(folder / "tensorboard"))
