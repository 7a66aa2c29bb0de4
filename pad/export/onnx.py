"""A detector as one ONNX file, which scores as `pad` does: checked before it is written.

Inputs: `images`, uint8 (n, H, W, 1 or 3), of any n, H and W; `fpr`, float64, and `explain`, bool, both of
which may be left away. Outputs: see `pad.export.graph.Judged`; without `explain` the maps and the nearest
normal images are empty, and cost nothing. What else there is to know of the model is in the metadata, as JSON
under the key `pad` (pad/exported.py).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pad
from pad.config import FPR
from pad.detector import Detector
from pad.errors import PadError, one_line
from pad.export.graph import OUTPUTS, Graph
from pad.exported import FORMAT, KEY
from pad.store.files import atomic

OPSET = 20
LEAST_OPSET = 18  # from which on resizing and reductions are what torch's exporter writes
_SHOWN = ("anomaly_map", "nearest_normal")  # what is computed only where it is asked for
_KEPT_EXTRA = ("views", "trained_images", "old_normal", "cross_fitted")  # of the calibration


def to_onnx(detector: Detector, name: str, fingerprint: str, opset: int = OPSET) -> Any:
    """The detector as an `onnx.ModelProto`, which says of itself that it is the model `name`.

    detector: on the CPU, in single precision. Raises PadError for one that cannot be exported, or without the
    extra `pad-anomaly[onnx]`.
    """
    onnx = _onnx()
    if opset < LEAST_OPSET:
        raise PadError(f"--opset takes {LEAST_OPSET} or more, not {opset}")
    model = _translated(Graph(detector).eval(), opset)
    _only_when_asked(model, onnx)
    _set_default(model, onnx, "fpr", np.array(FPR))
    for entry in (KEY, "title"):
        text = json.dumps(_card(detector, name, fingerprint)) if entry == KEY else f"pad model {name}"
        model.metadata_props.add(key=entry, value=text)
    model.producer_name, model.producer_version = "pad", pad.__version__
    model.doc_string = "Perceptual anomaly detection: uint8 pixels in, verdicts and anomaly maps out."
    onnx.checker.check_model(model)
    return model


def write_onnx(model: Any, path: Path) -> None:
    """Writes the file, whole or not at all. Raises PadError where it cannot be written."""
    with atomic(path) as file:
        file.write(model.SerializeToString())


def _onnx() -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401 - of the check that follows
        import onnxscript  # noqa: F401 - of torch's exporter
    except ImportError as error:
        raise PadError(f"pad export needs the extra: pip install 'pad-anomaly[onnx]' ({error})") from None
    return onnx


def _translated(graph: Graph, opset: int) -> Any:
    """The graph in ONNX's operators."""
    dynamic = torch.export.Dim.DYNAMIC
    # Larger than a piece of pixels (pad/images/resize.py): what is one there would be taken for a constant.
    images = torch.randint(256, (2, 437, 353, 3), generator=torch.Generator().manual_seed(0)).byte()
    given = (images, torch.tensor(FPR, dtype=torch.float64))
    try:
        with torch.no_grad(), _quiet():
            exported = torch.export.export(
                graph, given, dynamic_shapes=(dict.fromkeys(range(4), dynamic), None)
            )
            program = torch.onnx.export(
                exported, opset_version=opset, input_names=["images", "fpr"], output_names=list(OUTPUTS),
                dynamo=True, verbose=False,
            )  # fmt: skip
    except PadError:
        raise
    except Exception as error:  # the exporter fails in as many ways as there are operators
        reason = one_line(str(error)) or type(error).__name__
        raise PadError(f"this model cannot be exported: {reason}") from None
    assert program is not None
    model = program.model_proto
    del model.graph.value_info[:]  # a runtime trusts names of sizes, and some of these stand for several
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks are about its own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _only_when_asked(model: Any, onnx: Any) -> None:
    """Moves what only the maps need into a branch: runtimes compute all outputs, whichever are fetched."""
    graph, helper = model.graph, onnx.helper
    makers = {name: node for node in graph.node for name in node.output}

    def needed(outputs: list[str]) -> set[int]:
        found: set[int] = set()
        waiting = list(outputs)
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and id(node) not in found:
                found.add(id(node))
                waiting += [*node.input, *_used_inside(node)]
        return found

    always = needed([output for output in OUTPUTS if output not in _SHOWN])
    branch = [node for node in graph.node if id(node) not in always and id(node) in needed(list(_SHOWN))]
    infos = {output.name: output for output in graph.output}
    inner = {name: f"{name}.shown" for name in _SHOWN}
    then_nodes, else_nodes, then_outputs, else_outputs = [], [], [], []
    for node in branch:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.output[:] = [inner.get(name, name) for name in node.output]
        copy.input[:] = [inner.get(name, name) for name in node.input]
        then_nodes.append(copy)
    for name in _SHOWN:
        info = infos[name].type.tensor_type
        sides = [dim.dim_value for dim in info.shape.dim][1:]
        if not any(name in node.output for node in branch):  # made on the way to the score
            then_nodes.append(helper.make_node("Identity", [name], [inner[name]]))
        empty = helper.make_tensor(f"{name}.none", info.elem_type, [0, *sides], [])
        else_nodes.append(helper.make_node("Constant", [], [f"{name}.none"], value=empty))
        shape = ["m", *sides]
        then_outputs.append(helper.make_tensor_value_info(inner[name], info.elem_type, shape))
        else_outputs.append(helper.make_tensor_value_info(f"{name}.none", info.elem_type, shape))
    chosen = helper.make_node(
        "If", ["explain"], list(_SHOWN),
        then_branch=helper.make_graph(then_nodes, "shown", [], then_outputs),
        else_branch=helper.make_graph(else_nodes, "not_shown", [], else_outputs),
    )  # fmt: skip
    moved = {id(node) for node in branch}
    kept = [node for node in graph.node if id(node) not in moved]
    del graph.node[:]
    graph.node.extend([*kept, chosen])
    for name in _SHOWN:
        infos[name].type.tensor_type.shape.dim[0].dim_param = "m"
    graph.input.append(helper.make_tensor_value_info("explain", onnx.TensorProto.BOOL, []))
    _set_default(model, onnx, "explain", np.array(True))


def _used_inside(node: Any) -> list[str]:
    """What the branches of a node take from outside of them."""
    return [name for attribute in node.attribute for inner in attribute.g.node for name in inner.input]


def _set_default(model: Any, onnx: Any, name: str, value: np.ndarray) -> None:
    """An input with an initializer of its name may be left away."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))


def _card(detector: Detector, name: str, fingerprint: str) -> dict[str, Any]:
    """What the file says of itself. The latents of normal images that a model keeps stay at home."""
    calibration = detector.calibrated().to_dict()
    extra = {key: value for key, value in calibration["extra"].items() if key in _KEPT_EXTRA}
    return {
        "format": FORMAT,
        "model": name,
        "fingerprint": fingerprint,
        "versions": {"pad": pad.__version__, "torch": torch.__version__},
        "channels": detector.config.channels,
        "views": list(detector.views),
        "seen": {"crop": detector.config.crop, "fit": detector.config.fit},
        "data": detector.card.get("data", {}),
        "calibration": {"scores": calibration["scores"], "extra": extra},
    }
