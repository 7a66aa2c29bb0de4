"""What a watch is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pad.config import FPR
from pad.errors import PadError
from pad.watching.rules import LEAST_MEMBERS

KEEP = ("30d", "4GB")
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@dataclass(frozen=True)
class WatchRequest:
    """What `pad watch` is asked for; each attribute is the argument or option of its name.

    Attributes:
        model: a run folder, a model folder, `zoo:NAME` or `hf-hub:ORG/REPO[@REV]`.
        source: a folder, or "-" for standard input.
        state: the folder of the state.
        fpr: the false-alarm rate on normal pictures, between 0 and 1.
        out: a file for lines of JSON; "-": standard output.
        adopt: "ask", "never", or "after:N": a proposal of N pictures is accepted by itself.
        online_fdr: the expected share of false ones among the alarms of a period; None: what is flagged is
            all there is (pad/watching/online_fdr.py).
        keep: for how long ("30d") and in how many bytes ("4GB") events are kept.
        once: stop when all that is there was judged.
        webhook: where flagged pictures, proposals and alarms are sent.
        port: of this machine, at which the page is served; 0: a free one; None: no page.
        device: auto, cpu, cuda or mps.
        backbone_weights, view_backbone_weights: files of weights.
        allow_downloads: whether weights of the model's backbones may be downloaded.

    Raises:
        PadError: a value that is none of these.
    """

    model: str
    source: str
    state: str
    fpr: float = FPR
    out: str = "-"
    adopt: str = "ask"
    online_fdr: float | None = None
    keep: tuple[str, ...] = KEEP
    once: bool = False
    webhook: str | None = None
    port: int | None = None
    device: str = "auto"
    backbone_weights: str | None = None
    view_backbone_weights: str | None = None
    allow_downloads: bool = False

    def __post_init__(self) -> None:
        if self.adopt not in ("ask", "never") and self.adopt_after is None:
            raise PadError(
                f"--adopt takes ask, never, or after:N, N from {LEAST_MEMBERS} on, not '{self.adopt:.40}'"
            )
        for text in self.keep:
            _kept(text)
        if self.port is not None and self.port > 65535:
            raise PadError(f"--port takes a number from 0 to 65535, not {self.port}")

    @property
    def adopt_after(self) -> int | None:
        """From how many pictures on a proposal is accepted by itself; None: never."""
        found = re.fullmatch(r"after:(\d{1,9})", self.adopt)
        return int(found[1]) if found and int(found[1]) >= LEAST_MEMBERS else None

    @property
    def keep_seconds(self) -> float | None:
        return min((value for unit, value in map(_kept, self.keep) if unit == "s"), default=None)

    @property
    def keep_bytes(self) -> int | None:
        return int(min((value for unit, value in map(_kept, self.keep) if unit == "B"), default=0)) or None

    @property
    def out_file(self) -> Path | None:
        """Where lines go; None: standard output."""
        return None if self.out == "-" else Path(self.out)


def _kept(text: str) -> tuple[str, float]:
    """Seconds ("s") or bytes ("B") of what --keep takes."""
    found = re.fullmatch(r"(\d{1,9})(d|[KMGT]B)", text)
    if not found or not int(found[1]):
        raise PadError(f"--keep takes days or bytes, such as 30d or 4GB, not '{text:.40}'")
    number, unit = int(found[1]), found[2]
    return ("s", number * 86400.0) if unit == "d" else ("B", number * _UNITS[unit])
