"""`pad evaluate FILE.onnx DATA`: a graph of `pad export`, data -> scores and summary, without torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pad.commands.evaluating import exit_status, show, stoppable, summary_of, tell_unreadable, write_rows
from pad.commands.requests import request_of
from pad.errors import PadError
from pad.exported import Exported
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.request import EvaluateRequest
from pad.judging.rows import Row, make_row
from pad.progress import progress_bar


def evaluate(arguments: argparse.Namespace) -> int:
    """`pad evaluate FILE.onnx DATA`. Raises PadError for what only a model can do."""
    request = request_of(EvaluateRequest, arguments)
    if request.report or request.explain:
        option = "--report" if request.report else "--explain"
        raise PadError(f"{option} takes the model itself, not an exported graph")
    if request.device not in ("auto", "cpu"):
        raise PadError(f"--device {request.device}: an exported graph is run on the CPU")
    with stoppable() as check:
        images = resolve(request.data, "evaluate", request.data_root)
        graph = Exported(request.model)
        rows = write_rows(_batches(graph, images, request), request, check)
        summary = summary_of(rows, images, graph.calibration, request)
        show(rows, summary, request)
        tell_unreadable(rows)
        return exit_status(summary, request)


def _batches(graph: Exported, images: ImageSet, request: EvaluateRequest) -> Iterator[list[Row]]:
    done = 0
    with progress_bar(len(images), "scoring", "image", not request.quiet) as bar:
        for looked in graph.look(images, request.batch_size):
            rows = []
            for index in sorted(looked.scores.keys() | looked.errors.keys()):
                sample, views = images.samples[index], {}
                if index in looked.scores:
                    p_values = graph.calibration.view_p_values(graph.views, looked.views[index][None])
                    views = {name: float(p[0]) for name, p in p_values.items()}
                rows.append(
                    make_row(
                        sample.name,
                        looked.scores.get(index),
                        graph.calibration,
                        request.fpr,
                        looked.errors.get(index, ""),
                        sample.anomalous,
                        sample.kind,
                        request.confidence,
                        views,
                    )
                )
            done += len(rows)
            bar.update(len(rows))
            yield rows
