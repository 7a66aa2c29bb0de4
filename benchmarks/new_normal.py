"""How well a new normal that was accepted holds its rate, over many acceptances, and what it lets in.

    python benchmarks/new_normal.py --normal DIR --new DIR --strangers DIR [DIR ...] [--fit 200] [--seeds 5 6]
                                    [--draws 10] [--out FILE] [--markdown FILE]

For each seed a model of the quick views is fitted on `--fit` normal pictures. Then, `--draws` times, pictures
of the new kind come in random order until the flagged ones make a proposal, which is accepted; the others of
the kind, and strangers, are judged by it. What differs is the confidence of its p-values (SURE of
pad/watching/new_normal.py), and how many pictures were accepted: as many as make a proposal, or the flagged
ones that came next as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import exit_status, use_share_of_processor
from provenance import markdown, plain, provenance, write_json

import pad
from pad.detector import Detector
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.images.stream import stream
from pad.views.features import Features, joined_features
from pad.watching import new_normal
from pad.watching.proposing import belongs_to, groups, vectors

FPR = 0.05
USUAL = new_normal.SURE
SURES = (0.8, 0.9, 0.95, 0.975)


class Seen:
    """Pictures as a watcher sees them: whether each is flagged by the model alone, and its features."""

    def __init__(
        self, detector: Detector, folders: Sequence[Path], most: int, rng: np.random.Generator
    ) -> None:
        parts = [resolve([folder], "evaluate") for folder in folders]
        each = -(-most // len(parts))
        features, flagged, calibration = [], [], detector.calibrated()
        for images in parts:
            chosen = images.subset(rng.permutation(len(images))[:each].tolist())
            for batch in stream(chosen, detector.config, 16):
                views, found = detector.looked(batch.tensor)
                assert found is not None
                features.append(found)
                flagged.append(
                    calibration.p_values(detector.fused(views).numpy()) <= calibration.p_limit(FPR)
                )
        self.features, self.flagged = joined_features(features), np.concatenate(flagged)

    def __len__(self) -> int:
        return len(self.flagged)

    def of(self, chosen: Sequence[int]) -> Features:
        return self.features.take(torch.tensor(list(chosen)))


def proposed(new: Seen, order: np.ndarray, known: torch.Tensor) -> tuple[list[int], int]:
    """What makes the first proposal, and how many were shown until then. Raises PadError if none comes."""
    looked, flagged = vectors(new.features), [int(i) for i in order if new.flagged[i]]
    for count in range(2, len(flagged) + 1):
        there = looked[flagged[:count]]
        if found := groups(there, known):
            near = [(0, there[found[0]])]
            also = [i for i in range(count) if belongs_to(there[i], near, known) == 0]
            members = [flagged[i] for i in sorted({*found[0], *also})]
            return members, int(np.flatnonzero(order == flagged[count - 1])[0]) + 1
    raise PadError("pictures of the new kind make no proposal: take more of them, or another kind")


def judged(detector: Detector, accepted: Features, rest: Seen, among: Sequence[int], sure: float) -> float:
    """The share of some pictures that is flagged still."""
    assert detector.quick is not None
    new_normal.SURE = sure
    p_values = new_normal.NewNormal(accepted, detector.quick, FPR).p_values(rest.of(among))
    return float(np.mean(rest.flagged[list(among)] & (p_values <= FPR)))


def acceptance(detector: Detector, new: Seen, strangers: Seen, order: np.ndarray) -> list[dict[str, Any]]:
    assert detector.quick is not None
    known, looked = detector.quick.kept.features.float(), vectors(new.features)
    members, shown = proposed(new, order, known)
    rest = [int(i) for i in order[shown:]]
    near = [(0, looked[members])]
    like = [i for i in rest if new.flagged[i] and belongs_to(looked[i], near, known) == 0]
    next_ones = like[: min(len(members), len(rest) // 2)]  # some must be left to be judged
    found = np.flatnonzero(strangers.flagged).tolist()
    rows = []
    for what, accepted in (("the proposal", members), ("twice as many", [*members, *next_ones])):
        others = [i for i in rest if i not in set(accepted)]
        for sure in SURES:
            features = new.of(accepted)
            rows.append(
                {
                    "accepted": what,
                    "sure": sure,
                    "pictures": len(accepted),
                    "flagged": judged(detector, features, new, others, sure),
                    "found": judged(detector, features, strangers, found, sure),
                }
            )
    return rows


def run(arguments: argparse.Namespace) -> None:
    use_share_of_processor()
    origin, rows = provenance(), []
    normal = [c for c in resolve([arguments.normal], "train").contents if isinstance(c, Path)]
    for seed in arguments.seeds:
        rng = np.random.default_rng(seed)
        chosen = [normal[i] for i in rng.permutation(len(normal))[: arguments.fit]]
        detector = pad.fit(chosen, steps=0, seed=seed, device="cpu")
        new = Seen(detector, [arguments.new], arguments.pictures, rng)
        strangers = Seen(detector, arguments.strangers, arguments.pictures, rng)
        for draw in range(arguments.draws):
            found = acceptance(detector, new, strangers, rng.permutation(len(new)))
            rows += [{"seed": seed, "draw": draw, **row} for row in found]
        print(f"seed {seed} is done", file=sys.stderr, flush=True)
    content = {**origin, "fpr": FPR, "acceptances": rows}
    write_json(arguments.out, content)
    head, table_rows, note = table(content)
    print(plain(head, table_rows) + f"\n{note}")
    if arguments.markdown:
        arguments.markdown.write_text(page(content), encoding="utf-8")


def table(content: dict[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Head, rows and note: of each number of accepted pictures and confidence, means and the worst."""
    rows, rate = content["acceptances"], content["fpr"]
    lines = []
    for what in dict.fromkeys(row["accepted"] for row in rows):
        for sure in SURES:
            of = [row for row in rows if (row["accepted"], row["sure"]) == (what, sure)]
            flagged, still = (np.array([row[name] for row in of]) for name in ("flagged", "found"))
            lines.append([
                f"{what} ({np.mean([row['pictures'] for row in of]):.0f})",
                f"{sure:g}{' (as it is)' if sure == USUAL else ''}",
                f"{flagged.mean():.1%}", f"{(flagged > 2 * rate).mean():.0%}", f"{flagged.max():.1%}",
                f"{still.mean():.1%}", f"{still.min():.1%}",
            ])  # fmt: skip
    head = ["accepted", "confidence", "new kind flagged", f"above {2 * rate:.0%}", "most"]
    head += ["strangers found still", "least"]
    acceptances = len({(row["seed"], row["draw"]) for row in rows})
    note = (
        f"{acceptances} acceptances; {rate:.0%} is the rate asked. *Above*: in how "
        "many of them more than twice that rate of the further pictures of the kind is flagged. *Strangers*: "
        "of those that the model alone finds. *Twice as many*: as if one had waited for as many again."
    )
    return head, lines, note


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    return markdown(content, *table(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--normal", type=Path, required=True, metavar="DIR")
    parser.add_argument("--new", type=Path, required=True, metavar="DIR")
    parser.add_argument("--strangers", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--fit", type=int, default=200, help="normal pictures that the model is fitted on")
    parser.add_argument("--pictures", type=int, default=200, help="of the new kind, and of strangers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[5, 6, 7, 8, 9])
    parser.add_argument("--draws", type=int, default=10, help="orders in which the new kind comes")
    parser.add_argument("--out", type=Path, default=Path("new-normal.json"), metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(exit_status(main))
