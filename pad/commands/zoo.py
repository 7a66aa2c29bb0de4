"""`pad zoo list | show | download | verify | publish | build`.

Each command is a function of its parsed arguments that prints its result and returns the exit status;
what the user must mend is raised as PadError.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pad.config import zoo_folder
from pad.errors import PadError, printable
from pad.remote.cache import sha256
from pad.store.files import atomic
from pad.store.hub import resolve_model, suggest, zoo_names
from pad.store.index import ZooModel, is_inside, read_index
from pad.store.model_folder import CARD, LIMITS, MAX_OTHER, check_inside, present, read_inside, read_model
from pad.store.plain_json import parse_json

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

VERIFY = "verify.json"  # beside the card: {"tolerance": 0.03, "scores": {"samples/a.png": 0.73, ...}}


def add_parser(subparsers: Subparsers) -> Subparsers:
    """Adds `zoo` and its commands; each sets `run`, a function of the parsed arguments.

    Returns the sub-parsers of `zoo`, for further commands.
    """
    zoo = subparsers.add_parser(
        "zoo",
        help="pretrained models: list, show, download, verify, publish, build",
        description=__doc__.splitlines()[0],
    )
    commands = zoo.add_subparsers(dest="zoo_command", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", type=Path, metavar="DIR", help="another zoo folder than the installed one")

    def add(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text, parents=[common])
        parser.set_defaults(run=function)
        return parser

    add("list", list_command, "a table of the pretrained models")
    add("show", show_command, "everything about one model").add_argument("name", metavar="NAME")
    names = add("download", download_command, "fetch models for use without network")
    names.add_argument(
        "names", nargs="+", metavar="NAME", help="a name of the list, or hf-hub:ORG/REPO[@REVISION]"
    )
    names = add("verify", verify_command, "check files, load, and score the sample images again")
    names.add_argument("names", nargs="*", metavar="NAME", help="all that are on this machine by default")
    publish = add("publish", publish_command, "upload a model and its card to the hub")
    publish.add_argument("model", metavar="MODEL", help="a run folder, a model folder or zoo:NAME")
    publish.add_argument("repo", metavar="ORG/NAME", help="the repository; created if it is not there")
    publish.add_argument("--private", action="store_true", help="create it as a private repository")
    publish.add_argument("--dry-run", action="store_true", help="only show what would be done; no network")
    build = add("build", build_command, "train, measure and write models of the zoo from their recipes")
    build.add_argument("names", nargs="+", metavar="NAME", help="a line of models.yaml")
    build.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders "
                       "lie, to train in or to take finished ones from (default: runs)")  # fmt: skip
    build.add_argument("--data-root", metavar="DIR", help="where named datasets lie")
    build.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps", help="where to compute")
    return commands


def build_command(args: argparse.Namespace) -> int:
    """Trains, measures and writes models."""
    from pad.registry.build import build_command

    return build_command(args)


def list_command(args: argparse.Namespace) -> int:
    """Prints the table of all models."""
    root = args.root or zoo_folder()
    index = read_index(root)
    rows = [("NAME", "SIZE", "IMAGES", "ROC AUC", "LICENCE", "WHERE")]
    for name in zoo_names(root):
        model = index.get(name)
        if model is None:  # a folder that lies in the zoo and is not in the index yet
            rows.append((name, "", "", "", "", "local, not in the index"))
            continue
        size = f"{model.size}x{model.size}x{model.channels}"
        rows.append((name, size, f"{model.images:,}", _auc(model), model.licence, _where(model, root)))
    if len(rows) == 1:
        raise PadError(f"the zoo {root} is empty")
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (1, 2, 3)
    for row in rows:
        cells = (
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        print(printable("  ".join(cells).rstrip()))
    return 0


def show_command(args: argparse.Namespace) -> int:
    """Prints the index entry and the card of one model."""
    root = args.root or zoo_folder()
    name = args.name.removeprefix("zoo:")
    model = read_index(root).get(name)
    folder = root / (model.folder if model else name)
    if model is None and not (is_inside(name) and name and present(folder)):
        raise PadError(f"the zoo has no model '{name}'{suggest(name, root)}")
    print(f"use       zoo:{name}")
    if model is not None:
        print(f"title     {printable(model.title)}\ndataset   {printable(model.dataset)}")
        print(f"input     {model.size}x{model.size} pixels, {'grey' if model.channels == 1 else 'colour'}")
        print(f"images    {model.images:,} normal images trained on")
        print(f"ROC AUC   {_auc(model, interval=True)}\nlicence   {printable(model.licence)}")
        print(f"where     {_where(model, root)}")
        if model.remote is not None:
            print(f"remote    hf-hub:{model.remote['repo']}@{model.remote['revision']}")
    if present(folder):
        print(f"folder    {folder}")
    if (folder / CARD).is_file():
        card = read_inside(folder, CARD, LIMITS[CARD]).decode("utf-8", "replace")
        text = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).strip()
        print("\n" + "\n".join(printable(line) for line in text.splitlines()))
    return 0


def download_command(args: argparse.Namespace) -> int:
    """Makes every named model usable without network, and prints where it lies."""
    folders = [(spec, resolve_model(spec, args.root)) for spec in map(_spec, _known(args.names, args.root))]
    for spec, folder in folders:
        read_model(folder)  # nothing unsafe is called ready
        print(f"{spec}  {folder}")
    return 0


def publish_command(args: argparse.Namespace) -> int:
    """Shows the plan, and unless it is a dry run, uploads."""
    from pad.registry.publish import plan, upload

    publication = plan(resolve_model(args.model, args.root), args.repo, args.private)
    print(publication.describe(), flush=True)
    if args.dry_run:
        print("dry run: nothing was sent")
        return 0
    commit = upload(publication)
    print(f"published   hf-hub:{publication.repo}@{commit}")
    return 0


def verify_command(args: argparse.Namespace) -> int:
    """Verifies models one by one; PadError at the end names those that failed."""
    root = args.root or zoo_folder()
    index = read_index(root)
    names = [n.removeprefix("zoo:") for n in _known(args.names, root)] or zoo_names(root)
    failed = []
    for name in names:
        model = index.get(name)
        local = present(root / (model.folder if model else name))
        if not args.names and not local:
            print(f"{name}: skipped, not on this machine")
            continue
        try:
            report = verify_model(name, root)
        except PadError as error:
            failed.append(name)
            report = f"FAILED: {error}"
        print(f"{name}: {report}", flush=True)
    if not names:
        raise PadError(f"the zoo {root} is empty")
    if failed:
        raise PadError(f"{len(failed)} of {len(names)} models failed verification: {', '.join(failed)}")
    return 0


def verify_model(name: str, root: Path | None = None) -> str:
    """Checks one model of the zoo: its files' sha256, that it loads, and that it scores its sample images
    (`verify.json`) as recorded, within the recorded relative tolerance.

    Returns what was checked, as a phrase. Raises PadError that names the file, or the image and its scores.
    """
    root = root or zoo_folder()
    model = read_index(root).get(name)
    folder = resolve_model(f"zoo:{name}", root)
    done = []
    if model is not None and folder == root / model.folder:
        for file, digest in model.files.items():
            check_inside(folder, folder / file)
            if not (folder / file).is_file():
                raise PadError(f"{folder / file} is missing")
            if sha256(folder / file) != digest:
                raise PadError(f"{folder / file} is not the file of the index: its sha256 differs")
        done.append(f"{len(model.files)} files as in the index")
    elif model is not None:
        done.append("files as in the index")  # download() has compared them
    else:
        done.append("not in the index")
    read_model(folder)
    record = _read_record(folder)
    if record is None:
        import pad

        pad.load(folder, device="cpu")
        return ", ".join([*done, f"loads, no {VERIFY} to score"])
    tolerance, scores = record
    done.append(_score_again(folder, scores, tolerance))
    return ", ".join(done)


def _score_again(folder: Path, scores: dict[str, float], tolerance: float) -> str:
    import pad

    for image in scores:
        check_inside(folder, folder / image)
    detector = pad.load(folder, device="cpu")
    found = detector.score([folder / image for image in scores])
    worst = 0.0
    for (image, recorded), score in zip(scores.items(), found.tolist(), strict=True):
        apart = abs(score - recorded) / max(abs(recorded), 1e-12)
        if not apart <= tolerance:  # also when it is NaN
            raise PadError(f"{folder / image} scores {score:.6g}, recorded is {recorded:.6g}")
        worst = max(worst, apart)
    return f"{len(scores)} images score as recorded (within {worst:.1e})"


def _read_record(folder: Path) -> tuple[float, dict[str, float]] | None:
    """(tolerance, {image: score}) of verify.json, or None where there is none."""
    path = folder / VERIFY
    if not path.exists():
        return None
    try:
        record = parse_json(read_inside(folder, VERIFY, MAX_OTHER), path)
        tolerance, scores = float(record["tolerance"]), dict(record["scores"])
        good = all(is_inside(image) and math.isfinite(score) for image, score in scores.items())
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
        good = False
    if not good or not scores or not 0 <= tolerance <= 0.1:
        raise PadError(
            f'{path} is not of the form {{"tolerance": 0.03, "scores": {{"samples/a.png": 0.73}}}}'
        )
    return tolerance, scores


def write_record(folder: Path, scores: dict[str, float], tolerance: float = 0.03) -> None:
    """Records the scores of sample images for `pad zoo verify`.

    Args:
        folder: the model's folder in the zoo.
        scores: by the image's path inside the folder, such as "samples/normal-0.png".
        tolerance: relative; a machine that computes in bfloat16 differs from one in float32 by about 1 %.
    """
    text = json.dumps({"tolerance": tolerance, "scores": {k: float(v) for k, v in scores.items()}}, indent=1)
    with atomic(folder / VERIFY) as file:
        file.write(f"{text}\n".encode())
    _read_record(folder)


def _known(names: list[str], root: Path | None) -> list[str]:
    """`names`, after a look at all of them, so that a mistyped one is told before any work is done."""
    known = zoo_names(root)
    for name in names:
        short = name.removeprefix("zoo:")
        if not short.startswith("hf-hub:") and short not in known:
            raise PadError(f"the zoo has no model '{short}'{suggest(short, root)}")
    return names


def _spec(name: str) -> str:
    return name if name.startswith(("zoo:", "hf-hub:")) else f"zoo:{name}"


def _where(model: ZooModel, root: Path) -> str:
    if present(root / model.folder):
        return "local"
    return "remote" if model.remote is not None else "missing"


def _auc(model: ZooModel, interval: bool = False) -> str:
    if model.roc_auc is None:
        return "-"
    value = f"{model.roc_auc['value']:.3f}"
    if interval and {"low", "high"} <= set(model.roc_auc):
        value += f" (95 % interval {model.roc_auc['low']:.3f} to {model.roc_auc['high']:.3f})"
    return value
