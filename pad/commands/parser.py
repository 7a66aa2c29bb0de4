"""The command line: `pad train | evaluate | calibrate | clean | export | watch | serve | zoo`, train.py and
evaluate.py.

Exit status: 0 done; 2 unusable arguments or input, with one line on standard error; 1 a fault of ours;
3 anomalies were found and `--fail-on-anomaly` was given; 4 something could not be judged (no calibration, too
few calibration images for the rate, an unreadable image) and `--fail-on-error` was given, or
`--fail-on-anomaly` and nothing was flagged; 128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pad
from pad.commands.logs import add_verbosity, set_up
from pad.commands.streams import guard
from pad.config import BATCH_SIZE, FPR, MOST_BATCH
from pad.errors import PadError, printable

Arguments = argparse.Namespace
DECISIONS = ("proposals", "accept", "reject", "rollback")  # of `pad watch`, instead of a model
MOST_MINUTES = 60 * 24 * 365


class _Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run("pad.commands.train", "train"))
    parser.add_argument("--data", nargs="+", metavar="DATA", help="normal images: files, folders, globs, or "
                        "a dataset and its normal class such as fashion-mnist:9")  # fmt: skip
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--config", metavar="FILE|NAME", help="recipe (default: folder, which looks at the images)"
    )
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value",
                        help="change settings of the recipe")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=_whole, metavar="N", help="train for N steps (0: the quick views alone)"
    )
    length.add_argument("--minutes", type=_minutes, metavar="M", help="train for M minutes")
    parser.add_argument(
        "--from", dest="start", metavar="MODEL", help="go on from a trained model (fine-tuning)"
    )
    parser.add_argument("--replay", nargs="+", metavar="DATA", help="with --from: images of the old "
                        "normal, to keep it (default: the model's own; none: may be forgotten)")  # fmt: skip
    parser.add_argument("--tolerate", metavar="WHAT", help="what new normal images may differ by, such as "
                        "brightness=0.2,contrast=0.2,rotation=5,shift=0.05,flip; none: nothing")  # fmt: skip
    parser.add_argument("--check", nargs="+", metavar="DATA", help="with --from: anomalies that the model "
                        "finds; says how many are found before and after")  # fmt: skip
    parser.add_argument("--tile", type=_positive_int, metavar="PIXELS", help="cut large pictures into "
                        "overlapping tiles of this side: one verdict a picture")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on where RUN stopped")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done, and the recipe")
    parser.add_argument("--seed", type=int, metavar="N", help="of all random numbers (default 0)")
    parser.add_argument("--data-root", metavar="DIR", help="where named datasets lie")
    _add_downloads(parser)
    _add_device(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_evaluate)
    _add_model_and_data(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="write scores.csv and summary.json there; '-': scores to stdout"
    )
    parser.add_argument("--fpr", type=_rate, default=FPR, metavar="RATE",
                        help=f"false-alarm rate on normal images (default {FPR:g})")  # fmt: skip
    _add_confidence(parser)
    parser.add_argument("--fdr", type=_rate, metavar="RATE",
                        help="bound the share of false ones among the flagged instead")  # fmt: skip
    parser.add_argument(
        "--format",
        choices=("csv", "jsonl", "json", "parquet"),
        default="csv",
        help="of the scores file (parquet: pip install 'pad-anomaly[parquet]')",
    )
    parser.add_argument(
        "--report", action="store_true", help="write one HTML page to look at: DIR/report.html"
    )
    parser.add_argument("--projection", choices=("pca", "umap"), default="pca",
                        help="of the report's map of latents (umap: pip install "
                        "'pad-anomaly[umap]')")  # fmt: skip
    parser.add_argument("--explain", nargs="?", type=_positive_int, const=100, metavar="N",
                        help="draw why, for the N most anomalous images (default 100): "
                        "DIR/explanations")  # fmt: skip
    parser.add_argument(
        "--fail-on-anomaly",
        action="store_true",
        help="exit with status 3 if anything is flagged, else 4 if something could not be judged",
    )
    parser.add_argument(
        "--fail-on-error",
        action="store_true",
        help="exit with status 4 if something could not be judged: no "
        "calibration, too few calibration images for the rate, an unreadable image",
    )
    _add_device(parser)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), help="number format "
                        "(default: as the model's recipe says)")  # fmt: skip
    parser.add_argument("--batch-size", type=_batch_size, default=BATCH_SIZE, metavar="N",
                        help=f"images scored at a time (default {BATCH_SIZE})")  # fmt: skip
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="score on the Ray cluster at "
                        "ADDRESS, or on the processors of this machine; goes on where it was stopped (pip "
                        "install 'pad-anomaly[ray]')")  # fmt: skip


def _evaluate(arguments: Arguments) -> int:
    """An exported graph is evaluated without torch."""
    module = "pad.commands.evaluate"
    if arguments.model.endswith(".pt2"):
        raise PadError(f"{arguments.model}: torch reads such files by pickle, which can run what a stranger "
                       "wrote, so pad does not: evaluate the model itself or a .onnx file")  # fmt: skip
    if arguments.model.endswith(".onnx"):
        if arguments.ray is not None:
            raise PadError("--ray takes the model itself, not an exported graph")
        module = "pad.commands.evaluate_exported"
    elif arguments.ray is not None:
        module = "pad.commands.evaluate_cluster"
    return _run(module, "evaluate")(arguments)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run("pad.commands.export", "export"))
    _add_model(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write, .onnx or .pt2")
    parser.add_argument("--format", choices=("onnx", "torch-export"), default="onnx", help="an ONNX graph "
                        "(FILE.onnx, the default), or a program of torch (FILE.pt2)")  # fmt: skip
    parser.add_argument("--views", metavar="NAME,...", help="look through these of the model's views alone, "
                        "calibrated as such (default: all)")  # fmt: skip
    parser.add_argument("--int8", action="store_true", help="ONNX: backbones in int8, quicker and less "
                        "exact; says what it costs")  # fmt: skip
    parser.add_argument("--samples", nargs="+", metavar="DATA", help="pictures of the model's kind to "
                        "compare on (default: those that it keeps)")  # fmt: skip
    parser.add_argument("--data-root", metavar="DIR", help="where named datasets lie")
    parser.add_argument("--opset", type=_positive_int, metavar="N", help="of ONNX (default 20)")


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run("pad.commands.calibrate", "calibrate"))
    _add_model_and_data(parser)
    parser.add_argument("--out", metavar="DIR", help="write the recalibrated model there (default: in place)")
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument(
        "--skip-trained", action="store_true", help="leave out images that the model was trained on"
    )
    trained.add_argument(
        "--allow-trained", action="store_true", help="calibrate on them too: more false alarms than promised"
    )
    _add_confidence(parser)
    _add_device(parser)


def _add_clean(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run("pad.commands.clean", "clean"))
    parser.add_argument("data", nargs="+", metavar="FOLDER", help="images: folders, files, globs")
    parser.add_argument("--out", metavar="DIR", help="write ranking.csv and summary.json there")
    parser.add_argument(
        "--report", action="store_true", help="write one HTML page to look at: DIR/report.html"
    )
    parser.add_argument(
        "--move-to", metavar="DIR", help="move the marked files there; DIR/moved.csv says where they were"
    )
    parser.add_argument("--first", type=_whole, metavar="N", help="mark the first N of the ranking (default: "
                        "a group that stands apart, if there is one)")  # fmt: skip
    parser.add_argument("--config", metavar="FILE|NAME", help="recipe (default: folder)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="key=value", help="change "
                        "settings of the recipe; contamination=0.1: a tenth does not belong")  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="of all random numbers (default 0)")
    parser.add_argument("--data-root", metavar="DIR", help="where named datasets lie")
    _add_device(parser)


def _add_watch(parser: argparse.ArgumentParser) -> None:
    judge, decide = _run("pad.commands.watch", "watch"), _run("pad.commands.decide", "decide")
    parser.set_defaults(run=lambda given: (decide if given.model in DECISIONS else judge)(given))
    parser.usage = (
        "pad watch MODEL SOURCE --state DIR [options]\n"
        "       pad watch proposals | accept ID | reject ID [--name NAME] | rollback --state DIR"
    )
    parser.add_argument("model", metavar="MODEL", help="run folder, model folder, zoo:NAME or "
                        "hf-hub:ORG/REPO[@REV]; or proposals, accept, reject, rollback")  # fmt: skip
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="a folder in which pictures appear, a "
                        "video, a camera's index or rtsp:// address (pip install 'pad-anomaly[watch]'), or "
                        "-: paths or JSON on standard input; or the ID of a proposal")  # fmt: skip
    parser.add_argument(
        "--state", required=True, metavar="DIR", help="folder of all that is to be remembered"
    )
    parser.add_argument("--fpr", type=_rate, default=FPR, metavar="RATE",
                        help=f"false-alarm rate on normal images (default {FPR:g})")  # fmt: skip
    parser.add_argument("--out", metavar="FILE|-", help="a line of JSON for each picture (default: "
                        "standard output)")  # fmt: skip
    parser.add_argument("--adopt", metavar="ask|after:N|never", help="when flagged pictures that are alike "
                        "become normal: when somebody says so (default), at N of them, or never")  # fmt: skip
    parser.add_argument("--online-fdr", type=_rate, metavar="RATE", help="raise an alarm for some of what is "
                        "flagged, so that at most this share of a period's alarms is false")  # fmt: skip
    parser.add_argument("--keep", nargs="+", metavar="DAYS|BYTES", help="how long events are kept, and in "
                        "how much room (default: 30d 4GB)")  # fmt: skip
    parser.add_argument("--webhook", metavar="URL", help="post what is flagged or proposed, and drift, "
                        "there, signed with PAD_WEBHOOK_SECRET")  # fmt: skip
    parser.add_argument("--port", type=_whole, metavar="P", help="serve a page to look at and decide on, at "
                        "this port of this machine (pip install 'pad-anomaly[serve]')")  # fmt: skip
    parser.add_argument("--once", action="store_true", help="stop when all that is there was judged")
    parser.add_argument("--name", metavar="NAME", help="with reject: what kind of anomaly it is")
    _add_weights(parser)
    _add_downloads(parser)
    _add_device(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_run("pad.commands.serve", "serve"))
    parser.add_argument("model", metavar="MODEL", help="run folder, model folder, zoo:NAME or "
                        "hf-hub:ORG/REPO[@REV]")  # fmt: skip
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=_whole, help="port to listen on (default 8000; 0: any that is free)")
    parser.add_argument("--fpr", type=_rate, metavar="RATE",
                        help=f"false-alarm rate on normal images (default {FPR:g})")  # fmt: skip
    _add_confidence(parser)
    parser.add_argument("--max-megabytes", type=_minutes, metavar="N", help="of a request (default 64)")
    parser.add_argument("--max-megapixels", type=_minutes, metavar="N", help="of a picture (default 50)")
    parser.add_argument("--max-images", type=_positive_int, metavar="N", help="in a request (default 256)")
    parser.add_argument("--max-queue", type=_positive_int, metavar="N", help="pictures that may wait; beyond "
                        "that, the answer is 429 (default 1024)")  # fmt: skip
    parser.add_argument("--timeout", type=_minutes, metavar="S", help="seconds for a request (default 60)")
    parser.add_argument("--batch-size", type=_batch_size, metavar="N", help="scored at a time (default 64)")
    parser.add_argument("--ray", nargs="?", const="", metavar="ADDRESS", help="serve from the Ray cluster at "
                        "ADDRESS, or from several processes of this machine (pip install "
                        "'pad-anomaly[ray,serve]')")  # fmt: skip
    parser.add_argument("--replicas", type=_positive_int, metavar="N", help="with --ray: how many processes "
                        "(default: one a machine)")  # fmt: skip
    _add_weights(parser)
    _add_downloads(parser)
    _add_device(parser)


def _add_zoo(subparsers: Any) -> None:
    """`zoo` and its own commands."""
    zoo = subparsers.add_parser(
        "zoo",
        help="pretrained models: list, show, download, verify, publish, build",
        description="Pretrained models: list, show, download, verify, publish, build.",
    )
    commands = zoo.add_subparsers(dest="zoo_command", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", type=Path, metavar="DIR", help="another zoo folder than the installed one")

    def add(name: str, module: str, function: str, text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text, parents=[common])
        add_verbosity(parser)
        parser.set_defaults(run=_run(f"pad.commands.{module}", function))
        return parser

    add("list", "zoo", "list_command", "a table of the pretrained models")
    add("show", "zoo", "show_command", "everything about one model").add_argument("name", metavar="NAME")
    names = add("download", "zoo", "download_command", "fetch models for use without network")
    names.add_argument(
        "names", nargs="+", metavar="NAME", help="a name of the list, or hf-hub:ORG/REPO[@REVISION]"
    )
    names = add("verify", "verify", "verify", "check files, load, and score the sample images again")
    names.add_argument("names", nargs="*", metavar="NAME", help="all that are on this machine by default")
    publish = add("publish", "zoo", "publish_command", "upload a model and its card to the hub")
    publish.add_argument("model", metavar="MODEL", help="a run folder, a model folder or zoo:NAME")
    publish.add_argument("repo", metavar="ORG/NAME", help="the repository; created if it is not there")
    publish.add_argument("--private", action="store_true", help="create it as a private repository")
    publish.add_argument("--dry-run", action="store_true", help="only show what would be done; no network")
    build = add("build", "build", "build", "train, measure and write models of the zoo from their recipes")
    build.add_argument("names", nargs="+", metavar="NAME", help="a line of models.yaml")
    build.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders "
                       "lie, to train in or to take finished ones from (default: runs)")  # fmt: skip
    build.add_argument("--data-root", metavar="DIR", help="where named datasets lie")
    _add_device(build)


def _add_model_and_data(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("data", nargs="+", metavar="DATA", help="images: files, folders, globs, or a dataset")
    parser.add_argument("--data-root", metavar="DIR", help="where named datasets lie")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="run folder, model folder, zoo:NAME or hf-hub:ORG/REPO[@REV]; to evaluate, also FILE.onnx",
    )
    _add_weights(parser)
    _add_downloads(parser)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone-weights", metavar="FILE", help="weights of the backbones vgg16 and vgg19")
    parser.add_argument(
        "--view-backbone-weights", metavar="FILE", help="weights of a backbone of the views, timm:MODEL"
    )


def _add_downloads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-downloads", action="store_true", help="download the weights of the MODEL's "
                        "backbone, if it is one whose weights are not on this machine")  # fmt: skip


def _add_confidence(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--confidence", type=_rate, metavar="C",
                        help="hold the false-alarm rate for this very model with probability C, such as 0.95 "
                        "(default: on average over calibration sets)")  # fmt: skip


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda|mps", help="where to compute")


def _run(module: str, name: str) -> Callable[[Arguments], int]:
    """A command, imported only when it runs: `--help` and wrong arguments answer at once."""

    def call(arguments: Arguments) -> int:
        return getattr(_imported(module), name)(arguments)

    return call


def _imported(module: str) -> ModuleType:
    """The module of a command, and torch with it. None of that is garbage before the end: not to look
    for any, neither now nor at the end, saves a quarter of the time that a command takes to start."""
    if module in sys.modules or not gc.isenabled():
        return importlib.import_module(module)
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text[:20]) > 10**9:
        raise argparse.ArgumentTypeError(f"takes a whole number from 0 to {10**9:,}, not '{text:.40}'")
    return int(text)


def _positive_int(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number of at least 1, not '{text}'")
    return int(text)


def _batch_size(text: str) -> int:
    if not text.isdecimal() or not 1 <= (size := int(text[:20])) <= MOST_BATCH:
        raise argparse.ArgumentTypeError(
            f"takes a whole number of at least 1, at most {MOST_BATCH:,}, not '{text:.40}'"
        )
    return size


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(
            f"takes a number above 0, up to {MOST_MINUTES:,} (a year), not '{text}'"
        )
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"takes a rate between 0 and 1, such as 0.05, not '{text}'")
    return value


_COMMANDS = {
    "train": (_add_train, "train a detector on normal images"),
    "evaluate": (_add_evaluate, "score images with a trained detector"),
    "clean": (_add_clean, "rank what does not belong in an unlabelled folder, and move it aside"),
    "export": (_add_export, "write a model as one graph: pixels in, verdicts out"),
    "calibrate": (_add_calibrate, "recalibrate a model on your own normal images, without training"),
    "serve": (_add_serve, "answer over HTTP (pip install 'pad-anomaly[serve]')"),
    "watch": (_add_watch, "judge a stream of images, and learn new kinds of normal"),
}


def command_line() -> argparse.ArgumentParser:
    """The parser of `pad ...`."""
    parser = _Parser(prog="pad", description=pad.__doc__)
    parser.add_argument("--version", action="version", version=f"pad {pad.__version__}")
    subparsers: Any = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add, text) in _COMMANDS.items():
        command = subparsers.add_parser(name, help=text, description=text)
        add(command)
        add_verbosity(command)
    _add_zoo(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`pad ...`; returns the exit status."""
    return _execute(command_line(), argv)


def script(command: str) -> int:
    """`train.py` and `evaluate.py`: one command with a name of its own; returns the exit status."""
    add, text = _COMMANDS[command]
    parser = _Parser(prog=f"{command}.py", description=text)
    add(parser)
    add_verbosity(parser)
    return _execute(parser, None)


def _execute(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    try:
        guard()
        try:
            arguments = parser.parse_args(argv)
            set_up(arguments)
            return arguments.run(arguments)
        finally:
            sys.stdout.flush()
    except PadError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return getattr(error, "status", 2)
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 130
    except OSError as error:  # of a disk or a name, wherever it was not foreseen: no fault of ours
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"{parser.prog}: {where}{error.strerror or error}", file=sys.stderr)
        return 2
