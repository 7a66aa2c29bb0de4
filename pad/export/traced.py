"""A graph as torch's exporter sees it: one program of tensors, for any number of pictures of any size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.export import ExportedProgram

from pad.config import FPR
from pad.errors import PadError, one_line
from pad.export.graph import Graph

_LOGGERS = ("", "torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch._export")


def traced(graph: Graph) -> ExportedProgram:
    """The program of a graph: `images` and `fpr` -> a dict of tensors. Raises PadError where torch cannot."""
    dynamic = torch.export.Dim.DYNAMIC
    # Larger than a piece of pixels (pad/images/resize.py): what is one there would be taken for a constant.
    images = torch.randint(256, (2, 437, 353, 3), generator=torch.Generator().manual_seed(0)).byte()
    given = (images, torch.tensor(FPR, dtype=torch.float64))
    with torch.no_grad(), plainly("this model cannot be exported"):
        program = torch.export.export(graph, given, dynamic_shapes=(dict.fromkeys(range(4), dynamic), None))
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            # Lines of files: where these lie is the business of this machine alone.
            node.meta.pop("stack_trace", None)
    return program


@contextmanager
def plainly(what: str) -> Iterator[None]:
    """Exporters fail in as many ways as there are operators: a PadError says `what`, and why. Their remarks
    are about their own code, and kept back."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except PadError:
        raise
    except Exception as error:
        raise PadError(f"{what}: {one_line(str(error)) or type(error).__name__}") from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
