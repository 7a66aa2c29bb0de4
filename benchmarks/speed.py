"""Speed of `pad` and of the published recipe, in one run on one machine.

    python benchmarks/speed.py [--data fashion-mnist:9] [--data-root DIR] [--out speed.json] [--markdown FILE]
        [--steps 48] [--images 4000] [--rounds 5] [--device cpu cuda] [--model MODEL] [--curve MINUTES]

Measured are seconds a training step, images/s in training and in scoring from PNG files, peak memory (each
side has a process of its own), floating-point operations against what the device reaches in a plain bfloat16
matrix product, the start of `pad evaluate` on one image, and how the ranks of scores in bfloat16 and in
float32 agree. Both sides take turns, `--rounds` times, and the medians count; a gain is the median of those
of the rounds, since a machine that slows down for a while slows down both sides of a round.
The published recipe is `zoo/configs/fashion-mnist.yaml`, with the same VGG weights as `pad` (vgg16-st):
float32, relu4_2, batches of 32, nothing cached. It runs by this package's code, so what that has gained in
general (memory layout, lanes on a CPU, reading of images) is given to both.

`--curve M` trains both for M minutes, with the default schedule stretched to that time, and compares ROC AUC
over wall-clock time on images of the test split; scoring is not counted as time, nor is what once precedes
it: how the model errs on 512 normal images, half a second.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jobs import exit_status
from provenance import hardware, markdown, plain, provenance, write_json
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import pad.learning.trainer
from pad.config import BATCH_SIZE, Config, from_mapping, load_recipe, parse_assignments
from pad.detector import Detector
from pad.devices import pick_device
from pad.errors import PadError
from pad.images.imageset import ImageSet
from pad.images.resolve import resolve
from pad.judging.calibration import Calibration
from pad.learning.images import in_batches, load_images, split_images
from pad.learning.replay import generator_of
from pad.learning.trainer import Trainer
from pad.networks import build_networks
from pad.recipes import build_config
from pad.scoring import score_rows
from pad.similarity.build import build_similarity
from pad.similarity.relative import RelativePerceptualL1
from pad.views.generator import GeneratorView

SIDES = ("pad", "published")
CURVE_POINTS = 17  # at M, M/√2, M/2, ... minutes
CURVE_IMAGES = 2000
FITTED = 512  # images that say how the model errs on normal ones: enough for all of its components
RANKED = 2000  # images whose scores in two precisions are compared


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", default="fashion-mnist:9", help="a class of a dataset, or a labelled folder"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where named datasets lie")
    parser.add_argument("--out", type=Path, default=Path("speed.json"), metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument(
        "--steps", type=int, default=48, help="training steps to measure, over a whole schedule"
    )
    parser.add_argument("--images", type=int, default=4000, help="PNG files to score")
    parser.add_argument(
        "--device", nargs="+", metavar="cpu|cuda", help="(default: cpu, and cuda if there is)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="measure both sides in turn so often; the medians count"
    )
    parser.add_argument("--starts", type=int, default=3, help="of `pad evaluate`; the best one counts")
    parser.add_argument("--config", metavar="FILE|NAME", help="recipe of pad")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value")
    parser.add_argument("--published-config", default="fashion-mnist", metavar="NAME")
    parser.add_argument("--published-set", nargs="+", default=[], metavar="key=value")
    parser.add_argument("--model", help="a trained model to compare precisions with (default: the one timed)")
    parser.add_argument("--curve", type=float, metavar="MINUTES", help="also ROC AUC over time")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # a process of its own: see `measure`
    arguments = parser.parse_args()
    if not arguments.device:
        arguments.device = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return arguments


# One side, in a process of its own ----------------------------------------------------------------


def side_config(arguments: argparse.Namespace, side: str, images: ImageSet) -> Config:
    if side == "pad":
        settings = {"views": ["generator"], "fit": "crop", "input_size": None, "keep_normals": 0}
        return build_config(arguments.config, {**settings, **parse_assignments(arguments.set)}, images)
    settings = {"backbone": "vgg16-st", **parse_assignments(arguments.published_set)}
    return from_mapping({**load_recipe(arguments.published_config), **settings})


def build_trainer(arguments: argparse.Namespace, side: str, device: torch.device) -> tuple[Trainer, float]:
    """A trainer on the data's normal images, and the seconds that it took to set up."""
    images = resolve([arguments.data], "train", arguments.data_root)
    config = side_config(arguments, side, images)
    if side == "published":
        pad.learning.trainer.CACHE_BYTES = 0
    training, _ = split_images(images, config)
    source, _ = load_images(training, config)
    begun = time.perf_counter()
    trainer = Trainer(config, source, device)
    synchronize(device)
    return trainer, time.perf_counter() - begun


