"""The format of an answer, and results of DuckDB in it: JSON, CSV or a stream of Arrow IPC."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from starlette.requests import Request

if TYPE_CHECKING:
    import duckdb

Format = Literal["json", "csv", "arrow"]
MEDIA_TYPES: dict[Format, str] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "arrow": "application/vnd.apache.arrow.stream",
}
ARROW_ROWS = 65_536
"""Rows of an Arrow batch."""


class NotAcceptable(ValueError):
    """A client accepts no format that there is."""


def wanted_format(request: Request) -> Format:
    """The format that `?format=` or else the header `Accept` prefers; JSON by default.

    Raises `NotAcceptable` for any other.
    """
    if (named := request.query_params.get("format")) is not None:
        if named in MEDIA_TYPES:
            return named
        raise NotAcceptable(f"format is one of {', '.join(MEDIA_TYPES)}")
    offered = {media.partition(";")[0]: name for name, media in MEDIA_TYPES.items()}
    offered |= {"*/*": "json", "application/*": "json", "text/*": "csv"}
    best: tuple[float, Format | None] = (0.0, None)
    for part in request.headers.get("accept", "*/*").split(","):
        media, _, parameters = part.partition(";")
        name, quality = offered.get(media.strip().lower()), _quality(parameters)
        if name and quality > best[0]:
            best = quality, name
    if best[1] is None:
        raise NotAcceptable(f"this server has {', '.join(MEDIA_TYPES.values())}")
    return best[1]


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def arrow_stream(relation: duckdb.DuckDBPyRelation) -> Iterator[bytes]:
    """A result as parts of an Arrow IPC stream, each read when it is needed."""
    parts = _Parts()
    reader: Any = relation.to_arrow_reader(ARROW_ROWS)
    with reader, pa.ipc.new_stream(parts, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            yield parts.take()
    yield parts.take()


class _Parts(io.RawIOBase):
    """A file that keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)
