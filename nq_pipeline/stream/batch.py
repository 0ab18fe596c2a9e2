"""Batches of rows, and the cursors between them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import orjson
import polars as pl

from nq_pipeline.capture.log.segments import Position
from nq_pipeline.errors import BadCursor

BatchType = Literal["trades", "quotes", "gaps", "snapshot", "status"]
TYPES: tuple[BatchType, ...] = ("trades", "quotes", "gaps", "snapshot", "status")
_CURSOR = re.compile(r"([0-9a-f]{8})\.(\d+)\.(\d+:\d+)\.(\d+:\d+)")


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the stream: everything up to it was received. As text it is opaque.

    Attributes
    ----------
    stream
        Identifies the stream of one data folder.
    event
        The number of the last gap or snapshot.
    trades, quotes
        How far the capture log was read for each of the two.
    """

    stream: str
    event: int
    trades: Position
    quotes: Position

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str()`; raises `BadCursor` for any other text."""
        if (found := _CURSOR.fullmatch(decode(text))) is None:
            raise BadCursor("this is not a cursor; send one that came with a message, or none")
        return cls(found[1], int(found[2]), Position.parse(found[3]), Position.parse(found[4]))

    def __str__(self) -> str:
        return encode(f"{self.stream}.{self.event}.{self.trades}.{self.quotes}")

    def __le__(self, other: Cursor) -> bool:
        return self.event <= other.event and self.trades <= other.trades and self.quotes <= other.quotes

    def move(self, **to: Any) -> Self:
        """The cursor with other values."""
        return replace(self, **to)


@dataclass(frozen=True)
class Batch:
    """Rows of one type, in order of time, and the cursor after them.

    `text` is serialized once, however many subscribers it is sent to. The cursor of a replay is of another
    kind; for sending, any object will do whose `str()` is the cursor.
    """

    type: BatchType
    cursor: Any
    frame: pl.DataFrame

    @cached_property
    def text(self) -> str:
        """The message of the batch: `{"type": …, "cursor": …, "rows": […]}`. Instants have nanoseconds."""
        cursor = f'"{self.cursor}"' if self.cursor else "null"
        return f'{{"type":"{self.type}","cursor":{cursor},"rows":[{",".join(to_json_rows(self.frame))}]}}'


def encode(plain: str) -> str:
    """Opaque text for URLs."""
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def decode(text: str) -> str:
    """The inverse of `encode`; empty for text that does not come from it."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except (binascii.Error, UnicodeError, ValueError):
        return ""


def to_json_rows(frame: pl.DataFrame) -> list[str]:
    """The rows as JSON objects; instants in ISO 8601 with nanoseconds, exact decimals as text."""
    instants = pl.selectors.datetime().dt.strftime("%Y-%m-%dT%H:%M:%S%.9fZ")
    exact = frame.with_columns(instants, pl.selectors.decimal().cast(pl.String))
    return exact.write_ndjson().split("\n")[:-1]  # texts may have other ends of lines


def from_json(type_: BatchType, cursor: Cursor, rows: Sequence[str]) -> Batch:
    """A batch of rows that are JSON objects."""
    parsed = [orjson.loads(row) for row in rows]
    return Batch(type_, cursor, pl.DataFrame(parsed, infer_schema_length=None))