def as_detector(trainer: Trainer) -> Detector:
    """The trainer's averaged weights as they now are, and what they do not get right on normal images."""
    networks = {**dict(trainer.networks.items()), **dict(trainer.averaged.items())}
    detector = rebuilt(trainer.config, networks, trainer.similarity, trainer.device)
    few = torch.arange(min(FITTED, len(trainer.images)))
    generator_of(detector).fit_residuals(in_batches(trainer.images, few, 64))
    return detector


def rebuilt(
    config: Config, networks: Mapping[str, nn.Module], similarity: nn.Module, device: torch.device
) -> Detector:
    """A detector with copies of the weights, its VGG read anew: the given one may be in bfloat16."""
    copies, fresh = build_networks(config), build_similarity(config)
    for name, network in networks.items():
        copies[name].load_state_dict(network.state_dict())
    if isinstance(fresh, RelativePerceptualL1) and isinstance(similarity, RelativePerceptualL1):
        fresh.statistics = copy.deepcopy(similarity.statistics)
    return Detector(config, GeneratorView(config, copies, fresh, device), None, device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> float:
    """Of this process in MB; of the device's memory where it has its own."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class FlopCounter(TorchDispatchMode):
    """Floating-point operations of convolutions and matrix products. (torch's FlopCounterMode also follows
    modules by hooks, which do not bear gradients of some inputs only.)"""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def time_training(
    arguments: argparse.Namespace, side: str, device: torch.device, folder: Path
) -> dict[str, Any]:
    """Seconds a step, averaged over a whole schedule: its phases cost differently."""
    trainer, setup = build_trainer(arguments, side, device)
    config = trainer.config
    cycle = config.gradient_penalty_every
    for i in range(2 * cycle if device.type == "cuda" else 1):  # the first steps choose algorithms
        trainer.step(i % 2 * 0.999)
    synchronize(device)
    begun = time.perf_counter()
    for i in range(arguments.steps):
        trainer.step(i / arguments.steps)
    synchronize(device)
    seconds = (time.perf_counter() - begun) / arguments.steps
    memory = peak_memory(device)
    with FlopCounter() as counter:
        for _ in range(cycle):
            trainer.step(0.999)
    if side == "pad":
        detector = as_detector(trainer)
        detector.calibration = Calibration(
            np.linspace(0.1, 1, 100)
        )  # made up: only its presence matters here
        detector.save(folder / "model")
    return {
        "seconds_a_step": seconds,
        "training_images_per_second": config.batch_size / seconds,
        "setup_seconds": setup,
        "training_memory_mb": memory,
        "gflop_a_late_step": counter.total / cycle / 1e9,
        "steps": config.steps,
        "precision": str(trainer.dtype).removeprefix("torch."),
    }


def time_scoring(
    arguments: argparse.Namespace, side: str, device: torch.device, folder: Path
) -> dict[str, Any]:
    """Images a second from files to scores, as `pad evaluate` does it."""
    images = resolve([arguments.data], "train", arguments.data_root)
    config = side_config(arguments, side, images)
    few, _ = load_images(images.subset(range(min(FITTED, len(images)))), config)
    detector = as_detector(Trainer(config, few, device))
    files = resolve([str(folder / "png")], "evaluate")
    batch = 32 if side == "published" else BATCH_SIZE
    list(score_rows(detector, files.subset(range(len(files) // 4)), 0.05, batch))  # memory has to grow first
    synchronize(device)
    begun = time.perf_counter()
    rows = list(score_rows(detector, files, 0.05, batch))
    seconds = time.perf_counter() - begun
    assert len(rows) == len(files)
    return {"scoring_images_per_second": len(files) / seconds, "scoring_memory_mb": peak_memory(device)}


def trace_curve(
    arguments: argparse.Namespace, side: str, device: torch.device, folder: Path
) -> dict[str, Any]:
    """ROC AUC on the test split after so many minutes of training, setting up included."""
    from sklearn.metrics import roc_auc_score

    trainer, setup = build_trainer(arguments, side, device)
    test = resolve([arguments.data], "evaluate", arguments.data_root)
    chosen = np.random.default_rng(0).permutation(len(test))[:CURVE_IMAGES]
    test = test.subset(sorted(chosen.tolist()))
    labels = [bool(sample.anomalous) for sample in test.samples]
    limit, spent, points = 60 * arguments.curve, setup, []
    marks = [limit / 2 ** (k / 2) for k in reversed(range(CURVE_POINTS))]
    while marks:
        begun = time.perf_counter()
        trainer.step(min(spent / limit, 0.9999))
        synchronize(device)
        spent += time.perf_counter() - begun
        if spent >= marks[0]:
            mark = max(mark for mark in marks if mark <= spent)
            marks = [mark for mark in marks if mark > spent]
            auc = float(roc_auc_score(labels, as_detector(trainer).score(test)))
            steps = trainer.steps_done
            points.append({"mark": mark / 60, "minutes": spent / 60, "steps": steps, "roc_auc": auc})
    return {"curve": points}


TASKS = {"train": time_training, "score": time_scoring, "curve": trace_curve}


def measure(arguments: argparse.Namespace, task: str, side: str, device: str, folder: Path) -> dict[str, Any]:
    """Runs one of TASKS in a process of its own. Raises PadError with its last words if it fails."""
    words = [sys.executable, __file__, *sys.argv[1:], "--one", task, side, device, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise PadError(f"{task} {side} on {device}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    shown = ", ".join(f"{k} {v:.3g}" for k, v in found.items() if isinstance(v, float))
    print(f"{device} {task} {side}: {shown}", file=sys.stderr, flush=True)
    return found


# The whole run ------------------------------------------------------------------------------------


def write_pngs(arguments: argparse.Namespace, folder: Path) -> None:
    """`--images` PNG files of the data's test images, again from the start if there are fewer."""
    images = resolve([arguments.data], "evaluate", arguments.data_root)
    folder.mkdir()
    for i in range(arguments.images):
        images.open(i % len(images)).save(folder / f"{i:06d}.png")


def start_up(model: Path, image: Path, starts: int) -> dict[str, Any]:
    """The best of some starts of `pad evaluate` on one image, and how long imports take, ours and all."""
    words = ["-m", "pad", "evaluate", str(model), str(image), "--device", "cpu"]
    times = []
    for _ in range(starts):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        times.append(time.perf_counter() - begun)
    traced = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True)
    lines = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", traced.stderr)
    ours = sum(int(us) for us, name in lines if name.split(".")[0] == "pad")
    return {
        "start_seconds": min(times),
        "import_seconds": sum(int(us) for us, _ in lines) / 1e6,
        "own_import_seconds": ours / 1e6,
    }


