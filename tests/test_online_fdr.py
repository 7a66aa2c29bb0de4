"""Alarms of `pad watch --online-fdr`: the share of false ones is bounded, whatever depends on what."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import pad
from pad.commands.parser import main
from pad.errors import PadError
from pad.watching.online_fdr import RANKS, OnlineFdr
from pad.watching.state import State
from pad.watching.watcher import AT_ONCE


@pytest.mark.parametrize("n", [20, 99, 500])
def test_evidence_of_normal_pictures_is_one_on_average(n: int) -> None:
    rule = OnlineFdr(0.5, n)
    ranks = np.arange(1, n + 2) / (n + 1)  # each is as likely
    assert np.mean([rule.evidence(p) for p in ranks]) == pytest.approx(1)
    for p in np.random.default_rng(0).uniform(size=1000):  # between two ranks: no more than at the next one
        assert rule.evidence(p) <= rule.evidence(np.ceil(p * (n + 1)) / (n + 1)) + 1e-9


def by_hand(evidence: list[float], period: int, rate: float) -> list[bool]:
    """e-LOND of one period: a level of rate / period for each, times one more than the alarms before."""
    alarms: list[bool] = []
    for e in evidence:
        level = rate / period * (sum(alarms) + 1)
        alarms.append(e * level >= 1 - 1e-9)
    return alarms


@pytest.mark.parametrize(("n", "rate"), [(36, 0.2), (54, 0.1), (10, 0.5)])
def test_alarms_of_all_sequences_against_the_formula(n: int, rate: float) -> None:
    period = int(rate * (n + 1) / (1 + 1 / 2 + 1 / 3) + 1e-9)
    for ranks in product(range(1, RANKS + 2), repeat=period):
        rule = OnlineFdr(rate, n)
        found = [rule.see(k / (n + 1), True) for k in ranks]
        evidence = [(n + 1) / (k * 11 / 6) if k <= 3 else 0.0 for k in ranks]
        assert found == by_hand(evidence, period, rate)


@pytest.mark.parametrize(("n", "rate"), [(36, 0.2), (54, 0.1), (10, 0.5), (200, 0.1)])
def test_the_level_is_the_largest_p_value_that_raises_an_alarm(n: int, rate: float) -> None:
    rule, ranks = OnlineFdr(rate, n), np.arange(1, n + 2)
    for rank in np.random.default_rng(2).integers(1, 5, size=300):
        alarms = []
        for k in ranks:
            other = OnlineFdr(rate, n)
            other.resume(rule.dump())
            alarms.append(other.see(k / (n + 1), True))
        assert rule.level == max(ranks[alarms]) / (n + 1)
        rule.see(rank / (n + 1), True)


def test_an_alarm_is_possible_at_every_picture_and_of_no_longer_period() -> None:
    for n in range(18, 300):
        rule = OnlineFdr(0.1, n)
        assert rule.evidence(1 / (n + 1)) >= rule.period / 0.1 * (1 - 1e-9)
        assert rule.evidence(1 / (n + 1)) < (rule.period + 1) / 0.1
    with pytest.raises(PadError, match="takes at least 18 calibration images, and the model has 17"):
        OnlineFdr(0.1, 17)


@pytest.mark.parametrize("kind", ["alone", "alike", "among strangers", "strangers first"])
def test_the_share_of_false_alarms_is_bounded(kind: str) -> None:
    """Scores of normal pictures from the source of the calibration, of strangers from higher up. One
    calibration set serves all pictures of a period, and where they are alike all have the very same score."""
    generator, n, rate, shares = np.random.default_rng(5), 200, 0.2, []
    for _ in range(4000):
        calibration = generator.normal(size=n)
        rule = OnlineFdr(rate, n)
        strange = generator.uniform(size=rule.period) < (0.3 if "strangers" in kind else 0)
        if kind == "strangers first":
            strange = np.sort(strange)[::-1]
        scores = generator.normal(size=rule.period) + 4 * strange
        if kind == "alike":
            scores[:] = scores[0]
        p_values = (1 + (calibration >= scores[:, None]).sum(1)) / (n + 1)
        alarms = np.array([rule.see(p, True) for p in p_values])
        shares.append((alarms & ~strange).sum() / max(1, alarms.sum()))
    assert np.mean(shares) <= rate
    assert np.mean(shares) > 0.001  # it is a bound that is put to the test


def test_periods_begin_anew_and_go_on_after_a_restart() -> None:
    whole, parts = OnlineFdr(0.2, 100), OnlineFdr(0.2, 100)
    p_values = np.random.default_rng(1).integers(1, 6, size=300) / 101
    expected = [whole.see(p, True) for p in p_values]
    kept, found = None, []
    for p in p_values:
        parts = OnlineFdr(0.2, 100)
        parts.resume(kept)
        found.append(parts.see(p, True))
        kept = parts.dump()
    assert found == expected
    assert 0 < sum(found) < 300
    other = OnlineFdr(0.3, 100)
    other.resume(kept)
    assert (other.seen, other.alarms) == (0, 0)


def test_what_is_not_flagged_raises_no_alarm() -> None:
    rule = OnlineFdr(0.2, 100)
    assert not rule.see(1 / 101, False)
    assert (rule.seen, rule.alarms) == (1, 0)
    assert rule.see(1 / 101, True)


@pytest.fixture(scope="module")
def model(boots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quick views of boots."""
    folder = tmp_path_factory.mktemp("watched") / "model"
    pad.fit(boots, steps=0, view_size=64, device="cpu").save(folder)
    return folder


