"""The single table of what the zoo is made of, `zoo/models.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from pad.config import zoo_folder
from pad.errors import PadError
from pad.learning.request import TrainRequest


@dataclass(frozen=True)
class Entry:
    """A line of `zoo/models.yaml`: what a model is made of."""

    name: str  # "fashion-mnist/bag"
    title: str
    data: str  # as train.py and evaluate.py take it
    licence: str  # as the hub calls it: "mit"
    about: str  # of the data
    limits: tuple[str, ...] = ()
    config: str | None = None  # of train.py, as are the next two
    steps: int | None = None
    set: tuple[str, ...] = ()
    prepare: str | None = None  # the command that makes the data
    seed: int = 0

    @property
    def short_name(self) -> str:
        """The name of its run folder."""
        return self.name.rpartition("/")[2]

    def request(self, run: Path, data_root: str | None = None, device: str = "auto") -> TrainRequest:
        """Its training, into the run folder `run`."""
        return TrainRequest(
            str(run),
            (self.data,),
            data_root,
            self.config,
            self.set,
            self.steps,
            seed=self.seed,
            device=device,
        )


def read_entries(root: Path | None = None) -> dict[str, Entry]:
    """The lines of `models.yaml` by name: of the zoo `root`, or the installed one if that has none.

    Raises PadError for a file that is not of the form that its head describes.
    """
    path = (root or zoo_folder()) / "models.yaml"
    if not path.is_file():
        path = zoo_folder() / "models.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = {}
        for name, values in content["models"].items():
            merged = {**content["groups"][name.partition("/")[0]], **values}
            lists = {key: tuple(map(str, merged.get(key, ()))) for key in ("limits", "set")}
            entries[name] = Entry(name=name, **{**merged, **lists})
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PadError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise PadError(f"{path}: an entry is not as the head of the file says ({error})") from None
    return entries
