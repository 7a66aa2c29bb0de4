"""Thousands of damaged and hostile model folders, each through loading, evaluating, calibrating and
fine-tuning: whatever is in a folder, a command does its work or says in one line why not.

    python benchmarks/mutate_models.py [--count 5000] [--seed 0] [--out FILE.json] [--keep DIR] [--only N]

Each command runs as the command line runs it, in a process of its own with a limit of memory and time, forked
from this one so that torch is imported once. Counted as faults: a traceback, a death by a signal, a hang,
another exit status than 0 or 2, a refusal in no line or in several, a control character on the terminal, and
what a link points to in anything that is written. Prints a table, writes JSON; exits with 1 if there is a
fault.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

from jobs import exit_status
from mutations import SECRET, mutate

from pad.errors import PadError
from pad.store.files import atomic

ROOT = Path(__file__).parent.parent
SECONDS = 120  # of one command
MEMORY = 3 << 30  # bytes that one command may ask for, beyond what this process has
OK, REFUSED = "done", "refused"
SMALL = ["size=28", "channels=1", "latent_dim=8", "generator_channels=[8,8,8]", "encoder_channels=[8,8,8]",
         "critic_channels=[8,8,8]", "latent_critic_channels=[16]", "layers=relu2_2", "batch_size=8",
         "residual_components=4", "view_size=64", "keep_normals=4"]  # fmt: skip
BASES = {
    "small": ["--steps", "2", "--set", *SMALL, "views=[generator]"],
    "tuned": ["--steps", "2", "--from", "BASES/small"],
    "quick": ["--steps", "0", "--set", *SMALL, "views=[whole, middle, parts]"],
    "both": ["--steps", "2", "--set", *SMALL, "views=[generator, whole, parts]"],
}


def commands(model: Path, data: Path, out: Path) -> dict[str, list[str]]:
    """The command lines that a model is sent through."""
    images, trained = str(data / "normal"), str(data / "train")
    return {
        "load": ["load", str(model)],
        "evaluate": [
            "evaluate",
            str(model),
            images,
            "--out",
            str(out / "results"),
            "--report",
            "--explain",
            "1",
        ],
        "calibrate": ["calibrate", str(model), images, "--out", str(out / "calibrated")],
        "--from": [
            "train",
            "--data",
            trained,
            "--from",
            str(model),
            "--steps",
            "1",
            "--out",
            str(out / "run"),
        ],
    }


def run(words: list[str], log: Path) -> tuple[int | str, float]:
    """(exit status, or what ended it; seconds) of a command whose output goes to a file."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(words, log)
    while time.monotonic() < begun + SECONDS:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            seconds = time.monotonic() - begun
            return (
                f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            ), seconds
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang", time.monotonic() - begun


