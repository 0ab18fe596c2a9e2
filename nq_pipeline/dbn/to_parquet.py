"""DBN files to Parquet: the columns of `databento.DBNStore.to_parquet`, faster and smaller.

Records are copied column by column, a row group at a time, while the row group before is being written, so
memory does not grow with the file. Names, types, order and values are those the official client writes by
default (prices as float64, instants as timestamps, symbols mapped), and so is the metadata by which pandas
restores its index. Times and counters are stored as differences, the rest by dictionary, all of it in zstd.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import orjson
import polars as pl

from nq_pipeline.dbn.columns import field_column, nulled
from nq_pipeline.dbn.layout import DAY_NS, Array, RecordLayout
from nq_pipeline.dbn.stream import TruncatedDbn, open_dbn
from nq_pipeline.dbn.symbols import SymbolMap
from nq_pipeline.errors import LakeError
from nq_pipeline.files import make_folder, rename_durably, temporary_for

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_ROWS = 122_880
"""The unit of DuckDB's parallel scans, as in the lake's own files."""
ROW_GROUP_BYTES = 16 << 20
"""Most bytes of records in a row group: wide records (mbp-10, definitions) make smaller groups."""
COUNTERS = {"sequence", "ts_in_delta"}
PLAIN = {"order_id"}
"""Almost unique values: a dictionary would be longer than the column."""


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """A Parquet file."""

    path: Path
    schema: str
    rows: int
    bytes: int
    unmapped: int  # rows whose instrument_id has no symbol on their day; their `symbol` is null


@dataclass(frozen=True, slots=True)
class Converted:
    """The result of a conversion: one file for a historical file, for a live capture one per schema."""

    files: tuple[ConvertedFile, ...]
    records: int  # read, of every kind: the rows of all files and what was skipped
    skipped: dict[str, int]  # kind to count without rows: the gateway's own messages, and unknown rtypes
    cut: str  # why the file ended early, where `keep_complete` allowed it; empty for a whole file


def convert(source: Path | BinaryIO, parquet: Path, *, keep_complete: bool = False) -> Converted:
    """Convert a DBN file, compressed or not, to Parquet.

    Files appear whole, by rename, or not at all, and replace older ones. The same file always gives the same
    bytes. A live capture of several schemas gives files beside `parquet`, with the schema before the suffix
    (`name.trades.parquet`). With `keep_complete`, the whole records of a file that is cut off are converted.

    Raises
    ------
    TruncatedDbn
        The file ends too early, and `keep_complete` is not set.
    DamagedDbn
        It is not DBN, or is damaged within.
    UnsupportedDbn
        It is of a version or schema this program does not read.
    LakeError
        It cannot be read, or the Parquet file cannot be written.
    """
    if isinstance(source, Path) and source.resolve() == parquet.resolve():
        raise LakeError(f"{source.name} would overwrite itself; name another file for the Parquet")
    try:
        make_folder(parquet.parent)
        with ExitStack() as files, open_dbn(source) as stream, ThreadPoolExecutor(1) as thread:
            background = _BackgroundTask(thread)
            tables: dict[str, _Table] = {}

            def table(layout: RecordLayout) -> _Table:
                if layout.schema not in tables:
                    path = parquet
                    if stream.schema is None:
                        path = parquet.with_name(f"{parquet.stem}.{layout.schema}{parquet.suffix}")
                    temporary = files.enter_context(temporary_for(path))
                    tables[layout.schema] = _Table(layout, path, temporary, stream.symbols, background)
                return tables[layout.schema]

            if stream.schema is not None:
                table(stream.layout(stream.schema))  # a file without records has columns, too
            cut = ""
            try:
                for layout, records in stream.batches():
                    table(layout).add(records)
            except TruncatedDbn as error:
                if not keep_complete:
                    raise
                cut = str(error)
            for each in tables.values():
                each.finish()
            written = tuple(each.publish() for each in tables.values())
            return Converted(written, stream.records, dict(stream.skipped), cut)
    except OSError as error:
        error.filename = error.filename or str(parquet)  # tells which disk is full
        raise LakeError(f"{parquet.name} was not written: {error.strerror or error}") from error


class _BackgroundTask:
    """Runs one task at a time on another thread; the next call waits for it and raises its failure."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._task: Future[None] | None = None

    def run(self, task: Callable[..., None], *arguments: Any) -> None:
        self.wait()
        self._task = self._thread.submit(task, *arguments)

    def wait(self) -> None:
        if self._task:
            self._task.result()


