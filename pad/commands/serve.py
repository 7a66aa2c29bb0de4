"""`pad serve MODEL`: the detector behind an HTTP interface."""

from __future__ import annotations

import argparse
import sys

from pad.commands.extras import from_extra
from pad.commands.loading import load_detector
from pad.commands.requests import request_of
from pad.serving.request import ServeRequest, token
from pad.store.hub import resolve_model


def serve(arguments: argparse.Namespace) -> int:
    """Until a signal stops it; what was begun is finished first."""
    request = request_of(ServeRequest, arguments)
    with_ray = request.ray is not None
    module, extra = ("replicas", "ray,serve") if with_ray else ("server", "serve")
    server = from_extra(f"pad.serving.{module}", extra)
    detector = load_detector(request)

    def tell(url: str, guarded: bool) -> None:
        kind = "with a token" if guarded else "without a token"
        print(f"serving {request.model} at {url} ({kind}); Ctrl-C stops it", file=sys.stderr, flush=True)

    if with_ray:
        return int(server.serve_replicas(detector, resolve_model(request.model), request, token(), tell))
    return int(server.serve(detector, request, token(), tell))
