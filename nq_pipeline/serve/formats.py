"""The format of an answer, and results of DuckDB in it: JSON, CSV or a stream of Arrow IPC.

A new format needs a name in `Format` and `MEDIA_TYPES`, and a branch in `answers.RowsResponse`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from starlette.exceptions import HTTPException
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


def wanted_format(request: Request) -> Format:
    """The format that `?format=` or else the header `Accept` prefers; JSON by default.

    Raises `HTTPException` for any other.
    """
    if (named := request.query_params.get("format")) is not None:
        if named in MEDIA_TYPES:
            return named
        raise HTTPException(406, f"format is one of {', '.join(MEDIA_TYPES)}")
    offered = {media.partition(";")[0]: name for name, media in MEDIA_TYPES.items()}
    offered |= {"*/*": "json", "application/*": "json", "text/*": "csv"}
    best: tuple[float, Format | None] = (0.0, None)
    for part in request.headers.get("accept", "*/*").split(","):
        media, _, parameters = part.partition(";")
        name, quality = offered.get(media.strip().lower()), _quality(parameters)
        if name and quality > best[0]:
            best = quality, name
    if best[1] is None:
        raise HTTPException(406, f"this server answers as {', '.join(MEDIA_TYPES.values())}")
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
    written = io.BytesIO()
    reader: Any = relation.to_arrow_reader(ARROW_ROWS)
    with reader, pa.ipc.new_stream(written, reader.schema) as writer:
        for batch in reader:
            writer.write_batch(batch)
            yield written.getvalue()
            written.seek(0)
            written.truncate()
    yield written.getvalue()
