"""How fast the views judge: from files to verdicts, beside the bare backbone; and whether memory stays flat.

    python benchmarks/views_speed.py [--images 512] [--rounds 5] [--many 100000] [--device cpu]
        [--out views-speed.json] [--markdown FILE]

Models are fitted here, on pictures drawn here (a spanner on plain ground, under the noise of a camera) and on
the clothes of tests/data: what they have learnt does not matter to how fast they are. In every round each
model judges the same files once, and the bare backbone takes as many pictures of its size, which lie in
memory, in the same precision and in batches of the number that is fastest for it; the medians count, and a
share is the median of those of the rounds.
`--many N`: so many verdicts in one call, of the files over and over, with the memory of the process after a
tenth of them and at the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jobs import exit_status
from lighting import tool_task
from PIL import Image
from provenance import markdown, plain, provenance, write_json

import pad
from pad.config import BATCH_SIZE
from pad.detector import Detector
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.scoring import score_rows

CLOTHES = Path(__file__).resolve().parent.parent / "tests" / "data" / "fashion" / "train" / "ankle-boot"
FITTED = 60  # pictures that a model is fitted on
BATCHES = (4, 16, BATCH_SIZE)  # tried for the bare backbone
STEPS = 5  # of a generator, which is as fast however long it was trained
QUICK = {"steps": 0}


class Case(NamedTuple):
    """A model and files for it."""

    name: str
    detector: Detector
    files: list[str]


def drawn(folder: Path, images: int, side: int) -> list[str]:
    """JPEG files of pictures with `side` pixels a side."""
    folder.mkdir()
    pictures = tool_task(images, 0).normal
    for index in range(images):
        picture = pictures.open(index)
        assert isinstance(picture, Image.Image)
        picture.resize((side, side)).save(folder / f"{index:05}.jpg", quality=90)
    return sorted(map(str, folder.iterdir()))


def cases(place: Path, images: int, device: str) -> list[Case]:
    clothes = (sorted(map(str, CLOTHES.iterdir())) * images)[:images]
    found = []
    for side, more in ((256, {}), (160, {}), (160, {"view_size": 160}), (32, {})):
        files = drawn(place / f"{side}{len(more)}", images, side)
        detector = pad.fit(files[:FITTED], device=device, **QUICK, **more)
        size = f"{detector.config.view_size} px"
        found.append(Case(f"JPEG of {side} px, quick views at {size}", detector, files))
    for name, views in (("all views", None), ("the generator alone", ["generator"])):
        settings: dict[str, Any] = {"steps": STEPS, **({"views": views} if views else {})}
        detector = pad.fit(clothes[:FITTED], device=device, **settings)
        found.append(Case(f"PNG of 28 px, {name}", detector, clothes))
    return found


def over_and_over(files: list[str], count: int) -> ImageSet:
    """So many images, of files that may be fewer."""
    once = resolve(files, "evaluate")
    return once.subset(index % len(once) for index in range(count))


def verdicts(case: Case) -> None:
    """As `pad evaluate` comes to them, but for writing them down."""
    rows = list(score_rows(case.detector, over_and_over(case.files, len(case.files)), 0.05, BATCH_SIZE))
    assert len(rows) == len(case.files)


@torch.no_grad()
def bare(case: Case, batch_size: int) -> None:
    """The backbone's own pass over as many pictures, in the precision of the model's."""
    assert case.detector.quick is not None
    backbone, device = case.detector.quick.backbone, case.detector.device
    batch = torch.zeros(batch_size, 3, backbone.side, backbone.side, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=case.detector.dtype == torch.bfloat16):
        for start in range(0, len(case.files), batch_size):
            backbone(batch[: len(case.files) - start])
    if device.type == "cuda":
        torch.cuda.synchronize()


def at_best(case: Case) -> Callable[[Case], None]:
    """`bare` with batches of the number that is fastest here."""
    few = case._replace(files=case.files[: 2 * BATCH_SIZE])
    rates = {size: max(rate(partial(bare, batch_size=size), few) for _ in range(2)) for size in BATCHES}
    return partial(bare, batch_size=max(rates, key=lambda size: rates[size]))


def rate(work: Callable[[Case], None], case: Case) -> float:
    """Pictures a second."""
    begun = time.perf_counter()
    work(case)
    return len(case.files) / (time.perf_counter() - begun)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Medians over rounds."""
    has_views = case.detector.quick is not None
    verdicts(case._replace(files=case.files[: 2 * BATCH_SIZE]))
    alone = at_best(case) if has_views else None
    found = [(rate(verdicts, case), rate(alone, case) if alone else None) for _ in range(rounds)]
    result: dict[str, Any] = {"case": case.name, "rounds": found}
    result["verdicts_per_second"] = statistics.median(whole for whole, _ in found)
    if has_views:
        result["backbone_per_second"] = statistics.median(b for _, b in found if b)
        result["share"] = statistics.median(whole / b for whole, b in found if b)
    print(f"{case.name}: {result['verdicts_per_second']:.0f}/s", file=sys.stderr, flush=True)
    return result


def memory_mb() -> float:
    """What the process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


def many(case: Case, count: int) -> dict[str, Any]:
    """Memory after a tenth of the verdicts, and at the end."""
    images = over_and_over(case.files, count)
    held, begun = [], time.perf_counter()
    for done, _ in enumerate(score_rows(case.detector, images, 0.05, BATCH_SIZE), 1):
        if done in (count // 10, count):
            held.append(memory_mb())
    seconds = time.perf_counter() - begun
    return {"case": case.name, "verdicts": count, "memory_mb": held, "seconds": seconds}


def table(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["files, model", "verdicts/s", "bare backbone/s", "share"]
    rows = []
    for row in content["results"]:
        alone = [f"{row['backbone_per_second']:.0f}", f"{row['share']:.0%}"] if "share" in row else ["", ""]
        rows.append([row["case"], f"{row['verdicts_per_second']:.0f}", *alone])
    return header, rows


def page(content: dict[str, Any]) -> str:
    """The results in Markdown."""
    note = "Medians over rounds."
    if found := content.get("many"):
        first, last = found["memory_mb"]
        note += (
            f" {found['verdicts']:,} verdicts in one call ({found['case']}): {first:.0f} MB after a tenth of "
            f"them, {last:.0f} MB at the end."
        )
    return markdown(content, *table(content), note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=512, metavar="N", help="files a round and model")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--many", type=int, default=0, metavar="N", help="verdicts in one call")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    content: dict[str, Any] = provenance(arguments.device)
    with tempfile.TemporaryDirectory() as place:
        found = cases(Path(place), arguments.images, arguments.device)
        content["results"] = [measure(case, arguments.rounds) for case in found]
        if arguments.many:
            content["many"] = many(found[-1], arguments.many)
    if arguments.out:
        write_json(arguments.out, content)
    print(plain(*table(content)))
    if arguments.markdown:
        arguments.markdown.write_text(page(content), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_status(main))
