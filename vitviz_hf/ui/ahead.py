"""Rows of a dataset, read ahead of a search by a thread and kept on disk.

So nobody holds the device while a row is downloaded, and a search that goes on in another process, or another day, has
no row to read again.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from vitviz_hf.errors import DatasetError, VitvizError
from vitviz_hf.stream import Row, Source

_AHEAD = 512
_TABLES = """
CREATE TABLE IF NOT EXISTS rows (place INTEGER PRIMARY KEY, name TEXT, label TEXT, data BLOB);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
"""


class UsedUp(DatasetError):
    """There are more rows than were read ahead so far."""


class ReadAhead:
    """A thread that reads the first rows of a source until it is closed."""

    def __init__(self, source: Source, folder: Path, limit: int) -> None:
        """`folder` may hold what was read ahead before, of the same source."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._source, self._limit = folder / "rows.sqlite", source, limit
        self._changed, self._closed = Condition(), False
        self.failure: Exception | None = None
        """Why no more rows come."""
        with closing(_connect(self._path)) as db:
            facts = dict(db.execute("SELECT name, value FROM facts"))
        self._n, self._used = int(facts.get("n", 0)), int(facts.get("used", 0))
        self._position = json.loads(facts.get("position", "null"))
        self.finished = "finished" in facts
        """Whether all rows were read."""
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def ready(self) -> int:
        """Rows that wait for the search."""
        return self._n - self._used

    def wait_for(self, n: int, seconds: float) -> bool:
        """Whether n rows wait for the search, or as many as will come."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ready >= n or self.finished or bool(self.failure), seconds)

    def drop(self, used: int) -> None:
        """The first rows are no longer needed."""
        with self._changed:
            self._used = used
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing is kept from now on; the thread ends at its next row."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        try:
            with closing(_connect(self._path)) as db:
                if not self.finished:
                    self._read_on(db)
        except (VitvizError, OSError, sqlite3.Error) as error:
            self.failure = error
        with self._changed:
            self._changed.notify_all()

    def _read_on(self, db: sqlite3.Connection) -> None:
        for row, mark in islice(self._source.read(0, 1, self._position), self._limit - self._n):
            with self._changed:
                if not self._closed:
                    self._keep(db, row, mark)
                self._changed.wait_for(lambda: self.ready < _AHEAD or self._closed)
                if self._closed:  # another one may read on in the same folder
                    return
        with self._changed:
            if not self._closed:
                with db:
                    db.execute("INSERT OR REPLACE INTO facts VALUES ('finished', '')")
                self.finished = True

    def _keep(self, db: sqlite3.Connection, row: Row, mark: Callable[[], Any]) -> None:
        with db:
            db.execute("DELETE FROM rows WHERE place < ?", [self._used])
            db.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", [self._n, row.name, row.label, row.data])
            facts = {"n": self._n + 1, "used": self._used, "position": json.dumps(mark())}
            db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", [(k, str(v)) for k, v in facts.items()])
        self._n += 1
        self._changed.notify_all()


def read_kept(folder: Path) -> Callable[[int, int, Any], Iterator[tuple[Row, Callable[[], Any]]]]:
    """For a `Source`: the rows that were read ahead, in this process or another one, by one reader.

    It raises `UsedUp` where more rows will come.
    """

    def read(rank: int, n_ranks: int, position: Any) -> Iterator[tuple[Row, Callable[[], Any]]]:
        place = position or 0
        with closing(_connect(folder / "rows.sqlite")) as db:
            while True:
                finished = db.execute("SELECT 1 FROM facts WHERE name = 'finished'").fetchone()  # before the row
                found = db.execute("SELECT name, label, data FROM rows WHERE place = ?", [place]).fetchone()
                if found is None and finished:
                    return
                if found is None:
                    raise UsedUp("more rows are to be read.")
                place += 1
                yield Row(*found), lambda place=place: place  # type: ignore[misc]

    return read


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=60)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = OFF")  # after a crash of the machine, rows are read once more
    db.executescript(_TABLES)
    return db
