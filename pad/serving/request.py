"""What a service is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pad.config import FPR
from pad.errors import PadError

TOKEN = "PAD_SERVE_TOKEN"  # environment: what clients must send as `Authorization: Bearer ...`
LEAST_TOKEN = 16  # characters


@dataclass(frozen=True)
class ServeRequest:
    """What `pad serve` is asked for; each attribute is the argument or option of its name.

    Attributes:
        model: a run folder, a model folder, `zoo:NAME` or `hf-hub:ORG/REPO[@REV]`.
        host, port: where it listens; port 0: a free one.
        fpr, confidence: the false-alarm rate on normal images, as in `pad evaluate`.
        max_megabytes: of a request.
        max_megapixels: of a picture.
        max_images: in a request.
        max_queue: pictures that may wait; beyond, requests are answered with status 429.
        timeout: seconds that a request may take.
        batch_size: pictures scored at a time, at most.
        device: auto, cpu, cuda or mps.
        backbone_weights, view_backbone_weights: files of weights.
        allow_downloads: whether weights of the model's backbones may be downloaded.
        ray: the address of a Ray cluster that is to serve; "": one of this machine's own processors; None:
            this process.
        replicas: how many processes of it; None: one for each of its machines.

    Raises:
        PadError: a value out of its range.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    fpr: float = FPR
    confidence: float | None = None
    max_megabytes: float = 64.0
    max_megapixels: float = 50.0
    max_images: int = 256
    max_queue: int = 1024
    timeout: float = 60.0
    batch_size: int = 64
    device: str = "auto"
    backbone_weights: str | None = None
    view_backbone_weights: str | None = None
    allow_downloads: bool = False
    ray: str | None = None
    replicas: int | None = None

    def __post_init__(self) -> None:
        if self.replicas is not None and self.ray is None:
            raise PadError("--replicas goes with --ray [ADDRESS]: the processes are those of a Ray cluster")
        if self.ray and not self.port:
            raise PadError("--ray ADDRESS takes a --port: it is the same on all machines")
        if self.max_queue < self.max_images:
            raise PadError("--max-queue must be at least --max-images, or a large request never finds room")
        if self.port > 65535:
            raise PadError(f"--port takes a number from 0 to 65535, not {self.port}")

    @property
    def max_bytes(self) -> int:
        return int(self.max_megabytes * 1e6)

    @property
    def max_pixels(self) -> int:
        return int(self.max_megapixels * 1e6)


def token() -> str | None:
    """The token that clients must send, or None. Raises PadError for one that is guessed too easily."""
    given = os.environ.get(TOKEN)
    if given is None:
        return None
    if len(given) < LEAST_TOKEN or not given.isascii() or not given.isprintable() or " " in given:
        raise PadError(f"{TOKEN} must be at least {LEAST_TOKEN} characters of ASCII without blanks")
    return given
