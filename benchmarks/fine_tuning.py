"""What fine-tuning on a second class learns, and what it forgets of the first, on the whole test split.

    python train.py --from zoo:fashion-mnist/sneaker --data fashion-mnist:9 --out runs/tuned
    python benchmarks/fine_tuning.py zoo:fashion-mnist/sneaker runs/tuned --data fashion-mnist --old 7 --new 9

Anomalous are all other classes, before and after. Writes JSON to standard output; the time of training is
what each model recorded of itself.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

import pad
from pad.detector import Detector
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.metrics import detection_metrics, rate


def quality(detector: Detector, images: ImageSet, old: str, new: str) -> dict[str, Any]:
    """ROC AUC of old, new, and both kinds of normal images against all others; false alarms at 5 %."""
    scores = detector.score(images)
    kinds = np.array([sample.kind for sample in images.samples])
    others = scores[~np.isin(kinds, (old, new))]
    results: dict[str, Any] = {"training_seconds": detector.card["training"]["seconds"]}
    for name, members in (("old", [old]), ("new", [new]), ("old and new", [old, new])):
        normal = scores[np.isin(kinds, members)]
        results[name] = {"roc_auc": detection_metrics(normal, others)["roc_auc"]}
        if detector.calibration is not None:
            flagged = int(detector.calibration.verdicts(normal, 0.05).sum())
            results[name]["false_alarm_rate_at_5"] = rate(flagged, len(normal))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", help="the model that was fine-tuned")
    parser.add_argument("after")
    parser.add_argument("--data", default="fashion-mnist", help="a named dataset")
    parser.add_argument("--old", required=True, help="the class that was normal before")
    parser.add_argument("--new", required=True, help="the class that became normal")
    parser.add_argument("--data-root")
    args = parser.parse_args()

    images = resolve(f"{args.data}:{args.old},{args.new}", "evaluate", args.data_root)
    old, new = (
        next(
            s.kind for s in resolve(f"{args.data}:{k}", "evaluate", args.data_root).samples if not s.anomalous
        )
        for k in (args.old, args.new)
    )
    results = {
        name: quality(pad.load(model, "cpu"), images, str(old), str(new))
        for name, model in (("before", args.before), ("after", args.after))
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