class _Table:
    """A Parquet file being written: records are gathered until they fill a row group."""

    def __init__(
        self,
        layout: RecordLayout,
        path: Path,
        temporary: Path,
        symbols: SymbolMap,
        background: _BackgroundTask,
    ) -> None:
        self.layout = layout
        self.path = path
        self._temporary = temporary
        self._symbols = symbols
        self._background = background
        self._writer = _open_writer(temporary, layout)
        size = layout.dtype.itemsize
        self._group = np.empty(min(ROW_GROUP_ROWS, ROW_GROUP_BYTES // size), np.dtype((np.void, size)))
        self._gathered = self._rows = self._unmapped = 0

    def add(self, records: Array) -> None:
        rest = records.view(self._group.dtype)
        while len(rest):
            part = rest[: len(self._group) - self._gathered]
            self._group[self._gathered : self._gathered + len(part)] = part
            self._gathered += len(part)
            rest = rest[len(part) :]
            if self._gathered == len(self._group):
                self._flush()

    def finish(self) -> None:
        """Write what is left, and the footer."""
        self._flush()
        self._background.wait()
        self._writer.close()

    def publish(self) -> ConvertedFile:
        rename_durably(self._temporary, self.path)
        size = self.path.stat().st_size
        return ConvertedFile(self.path, self.layout.schema, self._rows, size, self._unmapped)

    def _flush(self) -> None:
        records = self._group[: self._gathered].view(self.layout.dtype)
        if len(records):
            rows = arrow(self.layout, records, self._symbols)
            self._background.run(self._writer.write_table, rows, ROW_GROUP_ROWS)
            self._rows += len(records)
            self._unmapped += rows["symbol"].null_count
        self._gathered = 0


def arrow(layout: RecordLayout, records: Array, symbols: SymbolMap) -> pa.Table:
    """Return records as a table with the names, order and values of the official client's Parquet.

    Raises `LakeError` for a text that is not UTF-8.
    """
    columns = {name: _column(layout, name, records[name]) for name in layout.columns}
    codes = symbols.find(records["instrument_id"], records[layout.index] // DAY_NS)
    names = pl.Series(symbols.names or [""])
    columns["symbol"] = names.gather(nulled(codes, codes >= 0)).alias("symbol")
    order = [*(name for name in layout.columns if name != layout.index), "symbol", layout.index]
    # The order in which pandas writes a frame: the client's added column, then the index.
    return pl.DataFrame([columns[name] for name in order]).to_arrow(compat_level=pl.CompatLevel.oldest())


def _column(layout: RecordLayout, name: str, values: Array) -> pl.Series:
    if values.dtype.kind != "S":
        return field_column(layout, name, values)
    distinct, places = np.unique(values, return_inverse=True)
    try:
        texts = pl.Series(name, distinct.tolist(), pl.Binary).cast(pl.String)
    except pl.exceptions.PolarsError:
        raise LakeError(f"a {name} is not UTF-8; the file is damaged") from None
    return texts.gather(pl.Series(places.astype(np.uint32)))


def _open_writer(path: Path, layout: RecordLayout) -> Any:
    import pyarrow.parquet as pq

    empty = arrow(layout, np.empty(0, layout.dtype), SymbolMap())
    differences = {name for name in layout.columns if name in layout.instants | COUNTERS}
    writer = pq.ParquetWriter(
        path,
        empty.schema,
        compression="zstd",
        use_dictionary=[name for name in empty.schema.names if name not in differences | PLAIN],
        column_encoding=dict.fromkeys(differences, "DELTA_BINARY_PACKED"),
        # A page as large as the row group, so that its minimum and maximum are computed once.
        write_batch_size=ROW_GROUP_ROWS,
        max_rows_per_page=ROW_GROUP_ROWS,
        store_schema=False,
    )
    # The client's files name their index for pandas.
    index = {
        "name": layout.index,
        "field_name": layout.index,
        "pandas_type": "datetimetz",
        "numpy_type": "datetime64[ns, UTC]",
        "metadata": {"timezone": "UTC"},
    }
    note = {"index_columns": [layout.index], "column_indexes": [], "columns": [index], "pandas_version": None}
    schema = empty.schema.with_metadata({"pandas": orjson.dumps(note)})
    writer.add_key_value_metadata({"ARROW:schema": b64encode(schema.serialize().to_pybytes())})
    return writer