def test_a_watcher_raises_alarms(
    model: Path, fashion: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    state, out = tmp_path / "state", tmp_path / "lines.jsonl"
    words = ["watch", str(model), str(fashion / "test"), "--state", str(state), "--out", str(out), "--once"]
    assert main([*words, "--online-fdr", "0.2", "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    n = len(pad.load(model, device="cpu").calibrated())
    rule = OnlineFdr(0.2, n)
    for line in lines:
        assert line["alarm"] == rule.see(line["p_value"], line["verdict"] == "anomaly")
    alarms = [line["alarm"] for line in lines]
    assert 0 < sum(alarms) < sum(line["verdict"] == "anomaly" for line in lines)
    # The state tells the same of what is written again.
    out.unlink()
    kept = State(state).fact("online_fdr")
    assert json.loads(kept)["seen"] == (len(lines) - 1) % rule.period + 1
    assert main([*words, "--online-fdr", "0.2", "--device", "cpu"]) == 0
    assert State(state).fact("online_fdr") == kept
    out.unlink()
    assert main([*words, "--device", "cpu"]) == 0
    assert State(state).fact("online_fdr") is None  # nobody asks any more
    assert [json.loads(line)["alarm"] for line in out.read_bytes().splitlines()] == alarms
    assert [event.alarm for event in State(state).events()] == alarms
    capfdbinary.readouterr()
    assert main([*words[:-1], "--online-fdr", "0.001", "--device", "cpu"]) == 2
    assert b"takes at least" in capfdbinary.readouterr().err


def test_a_batch_of_pictures_is_one_look_at_the_rule(
    model: Path, fashion: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    opened = State._open

    def traced(state: State, path: Path) -> None:
        opened(state, path)
        state.database.set_trace_callback(done.append)

    monkeypatch.setattr(State, "_open", traced)
    words = ["watch", str(model), str(fashion / "test" / "trouser"), "--state", str(tmp_path / "state")]
    words += ["--once", "--out", str(tmp_path / "lines"), "--online-fdr", "0.2", "--device", "cpu"]
    assert main(words) == 0
    _, _, *asked = [i for i, statement in enumerate(done) if "'online_fdr'" in statement]  # two: it starts
    events = [i for i, statement in enumerate(done) if statement.startswith("INSERT INTO events")]
    assert len(events) == 20
    assert len(asked) == 2 * -(-20 // AT_ONCE), "read and written once a batch"
    # In the transaction of its events.
    for read, written in zip(asked[::2], asked[1::2], strict=True):
        between = done[read - 1 : written + 1]
        assert between[0].startswith("BEGIN")
        assert not any(statement.startswith(("BEGIN", "COMMIT")) for statement in between[1:])
        assert any(statement.startswith("INSERT INTO events") for statement in between)
