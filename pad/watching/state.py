"""What a watcher knows, in one SQLite file: events, the buffer of what was flagged, proposals, decisions,
versions, alarms.

Whatever belongs together is one transaction, in WAL mode and synced: a kill at any moment leaves an event
with all that came of it, or none of it. One watcher writes events; decisions may come from any process
beside it. This module imports neither torch nor numpy, so that `pad watch proposals` answers at once.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pad.errors import PadError, shown
from pad.store.files import CannotWrite

FORMAT = 1
FILE, LOCK = "watch.sqlite", ".lock"
OPEN, ACCEPTED, REJECTED = "open", "accepted", "rejected"
MOST_BUFFERED = 500  # flagged pictures that wait for others like them
MOST_DELIVERIES = 10_000  # that wait to be sent
LATEST = 1000  # events whose thumbnails are kept whatever their verdict
MOST_MEMBERS = 64  # pictures of a proposal whose features are kept; it counts all

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, path TEXT NOT NULL, score REAL,
    p_value REAL, verdict TEXT NOT NULL, error TEXT NOT NULL, views TEXT NOT NULL, cluster INTEGER,
    name TEXT NOT NULL, version INTEGER NOT NULL, measures TEXT NOT NULL, thumbnail BLOB);
CREATE TABLE seen (key BLOB PRIMARY KEY, time REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE buffer (event INTEGER PRIMARY KEY, features BLOB NOT NULL, thumbnail BLOB NOT NULL);
CREATE TABLE proposals (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, status TEXT NOT NULL,
    name TEXT NOT NULL, pictures INTEGER NOT NULL);
CREATE TABLE members (proposal INTEGER NOT NULL, event INTEGER NOT NULL, features BLOB NOT NULL,
    thumbnail BLOB NOT NULL, PRIMARY KEY (proposal, event));
CREATE INDEX members_by_event ON members (event);
CREATE TABLE decisions (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, what TEXT NOT NULL,
    proposal INTEGER, decided_by TEXT NOT NULL);
CREATE TABLE versions (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, normals TEXT NOT NULL,
    parent INTEGER);
CREATE TABLE alarms (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, event INTEGER NOT NULL UNIQUE,
    evidence REAL NOT NULL, changed TEXT NOT NULL);
CREATE TABLE deliveries (id TEXT PRIMARY KEY, time REAL NOT NULL, body TEXT NOT NULL, tries INTEGER NOT NULL,
    due REAL NOT NULL) WITHOUT ROWID;
INSERT INTO versions (time, normals, parent) VALUES (0, '[]', NULL);
"""
# Whether an event has raised an alarm (--online-fdr); what the generator has learnt in each version. A state
# of an older pad gets them when it is opened.
_LATER = """
CREATE TABLE IF NOT EXISTS raised (event INTEGER PRIMARY KEY, alarm INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS raised_alarms ON raised (event) WHERE alarm;
CREATE TABLE IF NOT EXISTS learnt (version INTEGER NOT NULL, proposal INTEGER NOT NULL,
    PRIMARY KEY (version, proposal)) WITHOUT ROWID;
"""


@dataclass
class Event:
    """What was found of one picture. `key` says which picture of the source it is, so that it is judged once;
    b"" where the source cannot say."""

    path: str
    time: float
    key: bytes = b""
    score: float | None = None
    p_value: float | None = None
    verdict: str = ""
    error: str = ""
    views: dict[str, float] = field(default_factory=dict)
    cluster: int | None = None  # the proposal that it belongs to, whatever became of that
    name: str = ""  # of the cluster
    version: int = 1
    measures: dict[str, float] = field(default_factory=dict)  # what the test of drift looks at
    thumbnail: bytes | None = None  # JPEG
    alarm: bool | None = None  # whether it raised one; None where nobody asked (--online-fdr)
    id: int = 0  # given by the state

    def line(self) -> bytes:
        """The event as one line of JSON, pure ASCII."""
        shown_keys = (
            "id",
            "time",
            "path",
            "score",
            "p_value",
            "verdict",
            "error",
            "cluster",
            "name",
            "version",
        )
        content = {key: getattr(self, key) for key in shown_keys} | {"views": self.views}
        if self.alarm is not None:
            content["alarm"] = self.alarm
        return json.dumps(content, allow_nan=False).encode("ascii") + b"\n"


@dataclass(frozen=True)
class Kept:
    """A flagged picture: its event, its features (pad/watching/features.py), a small JPEG."""

    event: int
    features: bytes
    thumbnail: bytes


