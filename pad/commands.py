"""What the commands train, evaluate and calibrate do."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from tqdm import tqdm

from pad.config import Config, from_mapping, load_recipe, parse_assignments, to_mapping
from pad.data import Batch, ImageSet, each_batch, resolve
from pad.detector import Detector, Examined
from pad.devices import pick_device
from pad.errors import PadError
from pad.evaluation import format_table, summarize, write_summary
from pad.files import atomic
from pad.recipes import build_config
from pad.replay import NO_REPLAY, Replay, compare, format_quality, make_replay
from pad.results import ANOMALY, Row, judge_batch, make_row, write_scores
from pad.runs import read_checkpoint, readable, split_images, train_detector

if TYPE_CHECKING:
    from pad.visuals import Visuals

SHOWN = 10  # rows on the terminal
FINE_TUNING_SHARE = (
    0.15  # of the steps of the model it starts from: with all around them, a fifth of its time
)
FINE_TUNING_STEPS = 75  # at least, if that model has had as many: it may itself come from fine-tuning
FREE_ON_RESUME = ("steps", "log_every", "sample_every", "checkpoint_every", "tensorboard")


# train -------------------------------------------------------------------------------------------


def train(arguments: argparse.Namespace) -> int:
    """`pad train`: data -> run folder."""
    folder = Path(arguments.out)
    device = pick_device(arguments.device)
    settings = parse_assignments(arguments.set)
    for key, value in (("steps", arguments.steps), ("seed", arguments.seed)):
        if value is not None:
            settings[key] = value
    checkpoint = _checkpoint(folder, arguments.resume)
    asked = _asked(folder, arguments, checkpoint is not None)
    images = resolve(asked["data"], "train", asked["data_root"])
    start = Detector.load(asked["from"], arguments.device) if asked["from"] else None
    if checkpoint is not None:
        config = _resumed_config(checkpoint["recipe"], arguments.config, settings)
    else:
        config = _fresh_config(start, arguments.config, settings, images)
    training, calibration = split_images(images, config)
    replay = _replay(start, asked, len(training)) if start else None
    _write_run(folder, asked)
    length = f"{asked['minutes']:g} minutes" if asked["minutes"] else f"{config.steps} steps"
    print(
        f"training on {training.describe()} for {length}; {len(calibration)} more are kept for calibration",
        flush=True,
    )
    detector = train_detector(
        config,
        training,
        calibration,
        device,
        folder,
        asked["minutes"],
        resume=checkpoint is not None,
        start=start,
        progress=True,
        data_root=asked["data_root"],
        replay=replay,
    )
    _report(detector, folder)
    if start is not None:
        _report_fine_tuning(start, detector, replay, calibration, folder)
    return 0


def _checkpoint(folder: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from. Raises PadError if the folder holds a run and there is no `--resume`."""
    if folder.exists() and not folder.is_dir():
        raise PadError(f"--out {folder} is a file; name a folder")
    if resume:
        checkpoint = read_checkpoint(folder)
        if checkpoint is None:
            print(f"{folder} has no checkpoint yet: starting from the beginning", file=sys.stderr)
        return checkpoint
    if (folder / "checkpoints").is_dir() or (folder / "model").is_dir():
        raise PadError(f"--out {folder} already holds a run; go on with --resume, or name another folder")
    return None


def _asked(folder: Path, arguments: argparse.Namespace, resuming: bool) -> dict[str, Any]:
    """The data and the time that were asked for: now, or when the run was started."""
    before: dict[str, Any] = {}
    path = folder / "run.yaml"
    if (resuming or arguments.resume) and path.is_file():
        before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    data = arguments.data or before.get("data")
    if not data:
        raise PadError("--data is missing: name your normal images")
    minutes = arguments.minutes if arguments.minutes or arguments.steps else before.get("minutes")
    root = arguments.data_root or before.get("data_root")
    start, replay = arguments.start or before.get("from"), arguments.replay or before.get("replay")
    if replay and not start:
        raise PadError("--replay goes with --from MODEL: it is what keeps that model's old normal")
    return {"data": data, "data_root": root, "minutes": minutes, "from": start, "replay": replay}


def _replay(start: Detector, asked: dict[str, Any], count: int) -> Replay | None:
    """What is replayed of the model that is fine-tuned, as many images as there are new ones."""
    if asked["replay"] == [NO_REPLAY]:
        return None
    folder = resolve(asked["replay"], "train", asked["data_root"]) if asked["replay"] else None
    return make_replay(start, count, folder)


