"""An ONNX graph whose backbones compute in int8, and what that costs in verdicts.

Weights and what flows between the convolutions of the pretrained networks are rounded to 8 bits (static
quantization by ONNX Runtime, a scale for each channel of weights; Jacob et al., arXiv:1712.05877), with
ranges taken from pictures of the model's kind. What sees pixels stays in single precision, since all that
follows would inherit its rounding; so do the encoder and the generator, whose picture is what is compared.

The calibration is that of the model in single precision. So the rates are held about as well as scores are
kept, and `measure_loss` says how well that is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import pad
from pad.config import FPR
from pad.errors import PadError
from pad.export.graph import NETWORKS
from pad.export.traced import plainly
from pad.exported import Exported

LEAST_PICTURES = 2  # one to take ranges from, another to measure on
_COLOURS = 3  # channels of what sees pixels


class Loss(NamedTuple):
    """What int8 costs, measured on pictures that no range was taken from."""

    pictures: int
    largest_change: float  # of a p-value
    other_verdicts: float  # the share that changes at the false-alarm rate of 5 %
    false_alarms: float  # the share of normal images that is flagged there
    before: float  # the same in single precision

    def to_dict(self) -> dict[str, float]:
        """As the metadata have it, of which `pad.exported.said_of_int8` makes a sentence."""
        return {
            "pictures": self.pictures,
            "largest_change_of_p_value": float(f"{self.largest_change:.4g}"),
            "verdicts_changed": float(f"{self.other_verdicts:.4g}"),
            "false_alarms": float(f"{self.false_alarms:.4g}"),
            "false_alarms_before": float(f"{self.before:.4g}"),
        }


def to_int8(model: Any, pictures: Sequence[NDArray[np.uint8]]) -> Any:
    """An `onnx.ModelProto` of `to_onnx` with its backbones in int8; ranges are those of pictures (H, W, 1 or
    3). Raises PadError where ONNX Runtime cannot, or if there is nothing to quantize."""
    import onnx
    from onnxruntime.quantization import QuantFormat, quantize_static

    chosen = _convolutions(model, onnx)
    if not chosen:
        raise PadError("--int8: this model has no convolutions of a backbone to quantize; leave it out")
    with tempfile.TemporaryDirectory() as place, plainly("--int8: ONNX Runtime cannot"), _silent_runtime():
        file = Path(place) / "int8.onnx"
        quantize_static(
            model, file, _reader(pictures), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv"], nodes_to_quantize=chosen,
        )  # fmt: skip
        quantized = onnx.load(file)
    nodes = list(quantized.graph.node)
    del quantized.graph.node[:]
    # The quantizer sorts them by what they take, but for what the branches of an If take.
    quantized.graph.node.extend(sorted(nodes, key=lambda node: node.op_type == "If"))
    del quantized.graph.value_info[:]  # see pad/export/onnx.py
    quantized.producer_name, quantized.producer_version = "pad", pad.__version__
    onnx.checker.check_model(quantized)
    return quantized


def _convolutions(model: Any, onnx: Any) -> list[str]:
    """The names of those that are computed in int8."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    own = f"parts.{NETWORKS}."
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in weights and not node.input[1].startswith(own)
        and (weights[node.input[1]].dims[1] > _COLOURS or _groups(node, onnx) > 1)
    ]  # fmt: skip


def _groups(node: Any, onnx: Any) -> int:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == "group"), 1)


def _reader(pictures: Sequence[NDArray[np.uint8]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """One picture after the other, None at the end."""

        def __init__(self) -> None:
            self.rest = iter(pictures)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(({"images": pixels[None]} for pixels in self.rest), None)

    return Reader()


@contextmanager
def _silent_runtime() -> Iterator[None]:
    """The quantizer's own sessions warn of inputs that may be left away."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)


def measure_loss(int8: Exported, single: Exported, pictures: Sequence[NDArray[np.uint8]]) -> Loss:
    """What changes from the graph in single precision to that in int8 on pictures (H, W, 1 or 3).

    Where a picture is far from normal, its p-value is the smallest there is before and after. So the false
    alarms are counted on the calibration scores, each moved by each of the differences that were measured.
    """
    calibration = single.calibration
    scores = np.array([[float(graph.run(pixels[None])["score"][0]) for graph in (single, int8)]
                       for pixels in pictures])  # fmt: skip
    before, after = calibration.p_values(scores).T
    limit = calibration.p_limit(FPR)
    moved = calibration.scores[:, None] + (scores[:, 1] - scores[:, 0])
    return Loss(
        len(pictures),
        float(np.abs(after - before).max()),
        float(((before <= limit) != (after <= limit)).mean()),
        float((calibration.p_values(moved) <= limit).mean()),
        float((calibration.p_values(calibration.scores) <= limit).mean()),
    )
