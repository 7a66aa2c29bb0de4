"""The folder of a training run: what is in it, and that a kill at any moment costs no more than some steps.

RUN/run.yaml      all that was asked for, and the whole recipe that came of it
RUN/checkpoints/  step-00000500.pt: all that `--resume` needs; the newest two, the first of them of step 0
RUN/log.jsonl     one line every `log_every` steps
RUN/samples/      PNG grids: normal images, their reconstructions, images generated from the prior
RUN/model/        the model folder, once the training is done
RUN/.lock         held by the one process that writes here; the system lets go of it when that process ends

Each file but the log appears whole or not at all (pad/store/files.py). The log is cut to the checkpoint that
a run goes on from.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from pad.errors import PadError
from pad.store.files import CannotWrite, atomic, remove_orphans, restore_folder
from pad.store.model_folder import present

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
_LOCK = ".lock"
_STATE = {"trainer", "recipe", "data", "elapsed", "finished"}  # what every checkpoint holds


class RunFolder:
    """The folder of a run, at `path`; it need not be there yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"
        self.log = self.path / "log.jsonl"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """For the one process that writes here. What killed ones left half-done is removed first; a folder
        that was made for this and is still empty at the end goes again.

        Raises PadError if another process has the folder, or if it cannot be made.
        """
        missing = self._missing()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK)
            lock.acquire(timeout=0)
        except Timeout:
            raise PadError(
                f"another `pad train` is writing to {self.path}: wait for it, or name another --out"
            ) from None
        except FileExistsError:
            raise PadError(f"--out {self.path} is a file; name a folder") from None
        except OSError as error:
            raise CannotWrite(self.path, error) from None
        try:
            self._tidy()
            yield
        finally:
            self._leave(missing)
            lock.release()

    def _missing(self) -> list[Path]:
        """The folders on the way here that have to be made, the innermost first."""
        try:
            return [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        except OSError as error:  # a name too long
            raise CannotWrite(self.path, error) from None

    def _tidy(self) -> None:
        for folder in (self.path, self.path / "checkpoints", self.path / "samples"):
            remove_orphans(folder)
        try:
            restore_folder(self.model)
        except OSError as error:
            raise CannotWrite(self.model, error) from None

    def _leave(self, made: list[Path]) -> None:
        with contextlib.suppress(OSError):
            if [entry.name for entry in self.path.iterdir()] == [_LOCK]:
                (self.path / _LOCK).unlink()
                for folder in made:
                    folder.rmdir()

    @property
    def started(self) -> bool:
        """Whether there is anything here that training has made."""
        return bool(self.checkpoints()) or present(self.model)

    # What was asked for

    def read_request(self) -> dict[str, Any]:
        """run.yaml, or nothing where there is none. Raises PadError if it cannot be read."""
        path = self.path / "run.yaml"
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise PadError(f"cannot read {path}: {error.strerror}") from None
        except (yaml.YAMLError, ValueError) as error:
            raise PadError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise PadError(f"{path} does not hold what was asked for: give it all again, with another --out")
        return content

    def write_request(self, request: Mapping[str, Any]) -> None:
        """run.yaml. Raises CannotWrite."""
        with atomic(self.path / "run.yaml") as file:
            file.write(yaml.safe_dump(dict(request), sort_keys=False, allow_unicode=True).encode())

    # Checkpoints

    def checkpoints(self) -> list[Path]:
        """Their files, the oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.pt"))

    def write_checkpoint(self, step: int, state: Mapping[str, Any]) -> None:
        """Adds one and drops all but the newest two; the log so far is on the disk then, too. Raises
        CannotWrite, with the older ones as they were."""
        content = io.BytesIO()  # torch would turn a full disk into an error of another kind
        torch.save(dict(state), content)
        self._sync_log()
        with atomic(self.path / "checkpoints" / f"step-{step:08d}.pt") as file:
            file.write(content.getbuffer())
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            with contextlib.suppress(OSError):
                old.unlink()

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The newest one that can be read, or None; a warning in the log for each that cannot."""
        for path in reversed(self.checkpoints()):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if isinstance(state, dict) and state.keys() >= _STATE:
                    return state
                reason = "it is not the state of a run"
            except Exception as error:  # a damaged file raises anything; an older one may be whole
                reason = " ".join(str(error).split())[:200] or "it is empty or cut short"
            log.warning("skipped checkpoint %s: %s", path, reason)
        return None

    # The log and the samples

    def append_log(self, entry: Mapping[str, Any]) -> None:
        """Adds a line to the log; `entry` has a `step`. Raises CannotWrite."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(entry)) + "\n")
        except OSError as error:
            raise CannotWrite(self.log, error) from None

    def cut_log(self, step: int) -> None:
        """Drops what a killed run logged after the step that it goes on from. Raises CannotWrite."""
        if not self.log.exists():
            return
        lines = []
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(line)["step"] <= step:
                    lines.append(line + "\n")
        with atomic(self.log) as file:
            file.write("".join(lines).encode())

    def _sync_log(self) -> None:
        with contextlib.suppress(OSError), self.log.open("r+b") as file:
            os.fsync(file.fileno())

    def sample(self, step: int) -> Path:
        """The file of the sample grid of a step."""
        return self.path / "samples" / f"step-{step:08d}.png"
