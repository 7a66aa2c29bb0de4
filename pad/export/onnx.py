"""A detector as one ONNX file, which scores as `pad` does: checked before it is written.

Inputs: `images`, uint8 (n, H, W, 1 or 3), of any n, H and W; `fpr`, float64, and `explain`, bool, both of
which may be left away. Outputs: see `pad.export.graph.Judged`; without `explain` the maps and the nearest
normal images are empty, and cost nothing. What else there is to know of the model is in the metadata, as JSON
under the key `pad` (pad/exported.py).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

import pad
from pad.config import FPR
from pad.detector import Detector
from pad.errors import PadError
from pad.export.card import card_of
from pad.export.graph import OUTPUTS, Graph
from pad.export.traced import plainly, traced
from pad.exported import KEY

OPSET = 20
LEAST_OPSET = 18  # from which on resizing and reductions are what torch's exporter writes
_SHOWN = ("anomaly_map", "nearest_normal")  # what is computed only where it is asked for


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
        text = json.dumps(card_of(detector, name, fingerprint)) if entry == KEY else f"pad model {name}"
        model.metadata_props.add(key=entry, value=text)
    model.producer_name, model.producer_version = "pad", pad.__version__
    model.doc_string = "Perceptual anomaly detection: uint8 pixels in, verdicts and anomaly maps out."
    onnx.checker.check_model(model)
    return model


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
    program = traced(graph)
    with plainly("this model cannot be exported"):
        translated = torch.onnx.export(
            program, opset_version=opset, input_names=["images", "fpr"], output_names=list(OUTPUTS),
            dynamo=True, verbose=False,
        )  # fmt: skip
    assert translated is not None
    model = translated.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # how torch's exporter came to it
    del model.graph.value_info[:]  # a runtime trusts names of sizes, and some of these stand for several
    return model


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
