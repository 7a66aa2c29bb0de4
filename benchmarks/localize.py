"""Whether the map shows where a defect is: `pad` beside PaDiM and PatchCore, on the same backbone and images.

    python benchmarks/localize.py --data-root DIR [--tasks magnetic-tiles] [--out FILE] [--markdown FILE]

A task is a folder of the MVTec layout under DIR (train/good, test/KIND, ground_truth/KIND). All three see the
same pictures at one size, through one frozen network: `pad` as `pad train --steps 0` sets it up, the
peers as anomalib implements them (`pip install anomalib`), on its layers of stride 8 and 16, all their
features, and of PatchCore a coreset of 1 % (of 10 % as in the paper, the search would take hours on a CPU).
AUPRO up to a false-positive rate of 0.3, at the size of the masks. No setting looks at a test image.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import exit_status
from photographs import quick_detector
from PIL import Image
from provenance import markdown, plain, provenance, write_json
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from pad.config import BATCH_SIZE
from pad.images.resolve import resolve
from pad.images.stream import load_all
from pad.judging.metrics import PixelMetrics
from pad.learning.quick import calibrate_quick, fit_quick, look

CORESET = 0.01  # of PatchCore
NEIGHBOURS = 9
LEVELS = [2, 3]  # of timm's feature pyramid: strides 8 and 16

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]  # images -> scores (n,), maps (n, h, w)


class SameInput(nn.Module):
    """The network of timm that the peers use, on images in [-1, 1] as `pad` has them."""

    def __init__(self, model: nn.Module, backbone: Any) -> None:
        super().__init__()
        self.model, self.backbone = model, [backbone]

    def forward(self, x: Tensor) -> Any:
        backbone = self.backbone[0]
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        return self.model(((x + 1) / 2 - backbone.mean) / backbone.deviation)


def peer(kind: str, backbone: Any) -> Any:
    """A model of anomalib on the same weights."""
    name = backbone.model.pretrained_cfg["architecture"]
    if kind == "PaDiM":
        from anomalib.models.image.padim.torch_model import PadimModel

        features = sum(backbone.blank.local[i].shape[1] for i in range(2))
        model: Any = PadimModel(backbone=name, layers=LEVELS, pre_trained=False, n_features=features)
    else:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        model = PatchcoreModel(backbone=name, layers=LEVELS, pre_trained=False, num_neighbors=NEIGHBOURS)
    extractor = model.feature_extractor.feature_extractor
    missing, _ = extractor.load_state_dict(backbone.model.state_dict(), strict=False)
    if missing:
        raise SystemExit(f"{kind}: the weights do not fit anomalib's network: {missing[:3]}")
    model.feature_extractor.feature_extractor = SameInput(extractor.eval(), backbone)
    return model


def fitted_peer(kind: str, backbone: Any, normal: Tensor) -> Judge:
    model = peer(kind, backbone)
    model.train()
    model.feature_extractor.eval()
    with torch.no_grad():
        for batch in normal.split(BATCH_SIZE):
            model(batch)
        if kind == "PaDiM":
            model.fit()
        else:
            model.subsample_embedding(CORESET)
    model.eval()

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        found = model(x)
        return found.pred_score.flatten(), found.anomaly_map.squeeze(1)

    return judge


def fitted_pad(detector: Any, normal: Any) -> Judge:
    looked = look(detector, normal)
    calibrate_quick(detector, fit_quick(detector, looked))

    def judge(x: Tensor) -> tuple[Tensor, Tensor]:
        features = detector.features(x)
        scores = detector.fusion.fuse(detector.quick.scores(features).numpy())
        return torch.from_numpy(scores), detector.quick_maps(features)

    return judge


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    place = arguments.data_root / name
    normal, test = resolve([place / "train" / "good"], "train"), resolve([place / "test"], "evaluate")
    detector = quick_detector(normal, "cpu")
    images, test_images = (load_all(part, detector.config)[0] for part in (normal, test))
    side = detector.quick.backbone.side  # type: ignore[union-attr]
    images, test_images = (
        F.interpolate(x.float(), (side, side), mode="bilinear", antialias=True) for x in (images, test_images)
    )
    anomalous = np.array([bool(sample.anomalous) for sample in test.samples])
    backbone = detector.quick.backbone  # type: ignore[union-attr]
    rows = []
    for method in arguments.methods:
        torch.manual_seed(arguments.seed)
        begun = time.perf_counter()
        judge = fitted_pad(detector, normal) if method == "pad" else fitted_peer(method, backbone, images)
        seconds = time.perf_counter() - begun
        pixels, scores = PixelMetrics(), []
        for start in range(0, len(test_images), BATCH_SIZE):
            with torch.no_grad():
                of_batch, maps = judge(test_images[start : start + BATCH_SIZE])
            scores += of_batch.tolist()
            for sample, found in zip(test.samples[start : start + BATCH_SIZE], maps, strict=True):
                add(pixels, found, sample.mask, images_size(test, sample))
        row = {"task": name, "method": method, "roc_auc": float(roc_auc_score(anomalous, scores)),
               **pixels.results(), "fitting_seconds": seconds}  # fmt: skip
        print(row, file=sys.stderr)
        rows.append(row)
    return rows


def images_size(test: Any, sample: Any) -> tuple[int, int]:
    with Image.open(sample.mask or sample.name) as image:
        return image.size


def add(pixels: PixelMetrics, found: Tensor, mask: Path | None, size: tuple[int, int]) -> None:
    """A map, stretched to the picture, against its mask."""
    whole = F.interpolate(found[None, None].float(), size[::-1], mode="bilinear")[0, 0].clamp_min(0)
    marked = None if mask is None else np.asarray(Image.open(mask).convert("L")) > 127
    pixels.add(whole.numpy(), marked)


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["task", "method", "ROC AUC", "pixel ROC AUC", "AUPRO"]
    keys = ("roc_auc", "pixel_roc_auc", "aupro")
    return header, [[row["task"], row["method"], *(f"{row[k]:.3f}" for k in keys)] for row in rows]


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    return markdown(content, *table(content["results"]), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tasks", nargs="+", default=["magnetic-tiles"], metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", default=["pad", "PaDiM", "PatchCore"], metavar="METHOD")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    origin = provenance("cpu")
    rows = [row for name in arguments.tasks for row in measure(name, arguments)]
    if arguments.out:
        write_json(arguments.out, {**origin, "results": rows})
    print(plain(*table(rows)))
    if arguments.markdown:
        arguments.markdown.write_text(page({**origin, "results": rows}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_status(main))
