"""A detector as a program of torch (`torch.export`), for those who go on from there: other backends, C++.

It says what the ONNX graph says (pad/export/graph.py), of `images` and `fpr`, both of which are given:

    said = torch.export.load(FILE).module()(images, torch.tensor(0.05, dtype=torch.float64))

What else there is to know of the model is a file in it, `pad`, JSON (pad/export/card.py). torch reads such
files by pickle, which runs what a stranger wrote: `pad` reads the one that it has just written, and no other.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pad.config import FPR
from pad.detector import Detector
from pad.export.card import card_of
from pad.export.graph import Graph
from pad.export.traced import plainly, traced
from pad.exported import KEY


def to_program(detector: Detector, name: str, fingerprint: str) -> bytes:
    """The detector as a .pt2 file, which says of itself that it is the model `name`.

    detector: on the CPU, in single precision. Raises PadError for one that cannot be exported.
    """
    program = traced(Graph(detector).eval())
    file = io.BytesIO()
    with plainly("this model cannot be exported"):
        # An example to run it on would be a megabyte of noise.
        program._example_inputs = None
        torch.export.save(program, file, extra_files={KEY: json.dumps(card_of(detector, name, fingerprint))})
    return file.getvalue()


class Program:
    """A file of `to_program`, read again. Only for files of one's own (see the module's text)."""

    def __init__(self, content: bytes) -> None:
        extra = {KEY: ""}
        with plainly("torch does not read what it wrote"):
            self._run = torch.export.load(io.BytesIO(content), extra_files=extra).module()
        self.card = json.loads(extra[KEY])

    def run(
        self, images: NDArray[np.uint8], fpr: float | None = None, explain: bool = False
    ) -> dict[str, NDArray[Any]]:
        """All that the program says of pictures (n, H, W, 1 or 3), as `Exported.run`; always explained."""
        rate = torch.tensor(FPR if fpr is None else fpr, dtype=torch.float64)
        with torch.no_grad():
            said = self._run(torch.tensor(images), rate)
        return {name: values.numpy() for name, values in said.items()}
