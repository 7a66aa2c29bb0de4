"""What a training is asked for: now (`TrainRequest`), and as a run keeps it in run.yaml (`RunRecord`)."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pad.config import parse_assignments
from pad.errors import PadError

NO_REPLAY = "none"  # --replay none: the old normal may be forgotten


@dataclass(frozen=True)
class TrainRequest:
    """What `pad train` is asked for; each attribute is the option of its name, where none is named.

    Attributes:
        out: folder of the run.
        data: normal images: files, folders, globs, or datasets and their normal classes.
        data_root: where named datasets lie.
        config: a recipe's name or file; None: `folder`, or that of `start`.
        set: settings on top of it, `key=value`.
        steps, minutes: how long to train; at most one of them.
        seed: of all random numbers.
        tolerate: what new normal images may differ by (pad/tolerance.py).
        tile: pixels a side of the tiles that large pictures are cut into.
        start: --from, a trained model to go on from.
        replay: images of what `start` calls normal, or ("none",); empty: those that it makes itself.
        check: anomalies that `start` should go on finding.
        resume: go on where the run stopped; what is not asked for anew is as it was.
        device: auto, cpu, cuda or mps.
        allow_downloads: whether weights of the backbones of `start` may be downloaded.
    """

    out: str
    data: tuple[str, ...] = ()
    data_root: str | None = None
    config: str | None = None
    set: tuple[str, ...] = ()
    steps: int | None = None
    minutes: float | None = None
    seed: int | None = None
    tolerate: str | None = None
    tile: int | None = None
    start: str | None = None
    replay: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    resume: bool = False
    device: str = "auto"
    allow_downloads: bool = False

    def settings(self) -> dict[str, Any]:
        """The settings that are asked for, unchecked. Raises PadError for what is not `key=value`."""
        settings = parse_assignments(self.set)
        for key in ("steps", "seed", "tolerate", "tile"):
            if (value := getattr(self, key)) is not None:
                settings[key] = value
        return settings

    def command(self) -> str:
        """As it is typed, but for the machine's own: where datasets lie, and the device."""
        words = ["python", "train.py", "--data", *self.data, "--out", Path(self.out).as_posix()]
        for option in ("seed", "config", "steps", "minutes", "tolerate", "tile"):
            if (value := getattr(self, option)) is not None:
                words += [f"--{option}", f"{value:g}" if isinstance(value, float) else str(value)]
        for option, values in (("set", self.set), ("replay", self.replay), ("check", self.check)):
            words += [f"--{option}", *values] if values else []
        return shlex.join([*words, "--from", self.start] if self.start else words)


_NAMES_IN_FILE = {"start": "from", "start_sha256": "from_sha256"}


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, rename=_NAMES_IN_FILE):
    """The whole request of a run, over all its sittings, and the recipe that came of it.

    `start_sha256` and `replay_sha256` say which model, and which folder of images, they were.
    """

    data: list[str] | None = None
    data_root: str | None = None
    config: str | None = None
    set: list[str] | None = None
    steps: int | None = None
    minutes: float | None = None
    seed: int | None = None
    start: str | None = None
    start_sha256: str | None = None
    replay: list[str] | None = None
    replay_sha256: str | None = None
    check: list[str] | None = None
    recipe: dict[str, Any] | None = None

    @classmethod
    def read(cls, values: dict[str, Any], path: Path) -> RunRecord:
        """From what `path` holds, which may be nothing. Raises PadError if `pad train` did not write it."""
        try:
            return msgspec.convert(values, cls)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            key = str(error).partition("`$.")[2].partition("`")[0].partition("[")[0]
            place = f"{path}: '{key}'" if key else path  # half a character has no place
            raise PadError(f"{place} is not what `pad train` writes there") from None

    def with_request(self, request: TrainRequest, started: bool) -> RunRecord:
        """What is asked for now, and else what was asked for before; without the recipe. started: the run has
        made something already.

        Raises PadError if there is nothing to train on, or --replay or --check without --from.
        """
        data = list(request.data) or self.data
        if not data and request.resume and not started:
            raise PadError(f"--resume: {request.out} holds no run to go on with; start one with --data")
        if not data:
            raise PadError("--data is missing: name your normal images")
        minutes, steps = request.minutes, request.steps
        if minutes is None and steps is None:
            minutes, steps = self.minutes, self.steps
        start, replay = request.start or self.start, list(request.replay) or self.replay
        if replay and not start:
            raise PadError("--replay goes with --from MODEL: it is what keeps that model's old normal")
        check = list(request.check) or self.check
        if check and not start:
            raise PadError(
                "--check goes with --from MODEL: it is what that model finds and should go on finding"
            )
        known = self.set or []
        return RunRecord(
            data=data,
            data_root=request.data_root or self.data_root,
            config=request.config or self.config,
            set=[*known, *(word for word in request.set if word not in known)],
            steps=steps,
            minutes=minutes,
            seed=self.seed if request.seed is None else request.seed,
            start=start,
            replay=replay,
            check=check,
        )

    def replayed(self) -> Any:
        """What is replayed: by its content, wherever it lies."""
        return self.replay_sha256 or self.replay

    def to_dict(self) -> dict[str, Any]:
        """As run.yaml holds it."""
        return msgspec.to_builtins(self)
