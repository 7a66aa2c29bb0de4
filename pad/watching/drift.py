"""Whether the stream has drifted away from what it was, by a test that may be looked at all the time.

**What is looked at.** How light, coloured and sharp each picture is (pad/watching/features.py), its score,
and whether it was flagged. Each is a channel with a capital of its own, and the *evidence* is the mean of
them. If nothing drifts, the probability that it ever reaches 1/δ is at most δ (Ville's inequality), however
often it is looked at and however long the stream is.

**p-values.** Those of the verdicts come from one calibration set and depend on one another through it; a
test that bets on them would find out the set. So the test makes its own, of each value among all that came
before it,

    p_n = (#{i < n: x_i > x_n} + U_n (1 + #{i < n: x_i = x_n})) / n,    U_n uniform,

which are independent and uniform if the pictures are exchangeable, exactly (Vovk et al., "Algorithmic
Learning in a Random World", 2005, theorem 8.2). Scores of calibration images are
not among what came before: they are of images in a variation that is tolerated, and by fits on fewer images.
Only scores below the threshold take part, so that strangers now and then are no drift: given that it is below
a fixed number, a score is exchangeable with the others that are. That too many are flagged has a channel of
its own, whose null hypothesis is a share of at most FLOOD.

**Bets.** The Simple Jumper (Vovk et al., "Retrain or not retrain", arXiv:2102.10439, algorithm 1): capital
on each slope ε, of which a share J changes its slope at every step,

    C_ε ← (1 − J) C_ε + J/|E| Σ C,    C_ε ← C_ε (1 + ε (p_n − 1/2)).

A capital that has waited long has dwindled, and would notice a change late. So it is not all bet at once: at
step t the share w_t = 1 / (c (t + 2) ln²(t + 2)) comes into play, Σ w_t = 1, and the rest is kept: a mixture
over starting times, as in e-detectors (Shin et al., arXiv:2203.03532). The sum is a martingale still, and a
change after t pictures costs about ln t more of log-evidence, not t.

After MOST pictures the values are compared to begin anew, so that memory is flat; the capital goes on.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from pad.judging.rows import ANOMALY
from pad.watching.features import MEASURES
from pad.watching.state import Event

DELTA = 0.01
JUMP = 0.01  # J
SLOPES = (-1.8, -0.6, 0.0, 0.6, 1.8)  # E
STAKES = (0.5, 1.0, 2.0)  # λ of the channel of what is flagged: its capital goes by 1 + λ (flagged − FLOOD)
FLOOD = 1 / 3
MOST = 50_000  # values of a channel that are compared to
_START_SUM = 2.109742801  # c: Σ 1 / (n ln² n) from n = 2
_FORGET = 0.97  # of the running mean of p-values that says in which direction
_CHANNELS = (*MEASURES, "score", "flagged")
_WORDS = {  # where values are larger, and smaller, than they were
    "light": ("lighter", "darker"),
    "red-green": ("redder", "greener"),
    "yellow-blue": ("yellower", "bluer"),
    "sharpness": ("sharper", "blurred"),
    "score": ("content less usual", "content more uniform"),
    "flagged": ("more than a third is flagged", ""),
}


@dataclass
class Capital:
    """A mixture of bets over starting times; `kept` is what is not in play yet."""

    bets: list[float]
    kept: float = 1.0
    steps: int = 0

    @property
    def total(self) -> float:
        return self.kept + math.fsum(self.bets)

    def step(self, gains: list[float]) -> None:
        """Each bet gains by its factor, after some capital came into play and some has moved among bets."""
        t = self.steps + 2
        fresh = min(self.kept, 1 / (_START_SUM * t * math.log(t) ** 2))
        self.kept -= fresh
        self.steps += 1
        count = len(self.bets)
        moved = (JUMP * math.fsum(self.bets) + fresh) / count
        self.bets = [((1 - JUMP) * bet + moved) * gain for bet, gain in zip(self.bets, gains, strict=True)]


@dataclass
class Channel:
    """A value of each picture, tested for having changed; `values` are those before, sorted."""

    values: list[float] = field(default_factory=list)
    capital: Capital = field(default_factory=lambda: Capital([0.0] * len(SLOPES)))
    tends: float = 0.5  # running mean of the p-values

    def see(self, value: float, uniform: float) -> float:
        """Takes a value, with a random number in [0, 1); returns its p-value."""
        low, high = bisect.bisect_left(self.values, value), bisect.bisect_right(self.values, value)
        n = len(self.values) + 1
        p = (n - 1 - high + uniform * (high - low + 1)) / n
        self.capital.step([1 + slope * (p - 0.5) for slope in SLOPES])
        self.tends = _FORGET * self.tends + (1 - _FORGET) * p
        self.values.insert(low, value)
        if len(self.values) >= MOST:
            self.values = []
        return p


@dataclass(frozen=True)
class Alarm:
    """The stream has drifted: how strong the evidence was, and what has changed, in words."""

    evidence: float
    changed: str


class Drift:
    """The test, fed with events in order.

    Args:
        threshold: scores from here on are flagged.
        delta: the most that the probability of any false alarm, up to the first one, may be.
    """

    def __init__(self, threshold: float, delta: float = DELTA) -> None:
        self.threshold, self.delta = threshold, delta
        self.seen = 0  # the id of the last event
        self.share = 0.0  # running mean of what is flagged
        self.flooded = False  # said already, and the share has not fallen since
        self._begin()

    def _begin(self) -> None:
        self.channels: dict[str, Channel] = {}
        self.flagged = Capital([0.0] * len(STAKES))

    @property
    def evidence(self) -> float:
        """The mean over channels; those that a stream does not have (colours of grey pictures) keep their
        1."""
        return math.fsum(self._capitals().values()) / len(_CHANNELS)

    def _capitals(self) -> dict[str, float]:
        capitals = {name: channel.capital.total for name, channel in self.channels.items()}
        return {**dict.fromkeys(_CHANNELS, 1.0), **capitals, "flagged": self.flagged.total}

    def see(self, event: Event) -> Alarm | None:
        """Takes an event. An alarm begins everything anew: what comes after it is what is compared to. That
        too many are flagged is said again only after there were fewer."""
        self.seen = event.id
        if event.score is None:
            return None
        values = dict(event.measures)
        if event.score < self.threshold:
            values["score"] = event.score
        for name, value in values.items():
            self.channels.setdefault(name, Channel()).see(value, _uniform(event.id, name))
        flagged = float(event.verdict == ANOMALY)
        self.share = _FORGET * self.share + (1 - _FORGET) * flagged
        self.flooded = self.flooded and self.share > FLOOD / 2
        if not self.flooded:
            self.flagged.step([1 + stake * (flagged - FLOOD) for stake in STAKES])
        if self.evidence < 1 / self.delta:
            return None
        alarm = Alarm(self.evidence, self._changed())
        self.flooded = self.flooded or self.flagged.total >= 1 / self.delta
        self._begin()
        return alarm

    def _changed(self) -> str:
        """The channels that speak, the loudest first."""
        capitals = self._capitals()
        loud = sorted((n for n in capitals if capitals[n] >= 1 / self.delta), key=lambda n: -capitals[n])
        words = []
        for name in loud:
            higher = name == "flagged" or self.channels[name].tends < 0.5
            words.append(_WORDS[name][0 if higher else 1])
        return ", ".join(words)

    def dump(self) -> str:
        """All of it as JSON; `load` gives the same test again."""
        channels = {n: [c.values, vars(c.capital), c.tends] for n, c in self.channels.items()}
        return json.dumps(
            {"threshold": self.threshold, "delta": self.delta, "seen": self.seen, "channels": channels,
             "flagged": vars(self.flagged), "share": self.share, "flooded": self.flooded}
        )  # fmt: skip

    @classmethod
    def load(cls, text: str) -> Drift:
        content: dict[str, Any] = json.loads(text)
        drift = cls(content["threshold"], content["delta"])
        drift.seen = content["seen"]
        drift.channels = {
            name: Channel(values, Capital(**capital), tends)
            for name, (values, capital, tends) in content["channels"].items()
        }
        drift.share, drift.flooded = content["share"], content["flooded"]
        drift.flagged = Capital(**content["flagged"])
        return drift


def _uniform(event: int, channel: str) -> float:
    """The same for the same event, so that a killed watcher goes on as one that was not."""
    digest = hashlib.blake2b(f"{event} {channel}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little") / 2**56
