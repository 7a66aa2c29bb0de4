"""What an evaluation is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pad.config import BATCH_SIZE, FPR
from pad.errors import PadError


@dataclass(frozen=True)
class EvaluateRequest:
    """What `pad evaluate` is asked for; each attribute is the argument or option of its name.

    Attributes:
        model: a run folder, a model folder, `zoo:NAME`, `hf-hub:ORG/REPO[@REV]`, or a file of `pad export`.
        data: images: files, folders, globs, or datasets.
        data_root: where named datasets lie.
        out: the folder of scores, summary and pictures; "-": scores to standard output; None: none are kept.
        fpr: the false-alarm rate on normal images, between 0 and 1.
        confidence: the probability with which it is held by this very model; None: on average.
        fdr: bounds the share of false ones among the flagged instead.
        format: of the scores: csv, jsonl, json or parquet.
        report: write report.html.
        projection: of its map of latents: pca or umap.
        explain: draw why for so many of the most anomalous images; None: for none.
        fail_on_anomaly, fail_on_error: what ends with an exit status of its own.
        device: auto, cpu, cuda or mps.
        precision: auto, float32 or bfloat16; None: as the model's recipe says.
        batch_size: images scored at a time.
        backbone_weights, view_backbone_weights: files of weights.
        quiet: no progress bar.
        allow_downloads: whether weights of the model's backbones may be downloaded.

    Raises:
        PadError: what does not go together.
    """

    model: str
    data: tuple[str, ...]
    data_root: str | None = None
    out: str | None = None
    fpr: float = FPR
    confidence: float | None = None
    fdr: float | None = None
    format: str = "csv"
    report: bool = False
    projection: str = "pca"
    explain: int | None = None
    fail_on_anomaly: bool = False
    fail_on_error: bool = False
    device: str = "auto"
    precision: str | None = None
    batch_size: int = BATCH_SIZE
    backbone_weights: str | None = None
    view_backbone_weights: str | None = None
    allow_downloads: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.confidence is not None and self.fdr is not None:
            raise PadError("--confidence goes with --fpr, not with --fdr: leave one of them away")
        if (self.report or self.explain) and self.folder is None:
            option = "--report" if self.report else "--explain"
            raise PadError(f"{option} writes files: name a folder for them with --out")

        if self.format == "parquet" and self.to_stdout:
            raise PadError("--format parquet writes a file: name a folder with --out")

    @property
    def folder(self) -> Path | None:
        """Where files are written; None: nowhere."""
        return Path(self.out) if self.out and self.out != "-" else None

    @property
    def to_stdout(self) -> bool:
        """Whether scores go to standard output."""
        return self.out == "-"