def _write_run(folder: Path, asked: dict[str, Any]) -> None:
    with atomic(folder / "run.yaml") as file:
        file.write(yaml.safe_dump(asked, sort_keys=False, allow_unicode=True).encode())


def _fresh_config(
    start: Detector | None, name: str | None, settings: dict[str, Any], images: ImageSet
) -> Config:
    if start is None:
        return build_config(name, settings, images)
    steps = max(round(FINE_TUNING_SHARE * start.config.steps), min(FINE_TUNING_STEPS, start.config.steps))
    # In so few steps the critics, which are as they were, add time and nothing that was measurable.
    values = {**to_mapping(start.config), "steps": steps, "warm_up": 1.0, "critic_head_start": 0.0}
    return from_mapping({**values, **(load_recipe(name) if name else {}), **settings})


def _resumed_config(recipe: dict[str, Any], name: str | None, settings: dict[str, Any]) -> Config:
    """The recipe of the run. Raises PadError if a setting is to change that the weights depend on."""
    config = from_mapping(recipe)
    wanted = {**(load_recipe(name) if name else {}), **settings}
    wanted = {key: value for key, value in wanted.items() if value != "auto" or key == "precision"}
    changed = config.replace(**wanted) if wanted else config
    for key, value in to_mapping(config).items():
        new = to_mapping(changed)[key]
        if new != value and key not in FREE_ON_RESUME:
            raise PadError(
                f"--resume: the run was started with {key}={value!r} and cannot go on with {new!r}"
            )
    return changed


def _report(detector: Detector, folder: Path) -> None:
    training = detector.card["training"]
    print(
        f"trained for {training['steps']} steps in {training['seconds'] / 60:.1f} minutes; "
        f"calibrated on {len(detector.calibration.scores) if detector.calibration else 0} normal images"
    )
    print(f"model: {folder / 'model'}\nscore images with: python evaluate.py {folder} IMAGES --out RESULTS")


def _report_fine_tuning(
    start: Detector, detector: Detector, replay: Replay | None, held_out: ImageSet, folder: Path
) -> None:
    """Old and new normal images before and after, on the terminal and in the model's card."""
    held_out, _ = readable(held_out, detector.config)
    quality = compare(start, detector, replay, held_out)
    detector.card["fine_tuning"]["quality"] = quality
    detector.save(folder / "model")
    print(f"\n{format_quality(quality, replay is not None and replay.generated)}")
    if replay is not None and replay.generated:
        print(
            "the old normal was replayed from the model itself, so its false-alarm rate is an estimate; "
            "to measure it, give images of it: --replay DIR, or pad calibrate"
        )


# evaluate ----------------------------------------------------------------------------------------


def evaluate(arguments: argparse.Namespace) -> int:
    """`pad evaluate`: model, data -> scores and summary."""
    images = resolve(arguments.data, "evaluate", arguments.data_root)
    detector = Detector.load(arguments.model, arguments.device, arguments.backbone_weights)
    with _visuals(detector, images, arguments) as visuals:
        rows = list(score_rows(detector, images, arguments.fpr, arguments.batch_size, visuals))
        if arguments.fdr is not None:
            rows = judge_batch(rows, arguments.fdr)
        _write_rows(rows, arguments)
        scored = [row for row in rows if row.score is not None]
        if not scored:
            raise PadError(f"no usable image among {images.describe()}: {rows[0].path}: {rows[0].error}")
        pixels = visuals.pixels if visuals else None
        summary = summarize(rows, detector.calibration, arguments.fpr, arguments.fdr, pixels)
        summary["model"] = arguments.model
        if arguments.out and arguments.out != "-":
            write_summary(summary, Path(arguments.out) / "summary.json")
        if visuals:
            visuals.finish(rows, summary, Path(arguments.out))
    print(f"{_most_anomalous(scored)}\n\n{format_table(summary)}", file=_table_stream(arguments))
    for row in [row for row in rows if row.error][:SHOWN]:
        print(f"skipped {row.path}: {row.error}", file=sys.stderr)
    return 3 if arguments.fail_on_anomaly and summary["counts"]["flagged"] else 0


