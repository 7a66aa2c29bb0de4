"""The test of drift: its p-values and bets by themselves, its false alarms, and what it finds."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from pad.watching.drift import (
    _START_SUM,
    FLOOD,
    JUMP,
    SLOPES,
    STAKES,
    Alarm,
    Capital,
    Channel,
    Drift,
    _uniform,
)
from pad.watching.state import Event

MEASURES = ("light", "red-green", "yellow-blue", "sharpness")


def stream(
    seed: int, n: int, shift: float = 0.0, name: str = "light", at: int = 0, strangers: float = 0.0
) -> list[Event]:
    """Events of normal pictures; from `at` on one of the measures (or "score") is shifted by so many
    deviations."""
    random = np.random.default_rng([seed, 1])
    events = []
    for number in range(1, n + 1):
        values = dict(zip((*MEASURES, "score"), random.normal(size=5).tolist(), strict=True))
        if number > at:
            values[name] += shift
        if random.random() < strangers:
            values["score"] = 9.0
        score = values.pop("score")
        verdict = "anomaly" if score >= threshold(seed) else "normal"
        identity = number + 1_000_000 * seed
        events.append(Event("x", 0.0, score=score, verdict=verdict, measures=values, id=identity))
    return events


def threshold(seed: int) -> float:
    """Drawn with a calibration set."""
    return float(np.sort(np.random.default_rng([seed, 2]).normal(size=200))[-11])


def first_alarm(seed: int, events: list[Event], delta: float = 0.01) -> tuple[int, Alarm] | None:
    drift = Drift(threshold(seed), delta)
    for number, event in enumerate(events, 1):
        if alarm := drift.see(event):
            return number, alarm
    return None


def test_p_values_are_smoothed_ranks() -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 6, 200).astype(float)  # with ties
    channel = Channel()
    for n, value in enumerate(values, 1):
        uniform = float(random.random())
        before = values[: n - 1]
        expected = ((before > value).sum() + uniform * (1 + (before == value).sum())) / n
        assert channel.see(float(value), uniform) == pytest.approx(expected)


def test_p_values_of_exchangeable_values_are_independent_and_uniform() -> None:
    random = np.random.default_rng(1)
    p = []
    for _ in range(3000):
        channel = Channel()
        p.append([channel.see(float(v), float(random.random())) for v in random.integers(0, 3, 4)])
    columns = np.array(p).T
    for column in columns:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    for one, other in itertools.combinations(columns, 2):
        table = np.histogram2d(one, other, bins=4, range=[[0, 1], [0, 1]])[0]
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_bets_against_the_sum_over_all_paths() -> None:
    """The mixture as it is defined, in fractions: over starting times, and over the slopes of every step."""
    p_values, slopes = [0.9, 0.2, 0.75], [Fraction(s).limit_denominator(10) for s in SLOPES]
    capital = Capital([0.0] * len(SLOPES))
    for p in p_values:
        capital.step([1 + s * (p - 0.5) for s in SLOPES])
    jump, weights = (
        Fraction(JUMP).limit_denominator(1000),
        [1 / (_START_SUM * t * math.log(t) ** 2) for t in (2, 3, 4)],
    )

    def jumper(given: list[float]) -> float:
        total = Fraction(0)
        for path in itertools.product(range(len(slopes)), repeat=len(given)):
            chance = Fraction(1, len(slopes))
            for before, after in itertools.pairwise(path):
                chance *= jump / len(slopes) + (1 - jump) * (before == after)
            gain = math.prod(
                (1 + slopes[i] * (Fraction(p) - Fraction(1, 2)) for i, p in zip(path, given, strict=True)),
                start=Fraction(1),
            )
            total += chance * gain
        return float(total)

    expected = 1 - sum(weights) + sum(w * jumper(p_values[t:]) for t, w in enumerate(weights))
    assert capital.total == pytest.approx(expected)


def test_the_shares_that_come_into_play_sum_to_one() -> None:
    first = sum(1 / (n * math.log(n) ** 2) for n in range(2, 10**6))
    assert first + 1 / math.log(10**6) == pytest.approx(_START_SUM, abs=1e-5)


def test_every_bet_is_fair() -> None:
    for slope in SLOPES:
        assert np.mean([1 + slope * (p - 0.5) for p in np.linspace(0, 1, 10001)]) == pytest.approx(1)
        assert 1 - abs(slope) / 2 >= 0
    for stake in STAKES:  # at most fair as long as no more than FLOOD is flagged
        assert FLOOD * (1 + stake * (1 - FLOOD)) + (1 - FLOOD) * (1 - stake * FLOOD) == pytest.approx(1)
        assert 1 - stake * FLOOD >= 0


@pytest.mark.parametrize("strangers", [0.0, 0.05])
def test_false_alarms_are_as_rare_as_promised(strangers: float) -> None:
    """Of 200 streams without drift, at δ = 0.05 so that the number means something."""
    alarms = [first_alarm(seed, stream(seed, 400, strangers=strangers), 0.05) for seed in range(200)]
    count = sum(alarm is not None for alarm in alarms)
    assert stats.binom.sf(count - 1, 200, 0.05) > 0.01, count


@pytest.mark.parametrize(
    ("name", "shift", "words"),
    [
        ("light", -1.0, "darker"),
        ("light", 1.0, "lighter"),
        ("red-green", 1.0, "redder"),
        ("yellow-blue", -1.0, "bluer"),
        ("sharpness", -1.0, "blurred"),
        ("score", 0.9, "content less usual"),
        ("score", -1.0, "content more uniform"),
        ("score", 9.0, "more than a third is flagged"),
    ],
)
def test_what_has_changed_is_named(name: str, shift: float, words: str) -> None:
    for seed in (1, 2):
        found = first_alarm(seed, stream(seed, 700, shift, name, at=400))
        assert found is not None
        assert 400 < found[0] <= 700
        assert words in found[1].changed
        assert found[1].evidence >= 100


def test_a_late_change_is_found_as_well() -> None:
    events = stream(3, 5300, -0.8, "light", at=5000)
    found = first_alarm(3, events)
    assert found is not None
    assert 5000 < found[0] <= 5300


def test_a_flood_is_told_once() -> None:
    drift = Drift(threshold(5))
    alarms = [drift.see(event) for event in stream(5, 200, 9.0, "score")]
    assert sum("flagged" in alarm.changed for alarm in alarms if alarm) == 1


def test_it_goes_on_from_what_was_kept() -> None:
    events = stream(4, 300, -1.0, "light", at=200)
    whole = Drift(threshold(4))
    said = [whole.see(event) for event in events]
    part = Drift(threshold(4))
    for event in events[:150]:
        part.see(event)
    part = Drift.load(part.dump())
    assert [part.see(event) for event in events[150:]] == said[150:]
    assert part.dump() == whole.dump()


def test_random_numbers_belong_to_the_event() -> None:
    drawn = [_uniform(number, "light") for number in range(2000)]
    assert drawn == [_uniform(number, "light") for number in range(2000)]
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(drawn, [_uniform(number, "score") for number in range(2000)])[0, 1]) < 0.08