def rank_correlation(arguments: argparse.Namespace, model: str) -> float:
    """Spearman's correlation of scores in bfloat16 and in float32, on the CPU."""
    from scipy.stats import spearmanr

    detector = Detector.load(model, "cpu")
    test = resolve([arguments.data], "evaluate", arguments.data_root)
    test = test.subset(sorted(np.random.default_rng(0).permutation(len(test))[:RANKED].tolist()))
    scores = []
    for precision in ("float32", "bfloat16"):
        config = detector.config.replace(precision=precision)
        generator = generator_of(detector)
        networks = dict(generator.networks.items())
        scores.append(rebuilt(config, networks, generator.similarity, torch.device("cpu")).score(test))
    return float(spearmanr(*scores).statistic)


def ceilings(device: torch.device) -> dict[str, float]:
    """What the device reaches: TFLOP/s of a bfloat16 matrix product, GB/s of a copy (read and written)."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device).bfloat16()
    source = torch.empty((1 << 30 if device.type == "cuda" else 1 << 26) // 4, device=device)
    target = torch.empty_like(source)

    def best(run: Any) -> float:
        times = []
        for _ in range(5):
            synchronize(device)
            begun = time.perf_counter()
            run()
            synchronize(device)
            times.append(time.perf_counter() - begun)
        return min(times)

    return {
        "bfloat16_tflops": 2 * n**3 / best(lambda: a @ a) / 1e12,
        "copy_gb_per_second": 2 * 4 * source.numel() / best(lambda: target.copy_(source)) / 1e9,
    }


def overtaken(curves: dict[str, list[dict[str, float]]]) -> dict[str, float] | None:
    """How soon `pad` reaches what the published recipe has at the end."""
    goal = curves["published"][-1]
    reached = [point["minutes"] for point in curves["pad"] if point["roc_auc"] >= goal["roc_auc"]]
    if not reached:
        return None
    return {
        "roc_auc": goal["roc_auc"],
        "published_minutes": goal["minutes"],
        "pad_minutes": reached[0],
        "times_shorter": goal["minutes"] / reached[0],
    }


def median_of(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number; words are the same in every round."""
    return {
        key: statistics.median(r[key] for r in rounds) if isinstance(value, float) else value
        for key, value in rounds[0].items()
    }


def gain_of(found: dict[str, Any], key: str, less_is_better: bool) -> float:
    """How many times better pad is in what `key` names: the median over the rounds, where it has any."""
    sides = [found[side] for side in SIDES]
    task = next((task for task, rounds in sides[0]["rounds"].items() if key in rounds[0]), None)
    pairs = zip(*(side["rounds"][task] for side in sides), strict=True) if task else [tuple(sides)]
    ratios = [ours[key] / theirs[key] for ours, theirs in pairs]
    return statistics.median(1 / ratio if less_is_better else ratio for ratio in ratios)


