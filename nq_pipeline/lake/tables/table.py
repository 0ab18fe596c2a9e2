"""`Table` and `Column`, and the columns that many tables share.

Missing is null, never 0. Instants are `timestamp[ns, UTC]`; prices and strikes are float64; DBN's
integers keep their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import polars as pl

from nq_pipeline.errors import LakeError
from nq_pipeline.market.contracts import PROXY_ROOTS
from nq_pipeline.market.products import PROXIES, list_codes

INSTANT = pl.Datetime("ns", "UTC")
TEXT, FLOAT, INT, BOOL, DATE = pl.String(), pl.Float64(), pl.Int64(), pl.Boolean(), pl.Date()
U8, U16, U32, U64, I32 = pl.UInt8(), pl.UInt16(), pl.UInt32(), pl.UInt64(), pl.Int32()
USD = pl.Decimal(18, 9)
"""Money: exact, to the billionth of a dollar."""
PARTITION = "trade_date"
"""Every table has this column and is partitioned by it."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, polars type and what it means (unit, zone, when it is null).

    `was` is its type in files of an older version, if that type was different.
    """

    name: str
    dtype: pl.DataType
    meaning: str
    nullable: bool = True
    was: pl.DataType | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the lake.

    Attributes
    ----------
    version
        Raised by one with every change of the columns: readers then bring older files to the new columns, a
        new nullable one filled with nulls. `make docs` updates `docs/tables.md`.
    meaning
        What a row is, in one sentence.
    key
        Columns that make a row unique; a row whose key is already in the table is not appended.
    order
        Sort order inside a file. A chain is sorted by contract, so that the file of a whole trade date
        keeps each contract's day together. Reading the chain of one moment costs about the same.
    pruning_column
        The timestamp whose range the manifest records for each file (`since_min`, `since_max`), so that
        readers skip files that cannot hold the instants they need.
    """

    name: str
    version: int
    meaning: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    order: tuple[str, ...]
    pruning_column: str

    def __hash__(self) -> int:
        """Few tables share a name and version; the hash of all columns would take longer than a look-up."""
        return hash((self.name, self.version))

    @property
    def schema(self) -> pl.Schema:
        return _schema(self)

    @property
    def total_order(self) -> list[str]:
        """`order`, made unambiguous by the key, so that sorted rows have one order."""
        return list(dict.fromkeys((*self.order, *self.key)))

    def empty(self) -> pl.DataFrame:
        return pl.DataFrame(schema=self.schema)


@cache
def _schema(table: Table) -> pl.Schema:
    return pl.Schema({column.name: column.dtype for column in table.columns})


def required(name: str, dtype: pl.DataType, meaning: str, *, was: pl.DataType | None = None) -> Column:
    """A column in which every row has a value."""
    return Column(name, dtype, meaning, nullable=False, was=was)


def nullable(name: str, dtype: pl.DataType, meaning: str, *, was: pl.DataType | None = None) -> Column:
    """A column that may be null or left out."""
    return Column(name, dtype, meaning, nullable=True, was=was)


ENVIRONMENT = required("environment", TEXT, "sandbox (synthetic) or live")
RUN_ID = required("run_id", TEXT, "the run that wrote the row")
DATASET = required("dataset", TEXT, "Databento's dataset")
UNDERLYING_CLASS = required(
    "underlying_class",
    TEXT,
    f"future ({list_codes('future')}), index ({list_codes('index')}) or etf ({list_codes('etf')})",
)
ROOT = required("root", TEXT, f"Globex product code, or a proxy's: {', '.join(PROXY_ROOTS)}")
PRODUCT = required(
    "product", TEXT, f"what the options are on: {list_codes('future')}, or a proxy's {', '.join(PROXIES)}"
)
SERIES = required("series", TEXT, "root and expiration date, Q1B-2025-07-01")
CONTRACT_KEY = required("contract_key", TEXT, "series, side and strike, Q1B-2025-07-01-C-21330")
OPTION_TYPE = required("option_type", TEXT, "C or P")
STRIKE = required("strike", FLOAT, "index points or dollars")

CONTRACT = (
    nullable("root", TEXT, "Globex product code of an option or a future"),
    nullable("series", TEXT, "of an option: root and expiration date, Q1B-2025-07-01"),
    nullable("contract_key", TEXT, "of an option: series, side and strike, Q1B-2025-07-01-C-21330"),
    nullable("option_type", TEXT, "C or P"),
    nullable("strike", FLOAT, "index points or dollars"),
)
"""The contract of a row of Databento's; null where the symbol is not one of ours."""


def conform(table: Table, frame: pl.DataFrame) -> pl.DataFrame:
    """Bring a frame to a table's columns, order and types; a nullable column may be missing.

    A text column may be categorical (`pl.Enum`) and stays so, because few distinct texts in many rows
    are written several times faster that way. Readers see text.

    Raises
    ------
    LakeError
        A column is unknown, missing, of the wrong type, or null although it is required.
    """
    names = table.schema.names()
    required = [column.name for column in table.columns if not column.nullable]
    unknown = sorted(set(frame.columns) - set(names))
    missing = [name for name in required if name not in frame.columns]
    if unknown or missing:
        raise LakeError(f"rows for {table.name} have unknown columns {unknown} and lack {missing}")
    given = {name: pl.col(name) if name in frame.columns else pl.lit(None) for name in names}
    types = dict(table.schema)
    for name, dtype in frame.schema.items():
        # Not where rows are sorted by the column: categories sort in an order of their own.
        if isinstance(dtype, pl.Enum) and types[name] == pl.String and name not in table.total_order:
            types[name] = dtype
    try:
        frame = frame.select(given[name].cast(dtype).alias(name) for name, dtype in types.items())
    except pl.exceptions.PolarsError as error:
        raise LakeError(f"rows for {table.name} do not have its types: {error}") from None
    holes = [name for name in required if frame[name].null_count()]
    if holes:
        raise LakeError(f"rows for {table.name} have nulls in required columns: {holes}")
    return frame
