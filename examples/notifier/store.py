"""What the notifier remembers, in one SQLite file: how far it has read, and whom it owes a word.

The event's `ce_id` is the key, so an outcome that arrives twice is one row; row and offset are stored in one
transaction, so a crash neither forgets a winner nor reads on from a wrong place.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TABLES = """
CREATE TABLE IF NOT EXISTS position (topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition));
CREATE TABLE IF NOT EXISTS win (ce_id TEXT PRIMARY KEY, coupon_id TEXT NOT NULL, user_id TEXT NOT NULL,
    sequence INTEGER NOT NULL, told INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS win_untold ON win (ce_id) WHERE told = 0;
"""


@dataclass(frozen=True, slots=True)
class Win:
    """A user has a coupon; `ce_id` names the event, and is what its receiver can drop a repetition by."""

    ce_id: str
    coupon_id: str
    user_id: str
    sequence: int


class Store:
    """One process at a time: SQLite's lock says so."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        self._db.close()

    def positions(self, topic: str) -> Mapping[int, int]:
        """Partition to the offset to go on from."""
        return dict(self._db.execute("SELECT partition, next_offset FROM position WHERE topic = ?", (topic,)))

    def take_in(self, topic: str, partition: int, next_offset: int, wins: Iterable[Win]) -> None:
        """Remember what was read up to `next_offset`: both, or nothing."""
        rows = [(win.ce_id, win.coupon_id, win.user_id, win.sequence) for win in wins]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(
                "INSERT INTO win (ce_id, coupon_id, user_id, sequence) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", rows
            )
            self._db.execute("INSERT OR REPLACE INTO position VALUES (?, ?, ?)", (topic, partition, next_offset))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def untold(self, limit: int) -> list[Win]:
        """Winners who have not been told, as far as is known."""
        rows = self._db.execute(
            "SELECT ce_id, coupon_id, user_id, sequence FROM win WHERE told = 0 ORDER BY rowid LIMIT ?", (limit,)
        )
        return [Win(*row) for row in rows]

    def note_told(self, wins: Iterable[Win]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("UPDATE win SET told = 1 WHERE ce_id = ?", [(win.ce_id,) for win in wins])
        self._db.execute("COMMIT")
