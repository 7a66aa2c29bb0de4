"""`pad export`: model -> one file for other runtimes, which scores as it does."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pad.detector import Detector
from pad.devices import pick_precision
from pad.errors import PadError
from pad.export.chosen import with_views
from pad.export.onnx import OPSET, to_onnx
from pad.export.parity import Parity, check_parity, made_up
from pad.export.program import Program, to_program
from pad.exported import Exported, pixels_at_8_bits
from pad.images.resolve import resolve
from pad.store.files import atomic
from pad.store.hub import resolve_model
from pad.store.model_folder import fingerprint

_SAMPLES = 64  # of the model, at most
_ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}


def export(arguments: argparse.Namespace) -> int:
    """`pad export MODEL --out FILE`: the file is written if it scores as the model does."""
    out = _file_to_write(arguments)
    folder = resolve_model(arguments.model)
    # A runtime computes in single precision, and so does what it is compared with.
    detector = Detector.load(
        folder,
        "cpu",
        arguments.backbone_weights,
        arguments.allow_downloads,
        arguments.view_backbone_weights,
        "float32",
    )
    # Of a folder its name: where it lies on this machine is nobody's business.
    shared = arguments.model.startswith(("zoo:", "hf-hub:"))
    name = arguments.model if shared else Path(arguments.model).resolve().name
    pictures = [*_samples(folder, detector), *made_up()]
    if arguments.views is not None:
        detector = with_views(detector, [view.strip() for view in arguments.views.split(",")], name)
    if arguments.format == "torch-export":
        content = to_program(detector, name, fingerprint(folder))
        parity = check_parity(Program(content), detector, pictures)
    else:
        model = to_onnx(detector, name, fingerprint(folder), arguments.opset or OPSET)
        content = model.SerializeToString()
        parity = check_parity(_read_again(content), detector, pictures)
    with atomic(out) as file:
        file.write(content)
    _tell(parity)
    if arguments.views is not None:
        print(f"views: {', '.join(detector.views)}, with a calibration of their own")
    print(f"graph: {out} ({len(content) / 1e6:.1f} MB)")
    if arguments.format == "onnx":
        print(f"score images with: pad evaluate {out} IMAGES")
    if pick_precision("auto", detector.device) != detector.dtype:
        print(
            "note: on this machine `pad evaluate MODEL` computes in bfloat16, which differs by about a "
            "percent; with --precision float32 it says what the graph says",
            file=sys.stderr,
        )
    return 0


def _file_to_write(arguments: argparse.Namespace) -> Path:
    out, ending = Path(arguments.out), _ENDINGS[arguments.format]
    if out.suffix != ending:
        other = next((f for f, e in _ENDINGS.items() if e == out.suffix), None)
        hint = f", or say --format {other}" if other else ""
        raise PadError(f"--out {out}: name a file that ends in {ending}{hint}")
    if arguments.opset is not None and arguments.format != "onnx":
        raise PadError(f"--opset is of ONNX; leave it out with --format {arguments.format}")
    return out


def _read_again(content: bytes) -> Exported:
    """An ONNX file as whoever is given it reads it."""
    with tempfile.TemporaryDirectory() as place:
        trial = Path(place) / "trial.onnx"
        trial.write_bytes(content)
        return Exported(trial)


def _tell(parity: Parity) -> None:
    print(
        f"compared on {parity.images} pictures: scores differ by at most {parity.largest_difference:.1g}, "
        f"{parity.images - parity.other_p_values} p-values are equal"
        + (f", {parity.other_p_values} differ by ties with calibration scores" * (parity.other_p_values > 0))
    )


def _samples(folder: Path, detector: Detector) -> Iterator[NDArray[np.uint8]]:
    """Pictures of the model's kind: the samples that lie with it, and the normal ones that it keeps."""
    count = 0
    if (folder / "samples").is_dir():
        images = resolve([folder / "samples"], "evaluate")
        for index in range(min(_SAMPLES, len(images))):
            yield pixels_at_8_bits(images, index, detector.config.channels)
            count += 1
    if detector.quick is not None:
        kept = detector.quick.kept.pictures[: _SAMPLES - count]
        yield from kept.permute(0, 2, 3, 1).contiguous().numpy()
