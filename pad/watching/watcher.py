"""The watcher: takes what comes, judges it, keeps what came of it, and proposes what keeps coming back."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pad.detector import Detector
from pad.errors import PadError
from pad.images.read import ImageError
from pad.images.tiles import as_seen
from pad.judging.calibration import Calibration
from pad.judging.rows import ANOMALY, NORMAL
from pad.store.files import CannotWrite, atomic
from pad.views.features import Features, features_of
from pad.watching.arrivals import Arrival, Source
from pad.watching.drift import Drift
from pad.watching.features import measures, montage, packed, thumbnail, unpacked
from pad.watching.fine_tuning import Tuner
from pad.watching.learnt import read
from pad.watching.new_normal import NewNormal
from pad.watching.online_fdr import OnlineFdr
from pad.watching.output import Output
from pad.watching.proposing import belongs_to, groups, vectors
from pad.watching.request import WatchRequest
from pad.watching.rules import LEAST_MEMBERS
from pad.watching.state import OPEN, REJECTED, Event, Kept, Proposal, State

log = logging.getLogger(__name__)

AT_ONCE = 8  # pictures judged at a time, so that no decision waits long
WAIT = 0.2  # seconds for a picture, after which decisions are looked for
SNAPSHOT_EVERY = 1000  # events
KEEP_EVERY = 500  # events between two looks at what is too old
MOST_OPEN = 50  # proposals that wait for a decision; beyond, flagged pictures stay in the buffer
_RETRY = 15.0  # seconds, at most, between attempts to write to a full disk

Result = TypeVar("Result")


class _Judged(NamedTuple):
    """An event, and what is kept of its picture if it is flagged."""

    event: Event
    features: Features | None = None  # of the one picture
    seen: Tensor | None = None  # by the generator, (1, channels, size, size) in [-1, 1]


class Watcher:
    """A detector at work on a source.

    Args:
        detector: calibrated for the rate asked; otherwise nothing would be flagged.
        state: of this model; anything that came of an earlier watch goes on.
        source, output: where pictures come from and lines go.
        request: what was asked for.

    Raises PadError for a detector that cannot flag anything, or a state of another model.
    """

    def __init__(
        self, detector: Detector, state: State, source: Source, output: Output, request: WatchRequest
    ) -> None:
        self.detector, self.state, self.source, self.output = detector, state, source, output
        self.request = request
        self.calibration = _calibration(detector, request.fpr)
        rate, size = request.online_fdr, len(self.calibration)
        self._rule = None if rate is None else OnlineFdr(rate, size)
        if self._rule:
            log.info("%s calibration images: a period is %s pictures", size, self._rule.period)
        self.stopping = threading.Event()
        self._learns = request.adopt != "never" and self._can_learn()
        self._known = torch.zeros(0, 0) if detector.quick is None else detector.quick.kept.features.float()
        self._normals: dict[int, NewNormal] = {}
        self._fits: dict[tuple[int, bool], NewNormal] = {}  # by proposal, and whether its generator has a say
        teaches = self._learns and detector.generator is not None
        self._tuner = Tuner(request, detector.device.type) if teaches else None
        self._vectors: dict[int, Tensor] = {}  # of flagged pictures that are kept, by event
        self._clusters: list[tuple[int, Tensor]] = []
        self._buffer: list[tuple[int, Tensor]] = []
        self._since_kept = 0
        self._needs_reload = False  # the state has changed by what this watcher wrote
        self._told_evidence, self._snapshot_at = 1.0, 0
        with state.transaction():
            state.set_fact("adopt", request.adopt)
            state.set_fact("fpr", request.fpr)
            state.set_fact("online_fdr", self._resumed_rule())
            self.drift = self._resumed_drift()
        if self._learns:
            self._warm_up()
        self._reload()
        self._follow_drift()

    def _can_learn(self) -> bool:
        quick = self.detector.quick
        if quick is None:
            log.warning("the model has no quick views, so nothing can be proposed as a new normal")
        elif self.detector.config.tile:
            log.warning("the model looks at tiles, so nothing can be proposed as a new normal")
        elif len(quick.kept) < 3:
            log.warning("the model keeps no normal images to compare with, so nothing can be proposed")
        else:
            return True
        return False

    def _warm_up(self) -> None:
        """What is imported by the first new normal would make that one wait."""
        quick = self.detector.quick
        assert quick is not None
        blank = features_of(quick.backbone.blank)
        random = torch.Generator().manual_seed(0)

        def noise(like: Tensor) -> Tensor:
            return torch.rand(LEAST_MEMBERS, *like.shape[1:], generator=random).to(like.dtype)

        some = Features([noise(layer) for layer in blank.deep], noise(blank.middle), noise(blank.local))
        NewNormal(some, quick, self.request.fpr).p_values(some)
        groups(vectors(some), self._known)

    # What the state says

    def _reload(self) -> None:
        """Everything that follows from the state."""
        state = self.state
        self._data_version = state.data_version()
        self.version = state.version()
        known, self._fits = self._fits, {}
        for number in self.version.normals:
            key = number, number in self.version.learnt
            self._fits[key] = known.get(key) or self._fitted(*key)
        self._normals = {number: normal for (number, _), normal in self._fits.items()}
        self._proposals = {p.id: p for p in state.proposals()}
        if not self._learns:
            return
        members = {
            p.id: state.member_events(p.id) for p in self._proposals.values() if p.status in (OPEN, REJECTED)
        }
        buffered = state.buffered()
        needed = {event for events in (buffered, *members.values()) for event in events}
        self._vectors = {event: self._vector(event) for event in needed}
        self._clusters = [
            (k, torch.stack([self._vectors[e] for e in events])) for k, events in members.items()
        ]
        self._buffer = [(event, self._vectors[event]) for event in buffered]

    def _vector(self, event: int) -> Tensor:
        known = self._vectors.get(event)
        return vectors(unpacked([self.state.features(event)]))[0] if known is None else known

    def _fitted(self, proposal: int, learnt: bool) -> NewNormal:
        """A new normal, by the quick views, and by the generator if it has learnt that one."""
        quick, generator = self.detector.quick, self.detector.generator
        assert quick is not None
        begun, members = time.perf_counter(), self.state.members(proposal)
        accepted = unpacked([kept.features for kept in members])
        try:
            known = None
            if learnt and generator is not None:
                events = [kept.event for kept in members]
                known = read(self.state.generator(proposal), events, generator)
            normal = NewNormal(accepted, quick, self.request.fpr, known)
        except PadError as error:
            log.warning("proposal %d is judged without the generator: %s", proposal, error)
            normal = NewNormal(accepted, quick, self.request.fpr)
        log.info("proposal %d is normal, after %.2f s", proposal, time.perf_counter() - begun)
        return normal

    def _resumed_rule(self) -> str | None:
        """What the rule of alarms has seen; None where nobody asks for alarms."""
        if self._rule is None:
            return None
        self._rule.resume(self.state.fact("online_fdr"))
        return self._rule.dump()

    def _resumed_drift(self) -> Drift:
        snapshot = self.state.fact("drift")
        if snapshot is not None:
            return Drift.load(snapshot)
        drift = Drift(self.calibration.threshold(self.request.fpr))
        self.state.set_fact("drift", drift.dump())
        return drift

    # The loop

    def run(self) -> None:
        """Until the source ends, or `stopping` is set."""
        while not self.stopping.is_set():
            arrivals = self.source.take(AT_ONCE, WAIT)
            if self.state.data_version() != self._data_version:  # somebody has decided something
                self._reload()
            self._teach()
            if arrivals:
                self.take(arrivals)
            elif self.source.ended or (self.request.once and not self.source.waiting):
                break
        if self._tuner is not None:
            self._tuner.stop()
        self._persist(self._snapshot)

    def _teach(self) -> None:
        """The generator learns what was accepted, beside us; once it has, that is a new version."""
        if self._tuner is None:
            return
        lacking = [number for number, normal in self._normals.items() if normal.learnt is None]
        learnt = self._tuner.follow(lacking)
        if learnt is not None:
            self._persist(lambda: self.state.learn(learnt, "generator"))
            self._fits.pop((learnt, True), None)  # its file may have been damaged, and is there again
            self._reload()
            if (normal := self._normals.get(learnt)) is not None and normal.learnt is None:
                self._tuner.give_up(learnt)  # once more would be no better

    def take(self, arrivals: Sequence[Arrival]) -> None:
        """Judges pictures and keeps what came of it."""
        judged = self.judge(arrivals)
        events = self._persist(lambda: self._record(judged))
        self._persist(lambda: self.output.write(events))
        self._persist(self._follow_drift)
        self._since_kept += len(events)
        if self._since_kept >= KEEP_EVERY:
            self._since_kept = 0
            self._persist(self._forget)

    # Judging

    def judge(self, arrivals: Sequence[Arrival]) -> list[_Judged]:
        """What is found of each, in order."""
        now, found, seen = time.time(), {}, []
        for index, arrival in enumerate(arrivals):
            error = arrival.error
            if arrival.image is not None:
                try:
                    seen.append((index, as_seen([arrival.image], self.detector.config)))
                    continue
                except ImageError as refused:
                    error = refused.reason
                except PadError as refused:
                    error = str(refused)
            found[index] = _Judged(
                Event(arrival.path, now, arrival.key, error=error, version=self.version.id)
            )
        tensors = [x for _, x in seen if isinstance(x, Tensor)]
        if tensors:
            batch = [index for index, _ in seen]
            found.update(
                zip(
                    batch,
                    self._judge_batch([arrivals[i] for i in batch], torch.cat(tensors), now),
                    strict=True,
                )
            )
        else:
            for index, picture in seen:
                assert isinstance(picture, list)
                views = self.detector.score_views(picture)
                x = torch.stack([picture[0].cut(picture[0].boxes[0])])
                found[index] = self._judged([arrivals[index]], views, None, x, now)[0]
        return [found[index] for index in range(len(arrivals))]

    def _judge_batch(self, arrivals: Sequence[Arrival], x: Tensor, now: float) -> list[_Judged]:
        views, features = self.detector.looked(x)
        return self._judged(arrivals, views, features, x, now)

    def _judged(
        self, arrivals: Sequence[Arrival], views: Tensor, features: Features | None, x: Tensor, now: float
    ) -> list[_Judged]:
        scores = self.detector.fused(views).numpy()
        own = self.calibration.p_values(scores)
        p_limit = self.calibration.p_limit(self.request.fpr)
        each_view = self.detector.each_view_p_values(views)
        by_generator = self._tuner is not None or any(n.learnt is not None for n in self._normals.values())
        seen_by_generator = self.detector.for_generator(x) if by_generator else None
        others = (
            {k: normal.p_values(features, seen_by_generator) for k, normal in self._normals.items()}
            if features
            else {}
        )
        looked = vectors(features) if features is not None else None
        judged = []
        for i, (arrival, seen) in enumerate(zip(arrivals, measures(x), strict=True)):
            event = Event(arrival.path, now, arrival.key, version=self.version.id)
            if not math.isfinite(scores[i]):
                event.error = "the model gave no finite score for it"
                judged.append(_Judged(event))
                continue
            # Nine significant digits give back every float32.
            event.score, event.views = float(f"{scores[i]:.9g}"), each_view[i]
            event.measures = {name: float(f"{value:.7g}") for name, value in seen.items()}
            adopted, p_adopted = _largest({k: float(p[i]) for k, p in others.items()})
            event.p_value = max(float(own[i]), p_adopted)
            if own[i] > p_limit:
                event.verdict = NORMAL
            elif p_adopted > self.request.fpr:
                event.verdict, event.cluster = NORMAL, adopted
            else:
                event.verdict = ANOMALY
                if looked is not None and self._learns:
                    event.cluster = belongs_to(looked[i], self._clusters, self._known)
            if event.cluster is not None:
                event.name = self._proposals[event.cluster].name
            if arrival.image is not None:
                event.thumbnail = thumbnail(arrival.image)
            if event.verdict != ANOMALY or features is None:
                judged.append(_Judged(event))
                continue
            small = None if seen_by_generator is None else seen_by_generator[i : i + 1]
            judged.append(_Judged(event, features.take(torch.tensor([i])), small))
        return judged

    # Keeping

    def _record(self, judged: Sequence[_Judged]) -> list[Event]:
        """Adds events and all that comes of them; those that are new."""
        added: list[Event] = []
        with self.state.transaction(), self._deciding_alarms():
            for event, features, small in judged:
                if not self.state.add_event(event):
                    continue
                added.append(event)
                self._decide_alarm(event)
                if event.verdict == ANOMALY and event.alarm is not False:
                    self._notify("anomaly", f"event-{event.id}", json.loads(event.line()))
                if features is not None and self._learns:
                    self._remember(event, features, small)
            if any(event.verdict == ANOMALY and event.cluster is None for event in added):
                self._propose()
            self._adopt()
        if self._needs_reload:
            self._reload()
            self._needs_reload = False
        return added

    @contextlib.contextmanager
    def _deciding_alarms(self) -> Iterator[None]:
        """Within, a part of the transaction that adds events, the rule goes on from what the state says that
        it has seen; that is never ahead of the events, whatever was killed or undone."""
        if self._rule is None:
            yield
            return
        self._rule.resume(self.state.fact("online_fdr"))
        yield
        self.state.set_fact("online_fdr", self._rule.dump())

    def _decide_alarm(self, event: Event) -> None:
        """Where that is asked for, whether an event raises an alarm."""
        if self._rule is not None and event.p_value is not None:
            self.state.set_alarm(event, self._rule.see(event.p_value, event.verdict == ANOMALY))

    def _remember(self, event: Event, features: Features, small: Tensor | None) -> None:
        """Keeps a flagged picture with those that are like it, or in the buffer."""
        kept = Kept(event.id, packed(features, small), event.thumbnail or b"")
        if event.cluster is None:
            self.state.add_to_buffer(kept)
            self._vectors[event.id] = vectors(features)[0]
            self._buffer.append((event.id, self._vectors[event.id]))
        else:
            self.state.add_member(event.cluster, kept)
            self._needs_reload = True

    def _propose(self) -> None:
        if not self._buffer or len(self.state.proposals(OPEN)) >= MOST_OPEN:
            return
        flagged = torch.stack([vector for _, vector in self._buffer])
        taken: set[int] = set()
        for core in groups(flagged, self._known):
            near = [(0, flagged[core])]
            also = [i for i in range(len(flagged)) if belongs_to(flagged[i], near, self._known) == 0]
            members = sorted({*core, *also} - taken)
            taken.update(members)
            number = self.state.propose([self._buffer[i][0] for i in members], time.time())
            self._notify("proposal", f"proposal-{number}", {"proposal": number, "pictures": len(members)})
            self._draw(number)
            log.warning("proposal %d: %d flagged pictures are alike (pad watch accept %d --state %s)",
                        number, len(members), number, self.state.folder)  # fmt: skip
            self._needs_reload = True

    def _draw(self, proposal: int) -> None:
        """The proposal as one picture beside the state, for whoever decides; not worth stopping for."""
        with contextlib.suppress(CannotWrite), atomic(self.state.montage(proposal)) as file:
            file.write(montage([kept.thumbnail for kept in self.state.members(proposal)]))

    def _adopt(self) -> None:
        """The policy that was asked for."""
        if (least := self.request.adopt_after) is None:
            return
        for proposal in self.state.proposals(OPEN):
            if proposal.pictures >= least and not self._was_rolled_back(proposal):
                self.state.accept(proposal.id, f"policy {self.request.adopt}")
                self._needs_reload = True

    def _was_rolled_back(self, proposal: Proposal) -> bool:
        """What somebody took back is not accepted by itself again."""
        return any(d["what"] == "rollback" and d["proposal"] == proposal.id for d in self.state.decisions())

    def _notify(self, kind: str, identity: str, content: dict[str, object]) -> None:
        """Something for the webhook, where there is one."""
        if self.request.webhook:
            body = json.dumps(
                {"id": identity, "kind": kind, **{k: v for k, v in content.items() if k != "id"}}
            )
            self.state.add_delivery(identity, body, time.time())

    # Drift

    def _follow_drift(self) -> None:
        """Shows the test what it has not seen."""
        try:
            self._show_drift()
        except sqlite3.Error:
            self.drift = Drift.load(self.state.fact("drift"))  # it may have seen what is not kept
            raise

    def _show_drift(self) -> None:
        while events := self.state.events(self.drift.seen):
            for event in events:
                alarm = self.drift.see(event)
                if alarm is None:
                    continue
                with self.state.transaction():
                    if self.state.add_alarm(event.id, alarm.evidence, alarm.changed, event.time):
                        content = {"event": event.id, "evidence": alarm.evidence, "changed": alarm.changed}
                        self._notify("drift", f"drift-{event.id}", content)
                        log.warning(
                            "drift: %s (evidence %.0f, event %d)", alarm.changed, alarm.evidence, event.id
                        )
        evidence = round(self.drift.evidence, 3)
        if evidence != self._told_evidence or self.drift.seen - self._snapshot_at >= SNAPSHOT_EVERY:
            self._told_evidence = evidence
            with self.state.transaction():
                self.state.set_fact("evidence", evidence)
            if self.drift.seen - self._snapshot_at >= SNAPSHOT_EVERY:
                self._snapshot()

    def _snapshot(self) -> None:
        with self.state.transaction():
            self.state.set_fact("drift", self.drift.dump())
            self.state.set_fact("drift_seen", self.drift.seen)
        self._snapshot_at = self.drift.seen

    def _forget(self) -> None:
        """What is too old, or too much."""
        request = self.request
        before = None if request.keep_seconds is None else time.time() - request.keep_seconds
        self.state.forget(
            before, request.keep_bytes, (self.state.fact("drift_seen") or 0) + 1, self.source.present()
        )

    # A disk that is full

    def _persist(self, write: Callable[[], Result]) -> Result:
        """`write` until it succeeds: a full disk is said and waited for. Raises PadError if it is still full
        when the watcher is to stop."""
        wait, told = 0.5, False
        while True:
            try:
                result = write()
                if told:
                    log.warning("%s: there is room again", self.state.folder)
                return result
            except (sqlite3.OperationalError, CannotWrite) as error:
                if not told:
                    log.warning("%s: %s; trying again until there is room", self.state.folder, error)
                told = True
                if self.stopping.wait(wait):
                    raise PadError(
                        f"{self.state.folder}: {error}; what was judged last is not kept"
                    ) from None
                self._reload()
                wait = min(2 * wait, _RETRY)


def _calibration(detector: Detector, fpr: float) -> Calibration:
    if detector.calibration is None:
        raise PadError("the model has no calibration; make one with `pad calibrate MODEL NORMAL_IMAGES`")
    if note := detector.calibration.note(fpr):
        raise PadError(note)
    if detector.calibration.caveat:
        log.warning(detector.calibration.caveat)
    return detector.calibration


def _largest(p_values: dict[int, float]) -> tuple[int | None, float]:
    """The normal of the largest p-value; (None, 0) without any."""
    if not p_values:
        return None, 0.0
    best = max(p_values, key=lambda k: p_values[k])
    return best, p_values[best]
