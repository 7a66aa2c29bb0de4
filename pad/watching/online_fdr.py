"""Which flagged pictures raise an alarm, so that of a period's alarms few are false: e-LOND.

A rate of false alarms counts normal pictures, of which a stream has many: where anomalies are rare, most of
what is flagged at 5 % is normal. e-LOND (Xu and Ramdas, "Online multiple testing with e-values", 2024,
arXiv:2311.06412) decides at once and for good, and bounds the expected share of false ones among the alarms,

    alarm at t  if  e_t >= W / (Q (D + 1)),

W the pictures of a period, D its alarms so far, Q the rate. It holds whatever pictures have to do with one
another, since for normal ones E[e_t] <= 1, and so, with D' the alarms in the end,

    E[sum 1{alarm at t} / max(D', 1)]  <=  E[sum 1{alarm at t} / (D + 1)]  <=  sum Q/W E[e_t]  <=  Q.

That p-values of one calibration set depend on one another does no harm therefore.

**Evidence.** The p-value of a normal picture is k/(n + 1) with a probability of at most 1/(n + 1) for each k
= 1, 2, ..., or larger. Hence this is an e-value:

    e = (n + 1) / (k H)  for k = 1 ... RANKS,  0 beyond,    H = 1 + 1/2 + ... + 1/RANKS.

**Periods.** No p-value is below 1/(n + 1). A rule for a stream without an end must spend Q on all of it, and
would be blind for ever after about Q n pictures without an alarm, whatever came then: of more normal pictures
one probably scores above all n. So the promise is one of periods, as long as they can be while an alarm is
possible at their every picture: W = floor(Q (n + 1) / H).
"""

from __future__ import annotations

import json
import math

from pad.errors import PadError

RANKS = 3
_H = math.fsum(1 / k for k in range(1, RANKS + 1))


class OnlineFdr:
    """The rule, fed with one picture after another.

    Args:
        rate: Q, between 0 and 1.
        calibration_images: n.

    Attributes:
        period: W.
        seen, alarms: of the period that goes on.

    Raises PadError where n is too small for an alarm ever.
    """

    def __init__(self, rate: float, calibration_images: int) -> None:
        self.rate, self.n = rate, calibration_images
        self.period = math.floor(rate * (self.n + 1) / _H + 1e-9)
        self.seen = self.alarms = 0
        if not self.period:
            needed = math.ceil(_H / rate - 1e-9) - 1
            raise PadError(
                f"--online-fdr {rate:g} takes at least {needed} calibration images, and the model has "
                f"{self.n}"
            )

    def evidence(self, p_value: float) -> float:
        """The e-value of a p-value. One that lies between two ranks counts as the larger."""
        rank = max(1, math.ceil(p_value * (self.n + 1) - 1e-6))
        return (self.n + 1) / (rank * _H) if rank <= RANKS else 0.0

    @property
    def level(self) -> float:
        """The largest p-value with which the next picture, if it is flagged, raises an alarm."""
        alarms = 0 if self.seen == self.period else self.alarms
        # A hair's breadth above, for a rate that makes both sides equal.
        rank = self.rate * (self.n + 1) * (alarms + 1) / (self.period * _H) * (1 + 1e-9)
        return min(math.floor(rank), RANKS) / (self.n + 1)

    def see(self, p_value: float, flagged: bool) -> bool:
        """Takes a picture; whether it raises an alarm. One that is not `flagged` raises none."""
        if self.seen == self.period:
            self.seen = self.alarms = 0
        self.seen += 1
        # A hair's breadth below, for a rate that makes both sides equal.
        needed = self.period / (self.rate * (self.alarms + 1)) * (1 - 1e-9)
        alarm = flagged and self.evidence(p_value) >= needed
        self.alarms += alarm
        return alarm

    def dump(self) -> str:
        """All of it as JSON."""
        return json.dumps({"rate": self.rate, "n": self.n, "seen": self.seen, "alarms": self.alarms})

    def resume(self, text: str | None) -> None:
        """Goes on from what `dump` gave; of another rate or calibration, a period begins."""
        known = json.loads(text) if text else {}
        if (known.get("rate"), known.get("n")) == (self.rate, self.n):
            self.seen, self.alarms = int(known["seen"]), int(known["alarms"])
        else:
            self.seen = self.alarms = 0
