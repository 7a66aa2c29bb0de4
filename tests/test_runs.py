"""A run keeps what it was asked for and what it has done: kills, full disks, two at once, and `--resume`."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from train_process import KILLED, Done, run, train

from pad.config import Config
from pad.detector import Detector
from pad.errors import PadError
from pad.images.resolve import resolve
from pad.images.stream import load_all
from pad.learning.images import MemoryImages
from pad.learning.trainer import Trainer
from pad.registry.publish import plan
from pad.similarity.build import build_similarity
from pad.similarity.relative import RelativePerceptualL1
from pad.store.files import CannotWrite, atomic, replace_folder, restore_folder
from pad.store.hub import resolve_model
from pad.store.model_folder import read_model
from pad.store.run_folder import RunFolder
from pad.views.generator import GeneratorView

ROOT = Path(__file__).parent.parent
TINY = [
    "latent_dim=4", "generator_channels=[4,4,4]", "encoder_channels=[4,4,4]", "critic_channels=[4,4,4]",
    "latent_critic_channels=[8]", "similarity=l1", "batch_size=4", "log_every=1", "checkpoint_every=1",
    "sample_every=0", "views=generator",
]  # fmt: skip


@pytest.fixture(scope="module")
def few(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain folder of 12 images."""
    return copies(boots, tmp_path_factory.mktemp("data") / "few", 0, 12)


@pytest.fixture(scope="module")
def finished(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert train("--data", few, "--steps", 2, "--set", *TINY, folder=folder).status == 0
    return folder


def copies(images: Path, folder: Path, first: int, last: int) -> Path:
    folder.mkdir(parents=True)
    for path in sorted(images.glob("*.png"))[first:last]:
        shutil.copy(path, folder)
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """All that a model is, but for the seconds that it took, and the commit: the tree may get another one
    while tests run."""
    config = yaml.safe_load((folder / "model" / "config.yaml").read_text())
    del config["training"]["seconds"], config["versions"]
    files = ("model.safetensors", "calibration.json")
    return {"config": config, **{name: (folder / "model" / name).read_bytes() for name in files}}


def logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


def refusal(done: Done) -> str:
    """The one line of a command that must end with status 2."""
    lines = done.err.splitlines()
    assert (done.status, len(lines)) == (2, 1), done.out + done.err
    return lines[0]


# Kills ----------------------------------------------------------------------------------------------


def killed_everywhere(base: Path, words: list[object], before: Path | None = None, last: int = 0) -> None:
    """Kills a run before each of its file operations (or the `last` ones), resumes it, and compares it with
    one that was never killed. `before`: the run folder to begin with."""

    def begin(name: str) -> Path:
        folder = base / name / "run"
        folder.parent.mkdir(parents=True)
        if before is not None:
            shutil.copytree(before, folder)
        return folder

    whole = begin("whole")
    done = train(*words, folder=whole)
    assert done.status == 0, done.err
    places = done.places()[-last:]
    assert len(places) >= 12
    expected, old = contents(whole), before and contents(before)
    for place in places:
        folder = begin(str(place))
        killed = train(*words, folder=folder, before=place)
        assert killed.status == KILLED
        assert len(killed.operations) == place + 1
        where = killed.operations[-1]
        if before is not None:  # a model was there: it is there at any time
            found = read_model(resolve_model(folder)).config["training"]["steps"]
            assert found in (2, expected["config"]["training"]["steps"]), where
        request = before is None and (folder / "run.yaml").exists()
        again = train(*(["--resume"] if request else words), folder=folder)
        assert again.status == 0, (where, again.err)
        assert contents(folder) == expected, where
        assert contents(folder) != old
        assert logged(folder) == logged(whole), where
        assert hidden(folder) == [".lock"], where
        shutil.rmtree(folder.parent)


def test_a_new_run_killed_anywhere(few: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"learning_rate": 0.01, "size": 28, "channels": 1}))
    words = ["--data", few, "--config", recipe, "--set", *TINY, "--steps", 2, "--seed", 3]
    killed_everywhere(tmp_path / "runs", words)


