"""The HTTP cache and the rate limiter's memory on disk: what is damaged is dropped and made anew."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from requests_cache.backends.sqlite import SQLiteCache, SQLiteDict

log = logging.getLogger(__name__)
Result = TypeVar("Result")

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class HttpCache(SQLiteCache):
    """A cache in a SQLite file that is worth no error: damage is a miss, and the file begins anew."""

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path, wal=True)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            drop(path)
            super().__init__(path, wal=True)

    def get_response(self, key: str, default: Any = None) -> Any:
        return self._anew(lambda: super(HttpCache, self).get_response(key, default), default)

    def save_response(self, *args: Any, **kwargs: Any) -> None:
        self._anew(lambda: super(HttpCache, self).save_response(*args, **kwargs), None)

    def delete(self, *args: Any, **kwargs: Any) -> None:
        self._anew(lambda: super(HttpCache, self).delete(*args, **kwargs), None)

    def count(self, expired: bool = True) -> int:
        return self._anew(lambda: self.responses.count(expired=expired), 0)

    def _anew(self, use: Callable[[], Result], otherwise: Result) -> Result:
        try:
            return use()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
        stores: list[SQLiteDict] = [self.responses, self.redirects]
        for store in stores:
            store.close()  # type: ignore[no-untyped-call]
        drop(Path(self.db_path))
        for store in stores:
            store.init_db()  # type: ignore[no-untyped-call]
        return otherwise


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether a database says of itself that it is broken, rather than busy, full or out of reach."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED


def drop(path: Path) -> None:
    """Remove a database with all that belongs to it."""
    log.warning("the cache %s is damaged; it is made anew", path)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def drop_if_damaged(path: Path) -> None:
    """Remove a small database that cannot be read to its end."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as database:
            sound = database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.DatabaseError as error:
        sound = not is_damage(error)
    if not sound:
        drop(path)
