"""A worker: scores one piece of the images after another, as one lane of a single process would.

Which images are scored together, and by how many threads, decides how numbers are rounded. So pieces are cut
and threads are counted as the single process does (pad/images/stream.py), and rows are equal to the bit.
"""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import torch

from pad.detector import Detector
from pad.images.imageset import ImageSet
from pad.images.stream import decoded
from pad.scoring import score_batch
from pad.store.model_folder import FILES


class _Weights(Protocol):
    """Where to compute, and the weights that a model folder lacks."""

    @property
    def device(self) -> str: ...
    @property
    def backbone_weights(self) -> str | None: ...
    @property
    def view_backbone_weights(self) -> str | None: ...
    @property
    def allow_downloads(self) -> bool: ...


@dataclass(frozen=True)
class Settings:
    """What every worker must know besides the model."""

    device: str
    precision: str | None
    backbone_weights: str | None
    view_backbone_weights: str | None
    allow_downloads: bool
    fpr: float
    confidence: float | None
    threads: int


def sent(folder: Path) -> Any:
    """A reference to the files of a model folder, which the machines of the cluster need not see. Whoever
    holds it keeps them there, so that a process that begins again finds them."""
    return ray.put({name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()})


def loaded(files: Any, given: _Weights, precision: str | None = None) -> Detector:
    """The detector of a model folder that was `sent`."""
    with tempfile.TemporaryDirectory() as place:
        for name, content in ray.get(files).items():
            (Path(place) / name).write_bytes(content)
        return Detector.load(
            place,
            given.device,
            given.backbone_weights,
            given.allow_downloads,
            given.view_backbone_weights,
            precision,
        )


class Worker:
    """A detector in a process of the cluster.

    Args:
        files: of the model folder, as they were `sent`.
        settings: what was asked for.
    """

    def __init__(self, files: Any, settings: Settings) -> None:
        self.settings = settings
        torch.set_num_threads(settings.threads)
        self.detector = loaded(files, settings, settings.precision)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[Any]]:
        """Of pieces, each a pickled ImageSet and its number, the pickled rows."""
        return {"number": list(block["number"]), "rows": [self._rows(images) for images in block["images"]]}

    def _rows(self, packed: bytes) -> bytes:
        images: ImageSet = pickle.loads(packed)
        batch = decoded(images, range(len(images)), self.detector.config)
        scored = score_batch(
            self.detector, images, batch, self.settings.fpr, confidence=self.settings.confidence
        )
        return pickle.dumps(list(scored.rows.values()))