def test_a_run_with_a_model_killed_anywhere(finished: Path, tmp_path: Path) -> None:
    killed_everywhere(tmp_path, ["--resume", "--steps", 3], finished)


def test_fine_tuning_killed_while_its_model_is_written(finished: Path, few: Path, tmp_path: Path) -> None:
    words = ["--data", few, "--from", finished, "--steps", 1]
    killed_everywhere(tmp_path, words, last=14)  # what comes before is as in a new run


def test_fitting_views_killed_before_the_model_has_its_name(few: Path, tmp_path: Path) -> None:
    words = ["--data", few, "--steps", 0, "--set", *TINY, "views=whole"]
    whole = train(*words, folder=tmp_path / "whole")
    place = next(i for i, operation in enumerate(whole.operations) if operation == ("rename", ".model.new"))
    folder = tmp_path / "run"
    assert train(*words, folder=folder, before=place).status == KILLED
    assert not (folder / "model").exists()
    assert train("--resume", folder=folder).status == 0
    assert contents(folder) == contents(tmp_path / "whole")
    assert hidden(folder) == [".lock"]


def test_a_log_line_that_was_cut_short_is_written_anew(few: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["--data", few, "--steps", 2, "--set", *TINY]
    assert train(*words, folder=folder, before=_number_of("step-00000002", few, tmp_path)).status
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "seconds": 0.')
    assert train("--resume", folder=folder).status == 0
    assert logged(folder) == [1, 2]
    assert contents(folder) == contents(finished)


def _number_of(name: str, few: Path, tmp_path: Path) -> int:
    """The number of the first operation on a file with this in its name, in a run of two steps."""
    done = train("--data", few, "--steps", 2, "--set", *TINY, folder=tmp_path / "counted")
    return next(i for i, (_, of) in enumerate(done.operations) if name in of)


def test_run_yaml_holds_the_whole_request(few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["--data", few, "--set", *TINY, "learning_rate=0.01", "--steps", 2, "--seed", 3]
    train(*words, folder=folder, before=6)  # before the first checkpoint
    assert not list(folder.glob("checkpoints/step-*"))
    request = yaml.safe_load((folder / "run.yaml").read_text())
    assert {key: request[key] for key in ("data", "set", "steps", "seed", "from", "minutes")} == {
        "data": [str(few)], "set": [*TINY, "learning_rate=0.01"], "steps": 2, "seed": 3, "from": None,
        "minutes": None,
    }  # fmt: skip
    recipe = {**request["recipe"]}
    assert (recipe["size"], recipe["learning_rate"], recipe["seed"], recipe["batch_size"]) == (28, 0.01, 3, 4)
    assert train("--resume", folder=folder).status == 0
    made = yaml.safe_load((folder / "model" / "config.yaml").read_text())["recipe"]
    assert made == {**recipe, "backbone_weights": None}


def test_the_first_checkpoint_is_written_before_the_first_step(few: Path, tmp_path: Path) -> None:
    done = train("--data", few, "--set", *TINY, "checkpoint_every=1000", "learning_rate=1e18",
                 "precision=float32", folder=tmp_path / "run")  # fmt: skip
    assert "training stopped at step" in refusal(done)
    assert [p.name for p in RunFolder(tmp_path / "run").checkpoints()] == ["step-00000000.pt"]


# Signals --------------------------------------------------------------------------------------------


def started(*words: object, until: Path) -> forked.Process:
    """`train.py WORDS` as a process of its own, once the file `until` is there."""
    process = forked.Process(
        [str(ROOT / "train.py"), *map(str, words), "--device", "cpu"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not until.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert until.exists(), process.stderr.read()
    return process


def test_a_signal_saves_a_checkpoint_and_makes_no_model(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--data", few, "--out", out, "--steps", 10**6, "--set", *TINY, "checkpoint_every=1000000"]
    process = started(*words, until=out / "log.jsonl")
    process.send_signal(signal.SIGTERM)
    err = process.stderr.read()
    assert process.wait(100) == 128 + signal.SIGTERM
    step = max(logged(out))
    assert f"stopped by SIGTERM after step {step}; go on with --resume" in err
    assert len(err.splitlines()) == 1
    assert [p.name for p in RunFolder(out).checkpoints()] == ["step-00000000.pt", f"step-{step:08d}.pt"]
    assert not (out / "model").exists()
    with pytest.raises(PadError, match="not saved a model yet: let it finish, or finish it with --resume"):
        resolve_model(out)
    # A model of what is there, on demand
    done = train("--resume", "--steps", step, folder=out)
    assert (done.status, f"from step {step};" in done.out) == (0, True)
    assert read_model(out / "model").config["training"]["steps"] == step


def test_what_is_stopped_and_finished_early_goes_on_as_if_it_had_not(few: Path, tmp_path: Path) -> None:
    words = ["--data", few, "--set", *TINY, "--steps", 4]
    assert train(*words, folder=tmp_path / "whole").status == 0
    folder = tmp_path / "run"
    number = _number_of("step-00000002", few, tmp_path)
    stopped = train(*words, folder=folder, before=number, number=signal.SIGTERM)
    assert stopped.status == 128 + signal.SIGTERM
    assert "after step 3;" in stopped.err
    assert train("--resume", "--steps", 3, folder=folder).status == 0
    early = contents(folder)
    assert early["config"]["training"]["steps"] == 3
    assert train("--resume", folder=folder).status == 0  # it is finished, as was asked last
    assert contents(folder) == early
    assert train("--resume", "--steps", 4, folder=folder).status == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_signal_while_the_model_is_made(finished: Path, few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ["--data", few, "--steps", 2, "--set", *TINY]
    number = _number_of(".model.new", few, tmp_path)
    done = train(*words, folder=folder, before=number, number=signal.SIGTERM)
    assert done.status == 128 + signal.SIGTERM
    assert "stopped by SIGTERM before the model of step 2 was written; finish it with --resume" in done.err
    assert not (folder / "model").exists()
    assert train("--resume", folder=folder).status == 0
    assert contents(folder) == contents(finished)


# Resuming -------------------------------------------------------------------------------------------


def test_resume_says_from_which_step_and_leaves_a_finished_run_alone(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    done = train("--resume", "--steps", 3, folder=folder)
    assert "training on 6 images in few" in done.out
    assert " for 3 steps, from step 2; 6 more are kept" in done.out
    before = {p: p.stat().st_mtime_ns for p in (folder / "model").iterdir()}
    done = train("--resume", folder=folder)
    assert (done.status, "from step 3;" in done.out) == (0, True)
    assert {p: p.stat().st_mtime_ns for p in (folder / "model").iterdir()} == before


def test_a_model_that_is_gone_or_damaged_is_made_anew(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "model")
    assert train("--resume", folder=folder).status == 0
    assert contents(folder) == contents(finished)
    (folder / "model" / "model.safetensors").write_bytes(b"junk")
    assert train("--resume", folder=folder).status == 0
    assert contents(folder) == contents(finished)


@pytest.mark.parametrize("content", [b"", b"junk", b"half", b"another"])
def test_an_unreadable_checkpoint_falls_back_to_the_one_before(
    finished: Path, tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    newest = RunFolder(folder).checkpoints()[-1]
    if content == b"half":
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    elif content == b"another":
        torch.save({"weights": torch.ones(3)}, newest)
    else:
        newest.write_bytes(content)
    done = train("--resume", folder=folder)
    assert done.status == 0, done.err
    assert len(done.err.splitlines()) == 1
    assert f"skipped checkpoint {newest}: " in done.err
    assert ", from step 1;" in done.out
    assert contents(folder) == contents(finished)


def test_resume_without_a_run_says_so_and_leaves_nothing(few: Path, tmp_path: Path) -> None:
    assert "holds no run to go on with" in refusal(train("--resume", folder=tmp_path / "a" / "run"))
    assert not (tmp_path / "a").exists()
    damaged = tmp_path / "run"
    damaged.mkdir()
    for content, words in (("data: 5", "'data' is not what"), ("- 1", "does not hold"), ("a: [", "not YAML")):
        (damaged / "run.yaml").write_text(content)
        assert words in refusal(train("--resume", folder=damaged))


def test_resume_on_another_machine_is_told(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    newest = RunFolder(folder).checkpoints()[-1]
    state = torch.load(newest, weights_only=True)
    torch.save({**state, "hardware": "cpu, 64 threads (x86_64)"}, newest)
    done = train("--resume", "--steps", 3, folder=folder)
    assert done.status == 0
    assert re.search(r"begun on cpu, 64 threads \(x86_64\) and goes on with cpu, \d+ thread", done.err)


# Two at once, and mistakes --------------------------------------------------------------------------


def test_two_at_once(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--data", few, "--steps", 10**6, "--set", *TINY]
    first = started(*words, "--out", out, until=out / "log.jsonl")
    try:
        for more in ([], ["--resume"]):
            message = refusal(train(*words, *more, folder=out))
            assert f"another `pad train` is writing to {out}: wait for it, or name another --out" in message
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    # The lock has died with it.
    step = max(logged(out))
    assert train("--resume", "--steps", step + 1, folder=out).status == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "size=64", "generator_channels=[8,8]"], "takes 5, one for each of [4, 8, 16, 32, 64]"),
        (["--set", "layers=relu9_1"], "no 'relu9_1'"),
        (["--set", "size=16", "layers=relu5_1", "backbone_scale=0.25"], "images are too small for relu4_1"),
        (["--set", "backbone=vgg16", "backbone_weights=missing.pth"], "no such file missing.pth"),
        (["--set", "statistics=missing"], "missing"),
        (["--from", "FINISHED", "--set", "size=64"], "has size 28 and cannot go on with 64"),
        (["--from", "FINISHED", "--replay", "missing"], "missing"),
        (["--minutes", "1e300"], "takes a number above 0, up to 525,600 (a year)"),
        (["--minutes", "nan"], "takes a number above 0"),
        (["--config", "x" * 300], "File name too long"),
        (["--from", "x" * 300], "File name too long"),
    ],
)
def test_mistakes_are_found_before_anything_is_written_or_said(
    few: Path, finished: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    words = [str(finished) if word == "FINISHED" else word for word in words]
    generator = ["--set", "steps=5", "views=generator"]
    done = train("--data", few, *generator, *words, folder=tmp_path / "new" / "run")
    assert message in refusal(done)
    assert done.out == ""
    assert not (tmp_path / "new").exists()


def test_a_name_too_long_for_a_run(few: Path, tmp_path: Path) -> None:
    done = train("--data", few, "--steps", 1, folder=tmp_path / ("x" * 300))
    assert "cannot write" in refusal(done)
    assert "File name too long" in refusal(done)
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in refusal(train("--data", few, folder=tmp_path / "file"))


# Full disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.yaml", "step-00000000.pt", "step-00000001.pt"])
def test_no_space_left(few: Path, finished: Path, tmp_path: Path, name: str) -> None:
    """A file that cannot be written to its end."""
    folder = tmp_path / "run"
    later = (finished / "checkpoints" / "step-00000001.pt").stat().st_size  # larger than the first: Adam's
    limit = {"run.yaml": 300, "step-00000000.pt": 8000, "step-00000001.pt": later - 1000}[name]
    words = ["--data", few, "--steps", 2, "--set", *TINY]
    message = refusal(train(*words, folder=folder, file_limit=limit))
    assert f"{name}: File too large" in message
    kept = RunFolder(folder).started
    assert kept == (name == "step-00000001.pt")
    assert message.endswith("make room, and go on with --resume") == kept
    assert [name for name in hidden(tmp_path) if name != ".lock"] == []
    resuming = ["--resume"] if folder.exists() else words
    assert train(*resuming, folder=folder).status == 0
    assert contents(folder) == contents(finished)
    assert logged(folder) == [1, 2]


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(CannotWrite, match=r"cannot write .*log\.jsonl: Is a directory"):
        RunFolder(tmp_path).append_log({"step": 1})


def test_no_space_left_for_a_new_model_keeps_the_old_one(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    size = (folder / "model" / "model.safetensors").stat().st_size
    newest = RunFolder(folder).checkpoints()[-1]
    shutil.rmtree(folder / "model")
    message = refusal(train("--resume", folder=folder, file_limit=size - 1))
    assert f"cannot write the model to {folder / 'model'}: File too large" in message
    assert newest.exists()
    assert train("--resume", folder=folder).status == 0
    assert contents(folder) == contents(finished)


# Files ----------------------------------------------------------------------------------------------


def write_one(path: Path) -> None:
    with atomic(path) as file:
        file.write(b"content")


def test_an_atomic_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file.txt"
    done = run(write_one, path, folder=path.parent)
    kinds = [(what, name.rpartition(".")[2]) for what, name in done.operations]
    assert kinds == [("mkdir", "folder"), ("open", "tmp"), ("fsync", "tmp"), ("rename", "tmp"),
                     ("fsync-folder", "folder")]  # fmt: skip
    for place in range(1, 4):
        other = tmp_path / str(place) / "file.txt"
        assert run(write_one, other, folder=other.parent, before=place).status == KILLED
        assert not other.exists()


def test_orphans_of_dead_writers_go_when_a_run_goes_on(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    left = [
        "checkpoints/.step-00000007.pt.123.tmp",
        ".run.yaml.99999.tmp",
        "samples/.step-00000001.png.4.tmp",
    ]
    (folder / "samples").mkdir()
    for name in left:
        (folder / name).write_bytes(b"half")
    (folder / ".notes.tmp").write_bytes(b"somebody's own")
    assert train("--resume", folder=folder).status == 0
    assert hidden(folder) == [".lock", ".notes.tmp"]


def test_a_long_name_of_many_bytes_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("漢" * 80 + ".txt")  # 244 bytes of at most 255
    write_one(path)
    assert path.read_bytes() == b"content"
    with pytest.raises(CannotWrite, match="File name too long"):
        write_one(tmp_path / ("x" * 300))


def replace(new: Path, folder: Path) -> None:
    replace_folder(new, folder)


def test_a_folder_replaced_and_killed_anywhere_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    def begin(name: str) -> tuple[Path, Path]:
        base = tmp_path / name
        for of, text in (("zoo/boots", "old"), ("building/model", "new")):
            (base / of / "samples").mkdir(parents=True)
            for file in ("model.safetensors", "samples/a.png"):
                (base / of / file).write_text(text)
        return base / "building" / "model", base / "zoo" / "boots"

    new, folder = begin("whole")
    done = run(replace, new, folder, folder=tmp_path / "whole")
    assert done.places() == [0, 1, 3, 4, 5, 6]  # two renames; then the old one is removed
    for place in done.places():
        new, folder = begin(str(place))
        assert run(replace, new, folder, folder=tmp_path / str(place), before=place).status == KILLED
        restore_folder(folder)
        texts = {path.read_text() for path in (folder / "model.safetensors", folder / "samples" / "a.png")}
        assert texts == ({"old"} if place <= 1 else {"new"})
        assert [path.name for path in folder.parent.iterdir()] == ["boots"]


# Fine-tuning ----------------------------------------------------------------------------------------


def test_fine_tuning_goes_on_from_the_same_model_and_replay_only(
    finished: Path, few: Path, boots: Path, tmp_path: Path
) -> None:
    model, old = tmp_path / "model", copies(boots, tmp_path / "old", 20, 32)
    shutil.copytree(finished / "model", model)
    folder = tmp_path / "run"
    words = ["--data", few, "--from", model, "--replay", old, "--steps", 3, "--set", "checkpoint_every=1"]
    assert train(*words, folder=folder, before=20).status == KILLED
    request = yaml.safe_load((folder / "run.yaml").read_text())
    assert len(request["from_sha256"]) == len(request["replay_sha256"]) == 64

    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    calibration = json.loads((model / "calibration.json").read_text())
    calibration["scores"][-1] += 1
    (model / "calibration.json").write_text(json.dumps(calibration))
    message = refusal(train("--resume", folder=copied))
    assert f"{model} is not the model that the run was started from, or was changed since" in message

    same = ["--resume", "--from", finished / "model"]  # what it was, in another place
    for replay in ("none", few):
        assert "started with another --replay" in refusal(train(*same, "--replay", replay, folder=copied))
    assert train(*same, folder=copied).status == 0
    next(old.glob("*.png")).unlink()
    assert "started with another --replay" in refusal(train(*same, folder=folder))


def test_backbone_weights_count_in_fine_tuning(few: Path, boots: Path, tmp_path: Path) -> None:
    """The weights in a file of their own, and others in another one."""
    from pad.backbones.vgg import load_backbone_weights

    own, other = tmp_path / "own.pt", tmp_path / "other.pt"
    state = {}
    for i, (weight, bias) in enumerate(load_backbone_weights("vgg16-st")):
        state |= {f"{i}.weight": weight, f"{i}.bias": bias}
    torch.save(state, own)
    torch.save({key: value * 1.01 for key, value in state.items()}, other)
    words = [*TINY, "similarity=relative-perceptual-l1", "backbone=vgg16", "layers=relu1_2",
             "views=[generator,whole]"]  # fmt: skip
    model, folder = tmp_path / "model", tmp_path / "run"
    first = train("--data", few, "--steps", 1, "--set", *words, f"backbone_weights={own}", folder=model)
    assert first.status == 0, first.err
    others = copies(boots, tmp_path / "others", 20, 32)
    tune = ["--data", others, "--from", model, "--steps", 1, "--set"]
    message = refusal(train(*tune, f"backbone_weights={other}", folder=folder))
    assert "was trained with other weights of the backbone vgg16" in message
    assert train(*tune, f"backbone_weights={own}", folder=folder).status == 0
    # Resuming with a file that was replaced
    shutil.copy(other, own)
    assert "other weights of the backbone" in refusal(train("--resume", folder=model))
    # Nobody else has these weights
    with pytest.raises(PadError, match=r"needs the backbone weights own\.pt, which nobody else has"):
        plan(model / "model", "org/boots")
    with pytest.raises(PadError, match=r"needs the backbone weights own\.pt"):
        plan(folder / "model", "org/boots")


def test_fine_tuning_in_float32_takes_the_backbone_afresh(boots: Path, few: Path) -> None:
    config = Config().replace(latent_dim=4, layers="relu1_2", precision="bfloat16", steps=1, batch_size=4)
    images = MemoryImages(load_all(resolve([str(few)], "train"), config)[0])
    old = Trainer(config, images, torch.device("cpu"))
    assert isinstance(old.similarity, RelativePerceptualL1)
    tuned = Trainer(config.replace(precision="float32"), images, torch.device("cpu"), None, old.similarity)
    fresh = build_similarity(config)
    assert isinstance(tuned.similarity, RelativePerceptualL1)
    assert isinstance(fresh, RelativePerceptualL1)
    for layer in ("relu1_1", "relu1_2"):
        weight = tuned.similarity.backbone.convolution(layer).weight
        assert weight.dtype == torch.float32
        assert torch.equal(weight, fresh.backbone.convolution(layer).weight)
    for name in ("mean", "sigma"):
        ours, theirs = (getattr(s.of("relu1_2"), name) for s in (tuned.similarity, old.similarity))
        assert torch.equal(ours, theirs)


def test_refined_latents_stay_in_the_prior(finished: Path, fashion: Path) -> None:
    from scipy.stats import chi2

    trained = Detector.load(finished, "cpu")
    assert trained.generator is not None
    config = trained.config.replace(refine_steps=5, refine_rate=2.0, prior_mass=0.5)
    view = GeneratorView(config, trained.generator.networks, trained.generator.similarity, trained.device)
    seen: list[torch.Tensor] = []
    view.networks["generator"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    view.score(load_all(resolve([str(fashion / "test" / "bag")], "evaluate"), config)[0])
    lengths = torch.stack([z.flatten(1).norm(dim=1) for z in seen])
    assert len(lengths) == 6
    radius = chi2.ppf(0.5, df=4) ** 0.5
    assert float(lengths.max()) <= radius * (1 + 1e-5)
    assert float(lengths.max()) > 0.9 * radius
