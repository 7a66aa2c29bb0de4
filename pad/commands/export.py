"""`pad export`: model -> one file for other runtimes, which scores as it does."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pad.detector import Detector
from pad.devices import pick_precision
from pad.errors import PadError
from pad.export.chosen import with_views
from pad.export.int8 import LEAST_PICTURES, Loss, measure_loss, to_int8
from pad.export.onnx import OPSET, to_onnx
from pad.export.parity import Parity, check_parity, made_up
from pad.export.program import Program, to_program
from pad.exported import KEY, Exported, pixels_at_8_bits, said_of_int8
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.store.files import atomic
from pad.store.hub import resolve_model
from pad.store.model_folder import fingerprint

_SAMPLES = 64  # of the model, at most
_GIVEN = 512  # of those that are named, at most
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
    samples = _samples(arguments, folder, detector)
    if arguments.int8 and len(samples) < LEAST_PICTURES:
        raise PadError(
            f"--int8: {name} keeps no pictures to measure the loss on; name some of its kind: --samples DATA"
        )
    pictures = [*samples, *made_up()]
    if arguments.views is not None:
        detector = with_views(detector, [view.strip() for view in arguments.views.split(",")], name)
    loss: Loss | None = None
    if arguments.format == "torch-export":
        content = to_program(detector, name, fingerprint(folder))
        parity = check_parity(Program(content), detector, pictures)
    else:
        model = to_onnx(detector, name, fingerprint(folder), arguments.opset or OPSET)
        content = model.SerializeToString()
        single = _read_again(content)
        parity = check_parity(single, detector, pictures)
        if arguments.int8:
            content, loss = _in_int8(model, single, samples)
    with atomic(out) as file:
        file.write(content)
    _tell(parity)
    if loss is not None:
        print(f"then int8: {said_of_int8(loss.to_dict())}")
        if not arguments.samples:
            print("that is of the few pictures that the model keeps; --samples DATA measures it on yours")
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
    for option, given in (("--opset", arguments.opset is not None), ("--int8", arguments.int8)):
        if given and arguments.format != "onnx":
            raise PadError(f"{option} is of ONNX; leave it out with --format {arguments.format}")
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


def _in_int8(model: Any, single: Exported, samples: list[NDArray[np.uint8]]) -> tuple[bytes, Loss]:
    """The file in int8, which says what that costs: ranges are taken from every other sample, and it is
    measured on the rest."""
    quantized = to_int8(model, samples[::2][:_SAMPLES])
    loss = measure_loss(_read_again(quantized.SerializeToString()), single, samples[1::2])
    for entry in quantized.metadata_props:
        if entry.key == KEY:
            entry.value = json.dumps({**json.loads(entry.value), "int8": loss.to_dict()})
    return quantized.SerializeToString(), loss


def _samples(arguments: argparse.Namespace, folder: Path, detector: Detector) -> list[NDArray[np.uint8]]:
    """Pictures of the model's kind: those that are named, else the samples that lie with it and normal ones
    that it keeps."""
    if arguments.samples:
        images = resolve(arguments.samples, "evaluate", arguments.data_root)
        return list(_spread(images, detector, _GIVEN))
    found: list[NDArray[np.uint8]] = []
    if (folder / "samples").is_dir():
        found += _spread(resolve([folder / "samples"], "evaluate"), detector, _SAMPLES)
    if detector.quick is not None:
        kept = detector.quick.kept.pictures[: _SAMPLES - len(found)]
        found.extend(kept.permute(0, 2, 3, 1).contiguous().numpy())
    return found


def _spread(images: ImageSet, detector: Detector, most: int) -> Iterator[NDArray[np.uint8]]:
    """At most so many of the images, from all over the set. Raises ImageError for one that cannot be read."""
    count = min(most, len(images))
    for i in range(count):
        yield pixels_at_8_bits(images, i * len(images) // count, detector.config.channels)