def measure_device(arguments: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"hardware": hardware(name), "ceilings": ceilings(pick_device(name))}
    # In turn, so that a machine that slows down meanwhile is equally slow to both.
    rounds: dict[str, dict[str, list[Any]]] = {side: {"train": [], "score": []} for side in SIDES}
    for _ in range(arguments.rounds):
        for task in ("train", "score"):
            for side in SIDES:
                rounds[side][task].append(measure(arguments, task, side, name, folder))
    for side in SIDES:
        medians = {k: v for results in rounds[side].values() for k, v in median_of(results).items()}
        found[side] = {**medians, "rounds": rounds[side]}
        reached = found[side]["gflop_a_late_step"] / found[side]["seconds_a_step"] / 1e3
        found[side]["share_of_bfloat16_ceiling"] = reached / found["ceilings"]["bfloat16_tflops"]
        if arguments.curve:
            found[side].update(measure(arguments, "curve", side, name, folder))
    if arguments.curve:
        found["overtaken"] = overtaken({side: found[side]["curve"] for side in SIDES})
    return found


_ROWS = {
    "training, s a step": ("seconds_a_step", "{:.3f}", True),
    "training, images/s": ("training_images_per_second", "{:.0f}", False),
    "setting up, s": ("setup_seconds", "{:.1f}", True),
    "training, peak memory in MB": ("training_memory_mb", "{:.0f}", True),
    "training, share of the bfloat16 ceiling": ("share_of_bfloat16_ceiling", "{:.1%}", False),
    "scoring PNG files, images/s": ("scoring_images_per_second", "{:.0f}", False),
    "scoring, peak memory in MB": ("scoring_memory_mb", "{:.0f}", True),
}


def table(name: str, found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one device; "gain" above 1 is in favour of pad."""
    ours, theirs = found["pad"], found["published"]
    rows = []
    for title, (key, form, less_is_better) in _ROWS.items():
        gain = gain_of(found, key, less_is_better)
        rows.append([title, form.format(ours[key]), form.format(theirs[key]), f"{gain:.1f}×"])
    whole = [side["setup_seconds"] + side["steps"] * side["seconds_a_step"] for side in (ours, theirs)]
    gain = whole[1] / whole[0]
    rows.append(["whole training, minutes", *(f"{s / 60:.1f}" for s in whole), f"{gain:.0f}×"])
    reached = {point["mark"]: f"{point['roc_auc']:.3f}" for point in ours.get("curve", ())}
    for point in theirs.get("curve", ())[::-2][::-1]:
        title = f"ROC AUC after {point['mark']:.2g} minutes"
        rows.append([title, reached.get(point["mark"], "-"), f"{point['roc_auc']:.3f}", ""])
    return [name, "pad", "published recipe", "gain"], rows


def run(arguments: argparse.Namespace) -> None:
    origin = provenance()
    content: dict[str, Any] = dict(origin)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pngs(arguments, folder / "png")
        content["devices"] = {name: measure_device(arguments, name, folder) for name in arguments.device}
        content["start"] = start_up(folder / "model", folder / "png" / "000000.png", arguments.starts)
        content["rank_correlation"] = rank_correlation(arguments, arguments.model or str(folder / "model"))
    write_json(arguments.out, content)
    for name, found in content["devices"].items():
        print(f"{found['hardware']}\n{plain(*table(name, found))}")
    print(remarks(content))
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(page(content), encoding="utf-8")


def remarks(content: dict[str, Any]) -> str:
    """What the tables do not say, in sentences."""
    start = content["start"]
    words = [
        f"`pad evaluate` on one image: {start['start_seconds']:.1f} s from a cold start, of which imports "
        f"{start['import_seconds']:.1f} s, this package's own {start['own_import_seconds']:.2f} s. "
        f"Rank correlation of scores in bfloat16 and float32: {content['rank_correlation']:.5f}."
    ]
    for found in content["devices"].values():
        if ahead := found.get("overtaken"):
            words.append(
                f"pad reaches the published recipe's {ahead['roc_auc']:.3f} in {ahead['pad_minutes']:.2g} "
                f"instead of {ahead['published_minutes']:.2g} minutes, "
                f"{ahead['times_shorter']:.0f} times sooner."
            )
    return " ".join(words)


def page(content: dict[str, Any]) -> str:
    """The results in Markdown, a table for each device."""
    tables = [
        markdown({**content, "hardware": found["hardware"]}, *table(name, found), "")
        for name, found in content["devices"].items()
    ]
    return "\n".join([*tables, f"{remarks(content)}\n"])


def main() -> None:
    arguments = parse_arguments()
    if arguments.one:
        task, side, device, folder = arguments.one
        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))
        print(json.dumps(TASKS[task](arguments, side, pick_device(device), Path(folder))))
    else:
        run(arguments)


if __name__ == "__main__":
    sys.exit(exit_status(main))