@dataclass(frozen=True)
class Proposal:
    """Pictures that are alike and were flagged: a new normal, if somebody says so."""

    id: int
    time: float
    status: str
    name: str
    pictures: int


@dataclass(frozen=True)
class Version:
    """What is normal besides what the model was trained on: proposals that were accepted, and those of them
    that the generator has learnt."""

    id: int
    normals: tuple[int, ...]
    learnt: tuple[int, ...] = ()


class State:
    """The state in a folder. Not for several threads: each opens its own.

    Raises PadError if there is none and `create` is not asked for, or for one of a newer format.
    """

    def __init__(self, folder: str | Path, create: bool = False) -> None:
        self.folder = Path(folder)
        path = self.folder / FILE
        if not create and not path.is_file():
            raise PadError(f"{self.folder} holds no state of `pad watch`: name the folder given with --state")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise PadError(f"--state {self.folder} is a file; name a folder") from None
        except OSError as error:
            raise CannotWrite(self.folder, error) from None
        try:
            self._open(path)
        except sqlite3.Error as error:
            raise PadError(f"{path} cannot be used: {error}") from None

    def _open(self, path: Path) -> None:
        self.database = sqlite3.connect(path, timeout=30, isolation_level=None)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute("PRAGMA synchronous=FULL")
        there = "SELECT 1 FROM sqlite_master WHERE name = 'facts'"
        if not self._all(there):
            with self.transaction():
                if not self._all(there):  # another may have been quicker
                    self._make(_SCHEMA)
                    self.set_fact("format", FORMAT)
        found = self.fact("format")
        if found != FORMAT:
            raise PadError(f"{path} was made by another pad (format {shown(found)}, this one has {FORMAT})")
        self._make(_LATER)

    def _make(self, schema: str) -> None:
        for statement in schema.split(";"):
            self.database.execute(statement)

    def close(self) -> None:
        self.database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; waits for other writers."""
        self.database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.database.execute("COMMIT")
        except BaseException:
            if self.database.in_transaction:
                self.database.execute("ROLLBACK")
            raise

    def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.database.execute(query, values).fetchall()

    def _run(self, query: str, *values: Any) -> int:
        """The id of the row that it adds."""
        return self.database.execute(query, values).lastrowid or 0

    def data_version(self) -> int:
        """Another number whenever another process or connection has written."""
        return int(self._all("PRAGMA data_version")[0][0])

    # Facts

    def fact(self, name: str) -> Any:
        """A number, a text or bytes; None where there is none of this name."""
        rows = self._all("SELECT value FROM facts WHERE name = ?", name)
        return rows[0][0] if rows else None

    def set_fact(self, name: str, value: Any) -> None:
        self._run("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    # Events

    def is_seen(self, key: bytes) -> bool:
        """Whether there is an event of this picture."""
        return bool(self._all("SELECT 1 FROM seen WHERE key = ?", key))

    def add_event(self, event: Event) -> bool:
        """Adds an event, within a transaction, and gives it its id; False where there is one of its key."""
        if event.key:
            added = self.database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (event.key, event.time))
            if not added.rowcount:
                return False
        event.id = self._run(
            "INSERT INTO events (time, path, score, p_value, verdict, error, views, cluster, name, version,"
            " measures, thumbnail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            event.time, event.path, event.score, event.p_value, event.verdict, event.error,
            json.dumps(event.views), event.cluster, event.name, event.version, json.dumps(event.measures),
            event.thumbnail,
        )  # fmt: skip
        return True

    def set_alarm(self, event: Event, alarm: bool) -> None:
        """Whether an event raises an alarm, within the transaction that adds it."""
        event.alarm = alarm
        self._run("INSERT INTO raised VALUES (?, ?)", event.id, alarm)

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """Those with a larger id, in order."""
        rows = self._all(f"SELECT {_EVENT} FROM events WHERE id > ? ORDER BY id LIMIT ?", after, limit)
        return [_event(row) for row in rows]

    def latest_events(
        self, limit: int, flagged: bool = False, before: int | None = None, alarms: bool = False
    ) -> list[Event]:
        """The newest first; `before`: of those with a smaller id; `alarms`: of those that raised one."""
        query = f"SELECT {_EVENT} FROM events WHERE id < ? AND (NOT ? OR verdict = 'anomaly')"
        query += " AND id IN (SELECT event FROM raised WHERE alarm)" if alarms else ""
        rows = self._all(
            f"{query} ORDER BY id DESC LIMIT ?", 2**62 if before is None else before, flagged, limit
        )
        return [_event(row) for row in rows]

    def alarms_raised(self) -> int:
        """How many of the events that are kept raised an alarm (--online-fdr)."""
        return int(self._all("SELECT COUNT(*) FROM raised WHERE alarm")[0][0])

    def rates(self, buckets: int, most: int = 10_000) -> list[tuple[int, int, int]]:
        """Of the latest events, in buckets of ids: the first id, how many were judged, and how many
        flagged."""
        last = self.count()["events"]
        size = max(1, -(-min(last, most) // buckets))
        rows = self._all(
            "SELECT (id - 1) / ?1, COUNT(*), SUM(verdict = 'anomaly') FROM events"
            " WHERE id > ?2 AND verdict <> '' GROUP BY 1 ORDER BY 1",
            size, last - most,
        )  # fmt: skip
        return [(bucket * size + 1, count, flagged) for bucket, count, flagged in rows]

    def thumbnail(self, event: int) -> bytes | None:
        """The small JPEG of an event."""
        rows = self._all("SELECT thumbnail FROM events WHERE id = ?", event)
        return rows[0][0] if rows else None

    def count(self) -> dict[str, int]:
        """How many events there ever were, and how many of those that are kept have each verdict."""
        ever = self._all("SELECT seq FROM sqlite_sequence WHERE name = 'events'")  # the largest id
        kept = dict(self._all("SELECT verdict, COUNT(*) FROM events GROUP BY verdict"))
        return {"events": ever[0][0] if ever else 0, "normal": kept.get("normal", 0),
                "anomaly": kept.get("anomaly", 0), "error": kept.get("", 0)}  # fmt: skip

    # Buffer and proposals

    def buffered(self) -> list[int]:
        """Events of flagged pictures that belong to no proposal, the oldest first."""
        return [event for (event,) in self._all("SELECT event FROM buffer ORDER BY event")]

    def member_events(self, proposal: int) -> list[int]:
        """Events of the pictures of a proposal that are kept, the oldest first."""
        return [
            e for (e,) in self._all("SELECT event FROM members WHERE proposal = ? ORDER BY event", proposal)
        ]

    def features(self, event: int) -> bytes:
        """Of a flagged picture that is in the buffer or in a proposal."""
        rows = self._all(
            "SELECT features FROM buffer WHERE event = ?1"
            " UNION ALL SELECT features FROM members WHERE event = ?1",
            event,
        )
        return rows[0][0]

    def add_to_buffer(self, kept: Kept) -> None:
        """Within a transaction. The oldest make room."""
        self._run("INSERT INTO buffer VALUES (?, ?, ?)", kept.event, kept.features, kept.thumbnail)
        self._run(
            "DELETE FROM buffer WHERE event NOT IN (SELECT event FROM buffer ORDER BY event DESC LIMIT ?)",
            MOST_BUFFERED,
        )

    def propose(self, events: Sequence[int], now: float) -> int:
        """Makes a proposal of buffered pictures, within a transaction; its id."""
        proposal = self._run(
            "INSERT INTO proposals (time, status, name, pictures) VALUES (?, ?, '', ?)",
            now,
            OPEN,
            len(events),
        )
        for event in events:
            self._run(
                "INSERT INTO members SELECT ?, event, features, thumbnail FROM buffer WHERE event = ?",
                proposal, event,
            )  # fmt: skip
            self._run("DELETE FROM buffer WHERE event = ?", event)
            self._run("UPDATE events SET cluster = ? WHERE id = ?", proposal, event)
        return proposal

    def add_member(self, proposal: int, kept: Kept) -> None:
        """One more picture of a proposal, within a transaction."""
        self._run("UPDATE proposals SET pictures = pictures + 1 WHERE id = ?", proposal)
        if self._all("SELECT COUNT(*) FROM members WHERE proposal = ?", proposal)[0][0] < MOST_MEMBERS:
            self._run(
                "INSERT INTO members VALUES (?, ?, ?, ?)", proposal, kept.event, kept.features, kept.thumbnail
            )

    def proposals(self, *statuses: str) -> list[Proposal]:
        """Those of some statuses, or all, in order."""
        found = [Proposal(*row) for row in self._all("SELECT * FROM proposals ORDER BY id")]
        return [proposal for proposal in found if not statuses or proposal.status in statuses]

    def members(self, proposal: int) -> list[Kept]:
        """The pictures of a proposal that are kept, the oldest first."""
        query = "SELECT event, features, thumbnail FROM members WHERE proposal = ? ORDER BY event"
        return [Kept(*row) for row in self._all(query, proposal)]

    def generator(self, proposal: int) -> Path:
        """Where a generator that has learnt a proposal lies."""
        return self.folder / "generators" / f"{proposal}.safetensors"

    def montage(self, proposal: int) -> Path:
        """Where the pictures of a proposal are drawn as one."""
        return self.folder / "proposals" / f"{proposal}.jpg"

    # Decisions

    def version(self) -> Version:
        """The one that counts."""
        number, normals = self._all("SELECT id, normals FROM versions ORDER BY id DESC LIMIT 1")[0]
        learnt = self._all("SELECT proposal FROM learnt WHERE version = ? ORDER BY proposal", number)
        return Version(number, tuple(json.loads(normals)), tuple(proposal for (proposal,) in learnt))

    def versions(self) -> list[tuple[int, float, tuple[int, ...]]]:
        """All that ever counted, in order: id, time, proposals accepted."""
        rows = self._all("SELECT id, time, normals FROM versions ORDER BY id")
        return [(number, when, tuple(json.loads(normals))) for number, when, normals in rows]

    def accept(self, proposal: int, by: str, now: float | None = None) -> Version:
        """Makes a proposal normal. Raises PadError if there is no such open one."""
        now = time.time() if now is None else now
        with self._whole():
            self._decide(proposal, ACCEPTED, by, now)
            version = self.version()
            self._add_version(version, (*version.normals, proposal), version.learnt, now)
        return self.version()

    def reject(self, proposal: int, by: str, name: str = "", now: float | None = None) -> None:
        """Remembers a proposal as an anomaly. Raises PadError if there is no such open one."""
        with self._whole():
            self._decide(proposal, REJECTED, by, time.time() if now is None else now)
            self._run("UPDATE proposals SET name = ? WHERE id = ?", name, proposal)

    def rollback(self, by: str, now: float | None = None) -> Version:
        """Goes back to what counted before the last acceptance, which is open again. Raises PadError if
        nothing was accepted."""
        now = time.time() if now is None else now
        with self._whole():
            version = self.version()
            if not version.normals:
                raise PadError(f"{self.folder}: nothing was accepted that could be rolled back")
            last = version.normals[-1]
            self._add_version(version, version.normals[:-1], version.learnt, now)
            self._run("UPDATE proposals SET status = ? WHERE id = ?", OPEN, last)
            self._add_decision("rollback", last, by, now)
        return self.version()

    def learn(self, proposal: int, by: str, now: float | None = None) -> bool:
        """The generator has learnt a proposal: a new version. False where that is not normal (any more), or
        learnt already."""
        now = time.time() if now is None else now
        with self._whole():
            version = self.version()
            if proposal not in version.normals or proposal in version.learnt:
                return False
            self._add_version(version, version.normals, (*version.learnt, proposal), now)
            self._add_decision("learn", proposal, by, now)
        return True

    def decisions(self) -> list[dict[str, Any]]:
        """All of them, in order."""
        rows = self._all("SELECT time, what, proposal, decided_by FROM decisions ORDER BY id")
        return [dict(zip(("time", "what", "proposal", "by"), row, strict=True)) for row in rows]

    def _whole(self) -> Any:
        """A transaction, or the one that there is."""
        return _nothing() if self.database.in_transaction else self.transaction()

    def _decide(self, proposal: int, status: str, by: str, now: float) -> None:
        found = self._all("SELECT status FROM proposals WHERE id = ?", proposal)
        if not found:
            raise PadError(
                f"{self.folder}: there is no proposal {proposal}; `pad watch proposals` lists them"
            )
        if found[0][0] != OPEN:
            raise PadError(f"{self.folder}: proposal {proposal} is {found[0][0]} already")
        self._run("UPDATE proposals SET status = ? WHERE id = ?", status, proposal)
        self._add_decision("accept" if status == ACCEPTED else "reject", proposal, by, now)

    def _add_decision(self, what: str, proposal: int, by: str, now: float) -> None:
        self._run(
            "INSERT INTO decisions (time, what, proposal, decided_by) VALUES (?, ?, ?, ?)",
            now,
            what,
            proposal,
            by,
        )

    def _add_version(
        self, parent: Version, normals: Sequence[int], learnt: Sequence[int], now: float
    ) -> None:
        """What was learnt counts where it is normal."""
        number = self._run(
            "INSERT INTO versions (time, normals, parent) VALUES (?, ?, ?)",
            now,
            json.dumps(list(normals)),
            parent.id,
        )
        for proposal in sorted({*learnt} & {*normals}):
            self._run("INSERT INTO learnt VALUES (?, ?)", number, proposal)

    # Alarms

    def add_alarm(self, event: int, evidence: float, changed: str, now: float) -> bool:
        """Within a transaction; False where that event has raised one."""
        return bool(
            self.database.execute(
                "INSERT OR IGNORE INTO alarms (time, event, evidence, changed) VALUES (?, ?, ?, ?)",
                (now, event, evidence, changed),
            ).rowcount
        )

    def alarms(self) -> list[dict[str, Any]]:
        """All of them, in order."""
        rows = self._all("SELECT id, time, event, evidence, changed FROM alarms ORDER BY id")
        return [dict(zip(("id", "time", "event", "evidence", "changed"), row, strict=True)) for row in rows]

    # Deliveries

    def add_delivery(self, identity: str, body: str, now: float) -> None:
        """Something to be sent, within a transaction. The oldest make room."""
        self._run("INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?, 0, ?)", identity, now, body, now)
        if self.deliveries() > MOST_DELIVERIES:
            self._run(
                "DELETE FROM deliveries WHERE id = (SELECT id FROM deliveries ORDER BY time, id LIMIT 1)"
            )

    def due_delivery(self, now: float) -> tuple[str, str, int] | None:
        """The oldest that is to be tried: id, body, how often it was."""
        rows = self._all(
            "SELECT id, body, tries FROM deliveries WHERE due <= ? ORDER BY time, id LIMIT 1", now
        )
        return rows[0] if rows else None

    def delivered(self, identity: str) -> None:
        with self._whole():
            self._run("DELETE FROM deliveries WHERE id = ?", identity)

    def postpone(self, identity: str, due: float) -> None:
        with self._whole():
            self._run("UPDATE deliveries SET tries = tries + 1, due = ? WHERE id = ?", due, identity)

    def deliveries(self) -> int:
        """How many wait."""
        return int(self._all("SELECT COUNT(*) FROM deliveries")[0][0])

    # Retention

    def forget(
        self, before: float | None, most_bytes: int | None, keep_from: int, present: Iterable[bytes] = ()
    ) -> int:
        """Drops the oldest events: those before a time, and so many that the file has room for what comes.

        Args:
            before: seconds since the epoch.
            most_bytes: of the database.
            keep_from: the first event that is still needed.
            present: keys of pictures that still lie in the source: they stay known however old they are.

        Returns how many events were dropped.
        """
        with self._whole():
            count = 0
            self._drop_thumbnails()
            if before is not None:
                count += self.database.execute(
                    "DELETE FROM events WHERE time < ? AND id < ?", (before, keep_from)
                ).rowcount
                there = set(present)  # they would come again
                old = [
                    key
                    for (key,) in self._all("SELECT key FROM seen WHERE time < ?", before)
                    if key not in there
                ]
                self.database.executemany("DELETE FROM seen WHERE key = ?", [(key,) for key in old])
            if most_bytes is not None and self._bytes() > most_bytes:
                total = self._all("SELECT COUNT(*) FROM events")[0][0]
                share = max(1, total // 10)
                count += self.database.execute(
                    "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE id < ? ORDER BY id LIMIT ?)",
                    (keep_from, share),
                ).rowcount
            self._run("DELETE FROM raised WHERE event < (SELECT MIN(id) FROM events)")
        return count

    def _drop_thumbnails(self) -> None:
        """Those of pictures that were not flagged, but for the latest."""
        until, done = self.count()["events"] - LATEST, self.fact("without_thumbnails") or 0
        if until > done:
            self._run(
                "UPDATE events SET thumbnail = NULL WHERE id > ? AND id <= ? AND verdict <> 'anomaly'",
                done,
                until,
            )
            self.set_fact("without_thumbnails", until)

    def _bytes(self) -> int:
        pages, free, size = (
            self._all(f"PRAGMA {name}")[0][0] for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    # The one watcher

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For the one process that watches. Raises PadError if another does."""
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise PadError(
                f"another `pad watch` is at work in {self.folder}: stop it, or name another --state"
            ) from None
        except OSError as error:
            raise CannotWrite(self.folder, error) from None
        try:
            yield
        finally:
            lock.release()


_EVENT = "id, time, path, score, p_value, verdict, error, views, cluster, name, version, measures,"
_EVENT += " (SELECT alarm FROM raised WHERE event = events.id)"


def _event(row: tuple[Any, ...]) -> Event:
    number, when, path, score, p_value, verdict, error, views, cluster, name, version, measures, alarm = row
    return Event(
        path=path, time=when, score=score, p_value=p_value, verdict=verdict, error=error,
        views=json.loads(views), cluster=cluster, name=name, version=version,
        measures=json.loads(measures), id=number, alarm=None if alarm is None else bool(alarm),
    )  # fmt: skip


@contextmanager
def _nothing() -> Iterator[None]:
    yield
