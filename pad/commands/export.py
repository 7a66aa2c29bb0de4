"""`pad export`: model -> one ONNX file that scores as it does."""

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
from pad.export.onnx import to_onnx, write_onnx
from pad.export.parity import check_parity, made_up
from pad.exported import Exported, pixels_at_8_bits
from pad.images.resolve import resolve
from pad.store.hub import resolve_model
from pad.store.model_folder import fingerprint

_SAMPLES = 64  # of the model, at most


def export(arguments: argparse.Namespace) -> int:
    """`pad export MODEL --out FILE.onnx`: the file is written if it scores as the model does."""
    out = Path(arguments.out)
    if out.suffix != ".onnx":
        raise PadError(f"--out {out}: name a file that ends in .onnx")
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
    model = to_onnx(detector, name, fingerprint(folder), arguments.opset)
    with tempfile.TemporaryDirectory() as place:
        trial = Path(place) / out.name
        write_onnx(model, trial)
        parity = check_parity(Exported(trial), detector, pictures)
    write_onnx(model, out)
    print(
        f"compared on {parity.images} pictures: scores differ by at most {parity.largest_difference:.1g}, "
        f"{parity.images - parity.other_p_values} p-values are equal"
        + (f", {parity.other_p_values} differ by ties with calibration scores" * (parity.other_p_values > 0))
    )
    if arguments.views is not None:
        print(f"views: {', '.join(detector.views)}, with a calibration of their own")
    print(f"graph: {out} ({out.stat().st_size / 1e6:.1f} MB)\nscore images with: pad evaluate {out} IMAGES")
    if pick_precision("auto", detector.device) != detector.dtype:
        print(
            "note: on this machine `pad evaluate MODEL` computes in bfloat16, which differs by about a "
            "percent; with --precision float32 it says what the graph says",
            file=sys.stderr,
        )
    return 0


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
