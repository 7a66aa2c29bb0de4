"""The generator of a watched model learns what was accepted: beside the watcher, killed or not."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pad
from pad.commands.parser import main
from pad.detector import Detector
from pad.errors import PadError
from pad.images.tiles import as_seen
from pad.judging.fusion import Fusion
from pad.learning.plan import fine_tuned_recipe
from pad.watching import new_normal
from pad.watching.features import packed
from pad.watching.fine_tuning import learnt_of
from pad.watching.learnt import Learnt, read
from pad.watching.new_normal import NewNormal
from pad.watching.state import State, Version

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ACCEPTED = 14


@pytest.fixture(scope="module")
def model(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quick views, and a generator that was hardly trained."""
    folder = tmp_path_factory.mktemp("watched") / "model"
    settings = {"size": 28, "view_size": 64, "latent_dim": 8}
    pad.fit(boots, steps=10, device="cpu", **settings).save(folder)
    return folder


@pytest.fixture(scope="module")
def detector(model: Path) -> Detector:
    return pad.load(model, device="cpu")


@pytest.fixture(scope="module", autouse=True)
def all_alike() -> Iterator[None]:
    """However few there are, all pictures that are given here count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_normal, "OUTLIER", 1e6)
        yield


def seen(detector: Detector, folder: Path) -> torch.Tensor:
    images = [Image.open(path) for path in sorted(folder.glob("*.png"))]
    x = as_seen(images, detector.config)
    assert isinstance(x, torch.Tensor)
    return x


@pytest.fixture(scope="module")
def trousers(detector: Detector, fashion: Path) -> torch.Tensor:
    """(20, 1, side, side)."""
    return seen(detector, fashion / "test" / "trouser")


def kept(detector: Detector, x: torch.Tensor) -> list[bytes]:
    """What a state keeps of pictures."""
    features, small = detector.features(x), detector.for_generator(x)
    return [packed(features.take(torch.tensor([i])), small[i : i + 1]) for i in range(len(x))]


@pytest.fixture(scope="module")
def learnt(detector: Detector, trousers: torch.Tensor) -> Learnt:
    return learnt_of(detector, kept(detector, trousers[:ACCEPTED]), 0.05)


def test_what_calibrates_a_generator_was_not_shown_to_it(
    detector: Detector, trousers: torch.Tensor, learnt: Learnt
) -> None:
    """With another first picture all that were scored beside it have the same score, and no other one."""
    other = torch.cat([trousers[ACCEPTED : ACCEPTED + 1], trousers[1:ACCEPTED]])
    before, after = learnt.held_out, learnt_of(detector, kept(detector, other), 0.05).held_out
    assert len(before) == ACCEPTED
    assert torch.equal(before[2::2], after[2::2])
    assert (before[1::2] != after[1::2]).all()


def test_a_generator_that_has_learnt_a_new_normal_is_a_view_of_it(
    detector: Detector, trousers: torch.Tensor, learnt: Learnt
) -> None:
    assert detector.generator is not None
    assert detector.quick is not None
    x = detector.for_generator(trousers)
    before, after = detector.generator.score(x).mean(), learnt.view.score(x).mean()
    assert after < before, "it has learnt nothing"
    assert 0 <= learnt.explained <= 1
    features = detector.features(trousers)
    accepted = features.take(torch.arange(ACCEPTED))
    quick = NewNormal(accepted, detector.quick, 0.05)
    both = NewNormal(accepted, detector.quick, 0.05, learnt)
    found = both.p_values(features, x)
    assert found.shape == (len(trousers),)
    assert (found[ACCEPTED:] > 0.05).mean() >= 0.5
    assert not np.allclose(found, quick.p_values(features))
    # The generator's score is one more column, fused as those of any model are.
    columns = np.column_stack([learnt.view.score(x).numpy(), both.views.scores(features).numpy()])
    out_of_fold = np.column_stack([learnt.held_out.numpy(), quick._out_of_fold(accepted, detector.quick)])
    names, likeness = ("generator", *both.views.names), detector.quick.likeness
    fusion = Fusion.fit(names, out_of_fold, learnt.explained, likeness)
    assert both.fusion.fuse(columns) == pytest.approx(fusion.fuse(columns), rel=1e-4)


def test_what_is_not_alike_is_not_learnt(
    detector: Detector, trousers: torch.Tensor, fashion: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert detector.quick is not None
    x = torch.cat([trousers[:ACCEPTED], seen(detector, fashion / "test" / "bag")[:1]])
    monkeypatch.setattr(new_normal, "OUTLIER", 3.5)
    alike = NewNormal(detector.features(x), detector.quick, 0.05).alike
    assert not alike[-1]
    assert len(learnt_of(detector, kept(detector, x), 0.05).held_out) == alike.sum()


def test_others_than_those_that_are_alike_are_refused(
    detector: Detector, trousers: torch.Tensor, learnt: Learnt
) -> None:
    assert detector.quick is not None
    fewer = detector.features(trousers[: ACCEPTED - 1])
    with pytest.raises(PadError, match="has learnt other pictures"):
        NewNormal(fewer, detector.quick, 0.05, learnt)


def test_the_file_of_what_was_learnt(
    detector: Detector, learnt: Learnt, trousers: torch.Tensor, tmp_path: Path
) -> None:
    assert detector.generator is not None
    path, events = tmp_path / "generators" / "1.safetensors", list(range(3, 3 + ACCEPTED))
    learnt.write(path, events)
    again = read(path, events, detector.generator)
    x = detector.for_generator(trousers)
    assert torch.equal(again.view.score(x), learnt.view.score(x))
    assert torch.equal(again.held_out, learnt.held_out)
    assert again.explained == learnt.explained
    with pytest.raises(PadError, match="is of other pictures"):
        read(path, events[:-1], detector.generator)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-10]):
        path.write_bytes(damaged)
        with pytest.raises(PadError, match="cannot be read"):
            read(path, events, detector.generator)


def test_pictures_of_an_older_version_are_not_there(detector: Detector, trousers: torch.Tensor) -> None:
    features = detector.features(trousers[:ACCEPTED])
    old = [packed(features.take(torch.tensor([i]))) for i in range(ACCEPTED)]
    with pytest.raises(PadError, match="its pictures are not kept"):
        learnt_of(detector, old, 0.05)


def test_versions_say_what_was_learnt(tmp_path: Path) -> None:
    state = State(tmp_path, create=True)
    with state.transaction():
        for _ in range(2):
            state.propose([], 0.0)
    assert not state.learn(1, "generator")  # not accepted
    state.accept(1, "a")
    assert state.learn(1, "generator")
    assert not state.learn(1, "generator")
    assert state.version() == Version(3, (1,), (1,))
    assert state.accept(2, "a") == Version(4, (1, 2), (1,))
    assert state.learn(2, "generator")
    assert state.rollback("a") == Version(6, (1,), (1,))
    assert state.rollback("a") == Version(7, (), ())
    assert not state.learn(1, "generator")  # it came too late
    assert [d["what"] for d in state.decisions()] == [
        "accept",
        "learn",
        "accept",
        "learn",
        "rollback",
        "rollback",
    ]


def wait_for(what: Callable[[], Any]) -> Any:
    limit = time.monotonic() + 100
    while not (found := what()):
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.02)
    return found


def below(process: int) -> list[int]:
    """Processes that another has started, by what Linux tells of them; not multiprocessing's own tracker."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process and "spawn_main" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_watcher_has_its_generator_learn_and_may_be_killed(
    model: Path, fashion: Path, tmp_path: Path
) -> None:
    source, folder = tmp_path / "in", tmp_path / "state"
    source.mkdir()
    trousers = sorted((fashion / "test" / "trouser").glob("*.png"))
    for path in trousers[:15]:
        shutil.copy(path, source)
    command = [sys.executable, "-m", "pad", "watch", str(model), str(source), "--state", str(folder)]
    command += ["--device", "cpu", "--adopt"]

    def watch(adopt: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*command, adopt], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    state, process = State(folder, create=True), watch("after:12")
    try:
        (worker,) = wait_for(lambda: below(process.pid))
        assert state.version() == Version(2, (1,), ())  # normal at once, by the quick views
        wait_for(lambda: os.getpriority(os.PRIO_PROCESS, worker) == 19)
        os.kill(worker, signal.SIGINT)  # Ctrl-C, which all processes of a terminal hear, is the watcher's
        time.sleep(0.1)
        assert below(process.pid) == [worker]
        process.kill()  # while it learns
        process.wait()
        wait_for(lambda: not Path(f"/proc/{worker}").exists())  # it does not outlive the watcher
        assert state.version() == Version(2, (1,), ())

        shutil.copy(trousers[15], source)
        assert main([*command[3:], "never", "--once", "--out", str(tmp_path / "lines")]) == 0
        assert multiprocessing.active_children() == []  # nothing adapts
        assert state.version() == Version(2, (1,), ())
        assert not state.generator(1).exists()

        process = watch("ask")
        wait_for(lambda: state.version() == Version(3, (1,), (1,)))
        assert state.generator(1).is_file()
        for path in trousers[16:]:
            shutil.copy(path, source)
        wait_for(lambda: len(state.events()) == 20)
        last = state.events()[-4:]
        assert {event.version for event in last} == {3}
        assert sum(event.verdict == "normal" for event in last) >= 2
        assert state.rollback("test") == Version(4, (), ())
        shutil.copy(trousers[0], source / "again.png")
        wait_for(lambda: len(state.events()) == 21)
        assert (state.events()[-1].verdict, state.events()[-1].version) == ("anomaly", 4)
        assert [d["what"] for d in state.decisions()] == ["accept", "learn", "rollback"]
    finally:
        process.kill()
        process.wait()
        state.close()


def test_it_is_tuned_by_the_recipe_of_fine_tuning(detector: Detector) -> None:
    recipe = fine_tuned_recipe(detector.config)
    assert (recipe.steps, recipe.warm_up, recipe.critic_head_start) == (10, 1.0, 0.0)