@contextmanager
def _visuals(detector: Detector, images: ImageSet, arguments: argparse.Namespace) -> Iterator[Visuals | None]:
    """What --report and --explain ask for, or None. Raises PadError if there is no folder for it."""
    if not arguments.report and not arguments.explain:
        yield None
        return
    from pad.explain import scale_of
    from pad.report import ReportWriter
    from pad.visuals import Visuals

    option = "--report" if arguments.report else "--explain"
    if not arguments.out or arguments.out == "-":
        raise PadError(f"{option} writes files: name a folder for them with --out")
    if not arguments.report:
        yield Visuals(detector, images, None, arguments.explain)
        return
    with ReportWriter(
        Path(arguments.out) / "report.html",
        calibration=detector.calibration,
        fpr=arguments.fpr,
        fdr=arguments.fdr,
        config=detector.config,
        scale=scale_of(detector.calibration),
        model=arguments.model,
        card={**detector.card, "recipe": to_mapping(detector.config)},
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        projection=arguments.projection,
    ) as report:
        yield Visuals(detector, images, report, arguments.explain)


def score_rows(
    detector: Detector, images: ImageSet, fpr: float, batch_size: int, visuals: Visuals | None = None
) -> Iterator[Row]:
    """A row for every image in order, read and scored batch by batch, with a progress bar on a terminal."""

    def look(batch: Batch) -> tuple[Batch, list[float], Examined | None]:
        if not batch.indices:
            return batch, [], None
        if visuals is None:
            return batch, detector.score_batch(batch.tensor).tolist(), None
        examined = detector.examine(batch.tensor)
        return batch, examined.scores.tolist(), examined

    bar = tqdm(total=len(images), desc="scoring", unit="image", disable=None, leave=False)
    looked = each_batch(look, images, detector.config, detector.device, batch_size)
    for batch, scores, examined in looked:
        results: dict[int, tuple[float | None, str]] = {i: (None, reason) for i, reason in batch.errors}
        results.update({i: (score, "") for i, score in zip(batch.indices, scores, strict=True)})
        rows = {}
        for index, (score, error) in sorted(results.items()):
            sample = images.samples[index]
            rows[index] = make_row(
                sample.name, score, detector.calibration, fpr, error, sample.anomalous, sample.kind
            )
        if visuals:
            visuals.add(rows, batch.indices, examined)
        yield from rows.values()
        bar.update(len(results))
    bar.close()


def _write_rows(rows: list[Row], arguments: argparse.Namespace) -> None:
    if arguments.out == "-":
        write_scores(rows, "-", arguments.format)
    elif arguments.out:
        write_scores(rows, Path(arguments.out) / f"scores.{arguments.format}", arguments.format)


def _table_stream(arguments: argparse.Namespace) -> Any:
    return sys.stderr if arguments.out == "-" else sys.stdout


def _most_anomalous(rows: list[Row]) -> str:
    """The most anomalous images as a table, one line each."""
    shown = sorted(rows, key=lambda row: -(row.score or 0))[:SHOWN]
    lines = ["   score  p-value  verdict  image"]
    for row in shown:
        p_value = "       " if row.p_value is None else f"{row.p_value:7.4f}"
        mark = "ANOMALY" if row.verdict == ANOMALY else f"{row.verdict:7}"
        name = row.path.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
        lines.append(f"{row.score:8.4f}  {p_value}  {mark}  {name}")
    if len(rows) > SHOWN:
        lines.append(f"... and {len(rows) - SHOWN} more, less anomalous")
    return "\n".join(lines)


# calibrate ---------------------------------------------------------------------------------------


def calibrate(arguments: argparse.Namespace) -> int:
    """`pad calibrate`: model, normal images -> the same model, calibrated on them."""
    images = resolve(arguments.data, "evaluate", arguments.data_root).normal_only()
    detector = Detector.load(arguments.model, arguments.device, arguments.backbone_weights)
    images, errors = readable(images, detector.config)
    for line in errors[:SHOWN]:
        print(f"skipped {line}", file=sys.stderr)
    if not len(images):
        raise PadError(f"none of the images in {images.source} can be read")
    calibration = detector.calibrate(images)
    folder = _calibrated_folder(arguments)
    detector.card["calibration"] = images.fingerprint()
    detector.save(folder)
    print(f"calibrated on {images.describe()}; thresholds:")
    for fpr in (0.01, 0.05, 0.1, 0.2):
        note = calibration.note(fpr)
        print(f"  false-alarm rate {fpr:.0%}: " + (note or f"{calibration.threshold(fpr):.6g}"))
    print(f"model: {folder}")
    return 0


def _calibrated_folder(arguments: argparse.Namespace) -> Path:
    from pad.hub import resolve_model

    if arguments.out:
        return Path(arguments.out)
    if arguments.model.startswith(("zoo:", "hf-hub:")):
        raise PadError(f"{arguments.model} is shared: name a folder for the recalibrated model with --out")
    return resolve_model(arguments.model)