def _child(words: list[str], log: Path) -> None:
    """Never returns."""
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if words[0] == "load":
            import pad

            try:
                pad.load(words[1], "cpu")
                status = 0
            except PadError as error:
                print(f"pad: {error}", file=sys.stderr)
                status = 2
        else:
            from pad.commands.parser import main

            status = main([*words, "--device", "cpu"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def judge(status: int | str, said: str) -> str:
    """The outcome of a command by its status and its output: done, refused, or the fault."""
    if isinstance(status, str):
        return status
    if "Traceback (most recent call last)" in said:
        return "traceback"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", said.replace("\r", "")):
        return "control characters"
    if SECRET in said:
        return "secret told"
    if status == 0:
        return OK
    if status != 2:
        return f"status {status}"
    lines = [line for line in said.splitlines() if line.startswith("pad: ")]
    return REFUSED if len(lines) == 1 else f"{len(lines)} lines"


def base_models(folder: Path) -> list[Path]:
    """Where the models lie that are damaged: a small one, one fine-tuned from it, one of the quick views, one
    of both kinds of view, and one of the zoo."""
    return [*(folder / name / "model" for name in BASES), ROOT / "zoo" / "fashion-mnist" / "ankle-boot"]


def train_base_models(folder: Path, data: Path) -> None:
    """Trains all but the last, in processes of their own: who forks must not have computed with torch."""
    for name, words in BASES.items():
        words = [word.replace("BASES", str(folder)) for word in words]
        log = folder.parent / "training.log"
        if run(["train", "--data", str(data / "train"), "--out", str(folder / name), *words], log)[0] != 0:
            raise PadError(f"the models to damage cannot be trained: {log.read_text()}")


def images(folder: Path) -> Path:
    """A few real images: `train`, to fine-tune on, and `normal`."""
    source = sorted((ROOT / "tests" / "data" / "fashion" / "train" / "ankle-boot").iterdir())
    for name, chosen in (("train", source[:10]), ("normal", source[10:14])):
        (folder / name).mkdir(parents=True)
        for path in chosen:
            shutil.copy(path, folder / name)
    return folder


def leaks(folder: Path) -> bool:
    """Whether what lies outside a model has come into anything that was written."""
    written = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return any(SECRET.encode() in path.read_bytes() for path in written)


def trial(seed: str, bases: list[Path], data: Path, place: Path) -> dict[str, Any]:
    """One damaged folder through all commands."""
    random = Random(seed)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "secret").write_text(SECRET)
    model = place / "model"
    shutil.copytree(random.choice(bases), model, ignore=shutil.ignore_patterns("samples", "*.png"))
    result: dict[str, Any] = {"seed": seed, "mutation": mutate(model, random), "outcomes": {}, "seconds": {}}
    for name, words in commands(model, data, place / "out").items():
        log = place / f"{name.strip('-')}.log"
        status, seconds = run(words, log)
        said = log.read_text("utf-8", "backslashreplace")
        outcome = judge(status, said)
        result["outcomes"][name], result["seconds"][name] = outcome, round(seconds, 2)
        if outcome not in (OK, REFUSED):
            result.setdefault("said", {})[name] = said[-2_000:]
    if (place / "out").exists() and leaks(place / "out"):
        result["outcomes"]["written"] = "secret written"
    if (place / "secret").read_text() != SECRET:
        result["outcomes"]["outside"] = "overwritten"
    return result


class Tally:
    """What has come of the folders so far; kept in a file, if there is one, to go on from."""

    def __init__(self, seed: int, path: Path | None) -> None:
        self.path = path
        self.state: dict[str, Any] = {
            "seed": seed,
            "folders": 0,
            "seconds": 0.0,
            "outcomes": {},
            "faults": [],
        }
        if path is not None and path.exists():
            known = json.loads(path.read_text("utf-8"))
            if known["seed"] != seed:
                raise PadError(f"{path} holds the outcomes of --seed {known['seed']}: name another file")
            self.state = known

    def add(self, result: dict[str, Any], seconds: float) -> None:
        self.state["folders"] += 1
        self.state["seconds"] = round(self.state["seconds"] + seconds, 1)
        for name, outcome in result["outcomes"].items():
            for row in (result["mutation"], f"all, {name}"):
                counts = self.state["outcomes"].setdefault(row, {})
                counts[outcome] = counts.get(outcome, 0) + 1
        if is_fault(result):
            self.state["faults"].append(result)
        if self.path is not None:
            with atomic(self.path) as file:
                file.write(json.dumps(self.state, indent=1).encode("ascii") + b"\n")

    def table(self) -> str:
        """Mutations by outcomes, all commands together, and commands by outcomes."""
        rows = self.state["outcomes"]
        others = sorted({outcome for counts in rows.values() for outcome in counts} - {OK, REFUSED})
        outcomes = [OK, REFUSED, *others]
        lines = ["".ljust(28) + "".join(outcome.rjust(max(10, len(outcome) + 2)) for outcome in outcomes)]
        for name in sorted(rows, key=lambda name: (name.startswith("all, "), name)):
            cells = (str(rows[name].get(o, 0)).rjust(max(10, len(o) + 2)) for o in outcomes)
            lines.append(name.ljust(28) + "".join(cells))
        return "\n".join(lines)


def is_fault(result: dict[str, Any]) -> bool:
    return any(outcome not in (OK, REFUSED) for outcome in result["outcomes"].values())


def _prepare() -> None:
    """Imports what the commands import, and keeps the weights of the backbone, so that a fork has them."""
    import functools

    import torch
    import torchvision.utils  # noqa: F401

    import pad.backbones.vgg
    import pad.commands.calibrate
    import pad.commands.evaluate
    import pad.commands.train
    import pad.showing.report
    import pad.showing.visuals

    torch.set_num_threads(1)
    pad.backbones.vgg.load_backbone_weights = functools.cache(pad.backbones.vgg.load_backbone_weights)
    pad.backbones.vgg.load_backbone_weights("vgg16-st", None, False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=5000, help="folders in all (default 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", type=int, metavar="N", help="the folder of this number alone, to look at it"
    )
    parser.add_argument("--out", type=Path, help="JSON of all outcomes; where it is there, the run goes on")
    parser.add_argument("--keep", type=Path, help="keep damaged folders that came to a fault there")
    args = parser.parse_args()
    # Nothing is downloaded, nor has anything been.
    os.environ.update(https_proxy="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
    tally = Tally(args.seed, args.out)
    numbers = range(tally.state["folders"], args.count) if args.only is None else [args.only]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_HOME"] = os.environ["HF_HOME"] = folder
        data, place = images(Path(folder) / "data"), Path(folder) / "trial"
        _prepare()
        train_base_models(Path(folder) / "bases", data)
        for number in numbers:
            begun = time.monotonic()
            result = trial(f"{args.seed}-{number}", base_models(Path(folder) / "bases"), data, place)
            tally.add(result, time.monotonic() - begun)
            if is_fault(result) or args.only is not None:
                print(f"{result['seed']} {result['mutation']}: {result['outcomes']}", flush=True)
                if args.keep:
                    shutil.copytree(place, args.keep / result["seed"], symlinks=True, dirs_exist_ok=True)
            if (number + 1) % 100 == 0:
                print(f"{number + 1}: {tally.state['seconds']:.0f} s", file=sys.stderr, flush=True)
    print(tally.table())
    faults = len(tally.state["faults"])
    print(f"{tally.state['folders']} folders, {faults} with a fault, {tally.state['seconds']:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
