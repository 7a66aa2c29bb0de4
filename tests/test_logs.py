"""The library says nothing and leaves the process alone; the command line says as much as it is asked to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import forked
import pytest
from test_cli import SMALL

ROOT = Path(__file__).parent.parent
RECIPE = dict(word.split("=") for word in SMALL) | {"steps": 4, "views": "generator", "size": 28}


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def normal(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty normal images, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("normal")
    for path in sorted(boots.glob("*.png"))[:20]:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"junk")
    return folder


PREPARE = f"""
import sys, yaml
import pad
from pad.config import from_mapping
recipe = from_mapping({{key: yaml.safe_load(str(value)) for key, value in {RECIPE!r}.items()}})
"""


def test_the_library_is_silent_until_it_is_asked_to_speak(normal: Path) -> None:
    quiet = python(f"{PREPARE}\npad.fit(sys.argv[1], recipe, 'cpu')", normal)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    asked = python(
        f"import logging; logging.basicConfig(level='INFO')\n{PREPARE}\npad.fit(sys.argv[1], recipe, 'cpu')",
        normal,
    )
    assert asked.returncode == 0
    assert asked.stdout == ""
    assert "WARNING:pad.learning.run:skipped " in asked.stderr
    assert "broken.png" in asked.stderr


def test_the_library_leaves_the_process_as_it_is(normal: Path) -> None:
    """Random numbers, signal handlers, warning filters: after import, training, saving and scoring."""
    done = python(
        """
import signal, sys, warnings
import numpy, torch, PIL.Image  # their own doings are not ours
handlers = lambda: [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
before = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), handlers(), list(warnings.filters)
"""
        + PREPARE
        + """
detector = pad.fit(sys.argv[1], recipe, 'cpu')
detector.save(sys.argv[2])
pad.load(sys.argv[2], 'cpu').score(sys.argv[1] + '/' + sys.argv[3])
after = torch.get_rng_state(), numpy.random.get_state()[1].tolist(), handlers(), list(warnings.filters)
assert torch.equal(before[0], after[0]), 'torch draws other random numbers now'
assert before[1] == after[1], 'numpy draws other random numbers now'
assert before[2] == after[2], 'signals are handled otherwise'
ours = [entry for entry in after[3] if entry not in before[3]]
assert not [entry for entry in ours if entry[3] is not None and 'PIL' in str(entry)], ours
""",
        normal,
        normal.parent / "model",
        sorted(path.name for path in normal.iterdir())[0],
    )
    assert done.returncode == 0, done.stderr


def test_signals_belong_to_the_program_that_trains_unless_it_is_the_command(normal: Path) -> None:
    """Ctrl-C in a program that trains into a folder is a KeyboardInterrupt, as everywhere in Python."""
    done = python(
        PREPARE
        + """
import os, signal, threading, time
from pathlib import Path
from pad.devices import pick_device
from pad.images.resolve import resolve
from pad.learning.run import train_detector
from pad.learning.images import split_images
out = Path(sys.argv[2])
def interrupt():
    while not list(out.glob('checkpoints/*.pt')):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
images = split_images(resolve(sys.argv[1], 'train'), recipe.replace(steps=100_000))
try:
    train_detector(recipe.replace(steps=100_000), *images, pick_device('cpu'), out)
except KeyboardInterrupt:
    print('interrupted')
""",
        normal,
        normal.parent / "run",
    )
    assert done.stdout == "interrupted\n", done.stderr


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return forked.run(["-m", "pad", *map(str, arguments)], cwd=ROOT)


def test_the_command_says_as_much_as_it_is_asked_to(normal: Path, tmp_path: Path) -> None:
    words = ("--data", normal, "--steps", 4, "--device", "cpu", "--set", "views=generator", "size=28", *SMALL)
    plain, quiet, verbose = (
        command("train", *words, "--out", tmp_path / str(i), *flags)
        for i, flags in enumerate([(), ("-q",), ("-vv",)])
    )
    assert plain.returncode == quiet.returncode == verbose.returncode == 0, plain.stderr
    assert plain.stdout.startswith("training on ")
    assert len(plain.stderr.splitlines()) == 1
    assert plain.stderr.startswith("skipped ")
    assert plain.stderr.rstrip().endswith("broken.png: not an image of a supported format")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert verbose.stdout.splitlines()[0] == plain.stdout.splitlines()[0]
    assert "pad.learning.run: saved the checkpoint of step 4" in verbose.stderr
    assert len({(tmp_path / str(i) / "model" / "model.safetensors").read_bytes() for i in range(3)}) == 1


@pytest.mark.parametrize("name", ["train", "evaluate", "calibrate", "zoo list", "zoo build", "zoo verify"])
def test_every_command_takes_them_and_not_both(name: str) -> None:
    shown = command(*name.split(), "--help").stdout
    assert "-v, --verbose" in shown
    assert "-q, --quiet" in shown
    refused = command(*name.split(), "-v", "-q")
    assert refused.returncode == 2
    assert "not allowed with argument" in refused.stderr


def test_quiet_still_tells_errors_and_results(normal: Path) -> None:
    failed = command("evaluate", "zoo:digits/three", normal / "gone.png", "-q")
    assert failed.returncode == 2
    assert "gone.png: no such file" in failed.stderr
    done = command("evaluate", "zoo:digits/three", normal, "-q")
    assert done.returncode == 0
    assert "score" in done.stdout
