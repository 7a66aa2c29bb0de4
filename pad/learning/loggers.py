"""What a training tells other tools as it goes: TensorBoard, MLflow and Weights & Biases, by one protocol.

The setting `loggers` names them. Each keeps what it gets in the run folder, unless its own environment says
otherwise. TensorBoard's events go on where a run goes on; in MLflow and W&B what is once said cannot be taken
back, so a run that is resumed is a new one there, of the same name.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pad.config import Config, to_mapping
from pad.errors import PadError, one_line

log = logging.getLogger(__name__)

PROJECT = "pad"  # the experiment of MLflow, the project of W&B


class Logger(Protocol):
    """Takes what a training tells. It may raise what it likes: the training goes on without it."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Losses and the like after `step` steps, by name."""

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture, uint8 of shape (H, W, 3)."""

    def close(self, finished: bool) -> None:
        """The end; whether it is that of the training, or of a process that was stopped."""


class TensorBoard:
    """Events below `FOLDER/tensorboard`; those of a killed run after `step` are dropped."""

    def __init__(self, config: Config, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, finished: bool) -> None:
        self._writer.close()


class MLflow:
    """A run in `FOLDER/mlflow` (`mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow/mlflow.db`), or where
    `MLFLOW_TRACKING_URI` says."""

    def __init__(self, config: Config, folder: Path, step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag

        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # tells of each table that it makes
        store, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not store:
            own = (folder / "mlflow").resolve()
            own.mkdir(exist_ok=True)
            store, artifacts = f"sqlite:///{own / 'mlflow.db'}", (own / "artifacts").as_uri()
        self._client, self._metric = MlflowClient(store), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name, artifacts)
        self.run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        params = [Param(key, str(value)) for key, value in to_mapping(config).items()]
        self._client.log_batch(self.run, params=params, tags=[RunTag("pad.from_step", str(step))])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run, metrics=metrics)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._client.log_image(self.run, pixels, artifact_file=f"{name}/step-{step:08d}.png")

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


class WeightsAndBiases:
    """A run below `FOLDER/wandb`, sent where W&B's account and `WANDB_MODE` say (offline: nowhere)."""

    def __init__(self, config: Config, folder: Path, step: int) -> None:
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=folder.name,
            dir=str(folder),
            config=to_mapping(config),
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._run.log({name: self._image(pixels)}, step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


_KINDS: dict[str, tuple[Callable[[Config, Path, int], Logger], str]] = {
    "tensorboard": (TensorBoard, "torch.utils.tensorboard"),
    "mlflow": (MLflow, "mlflow"),
    "wandb": (WeightsAndBiases, "wandb"),
}


def check_loggers(names: Sequence[str]) -> None:
    """Raises PadError, saying what to install, for a logger whose package is missing."""
    for name in names:
        try:
            importlib.import_module(_KINDS[name][1])
        except ImportError:
            raise PadError(
                f"setting 'loggers': {name} needs the extra: pip install 'pad-anomaly[{name}]'"
            ) from None


class Loggers:
    """Several as one. One that fails is told of, and gets nothing more: the training is worth more."""

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._loggers = dict(loggers)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tell("scalars", step, values)

    def images(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._tell("images", step, name, pixels)

    def close(self, finished: bool) -> None:
        self._tell("close", finished)

    def _tell(self, what: str, *arguments: Any) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                getattr(logger, what)(*arguments)
            except Exception as error:
                log.warning("%s gets nothing more: %s", name, _reason(error))
                del self._loggers[name]


@contextmanager
def logging_to(config: Config, folder: Path | None, step: int) -> Iterator[Loggers]:
    """The loggers of a run that goes on after `step` steps, closed at the end; none without a folder.

    Raises PadError if one cannot be begun.
    """
    loggers = Loggers({} if folder is None else _begun(config, folder, step))
    finished = False
    try:
        yield loggers
        finished = True
    finally:
        loggers.close(finished)


def _begun(config: Config, folder: Path, step: int) -> dict[str, Logger]:
    begun: dict[str, Logger] = {}
    for name in config.loggers:
        try:
            begun[name] = _KINDS[name][0](config, folder, step)
        except Exception as error:
            Loggers(begun).close(False)
            raise PadError(f"setting 'loggers': {name} cannot begin: {_reason(error)}") from error
    return begun


def _reason(error: Exception) -> str:
    return one_line(str(error) or type(error).__name__)
