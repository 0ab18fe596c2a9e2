"""Barchart's quotes answers: from the exact body to one row per contract. Pure.

Every value comes twice, as displayed and raw, and neither suffices alone: `N/A` is raw 0 for a price, and
only the `s` behind the displayed price tells a settlement from a trade. So both are read and compared cell by
cell. `normalize.py` says what the values mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import orjson
import polars as pl

from nq_pipeline.clock import NS_PER_S, to_ns
from nq_pipeline.errors import BadPayload
from nq_pipeline.market.contracts import Series
from nq_pipeline.market.symbology import split_barchart_symbols
from nq_pipeline.sources.barchart.normalize import chain_columns
from nq_pipeline.sources.rows import FUTURE, MOST_CONTRACTS, OTHER, drop_faulty
from nq_pipeline.transport.json_columns import decode, loads, number

PRICES = ("openPrice", "highPrice", "lowPrice", "lastPrice", "priceChange", "bidPrice", "askPrice", "premium")
COUNTS = ("volume", "openInterest")

SIDES = ("Call", "Put")
_SHOWN = (*PRICES, *COUNTS, "tradeTime", "optionType", "symbol")
_RAW = (*PRICES, *COUNTS, "strike", "tradeTime")
_MISSING = ("N/A", "-", "")
_ROUNDING = 0.005 + 1e-9
"""Displayed numbers have two decimals."""

END_OF_TIME = to_ns(datetime(2100, 1, 1, tzinfo=UTC))
"""The session calendar ends there."""


@dataclass(frozen=True, slots=True)
class BarchartChain:
    """One series as the site showed it.

    Attributes
    ----------
    seen
        Rows in the body, used or not.
    newest
        The latest trade date among the rows' times.
    settled
        Whether no row's price is a trade.
    """

    rows: pl.DataFrame
    seen: int = 0
    newest: date | None = None
    settled: bool = False
    dropped: Counter[str] = field(default_factory=Counter)
    controls: Mapping[str, bool] = field(default_factory=dict)


def parse_chain(
    body: bytes, series: Series, code: str, *, trade_date: date, latest: int = END_OF_TIME
) -> BarchartChain:
    """Read the answer about one series: rows grouped by type or by strike, or listed.

    A row that is not a contract of the series is dropped and counted (`unknown_symbol`, `other_series`,
    `malformed_row`, `duplicate`). A cell that cannot be read, or whose displayed and raw values disagree, is
    null and counted (`malformed_cell`), as is a time in the future (`future_instant`).

    Parameters
    ----------
    code
        The series' code as rows carry it, with one digit of the year (`MM1N5`).
    trade_date
        The requested session. The volume of a row that belongs to another session is null.
    latest
        No trade can be later, nanoseconds UTC, and no settlement of a later trade date than `trade_date`.

    Raises `BadPayload` for no quotes answer, or one of another product: a premium is the price times the
    multiplier.
    """
    cells, total = _read_rows(body)
    if cells.is_empty():
        if total:
            raise BadPayload(f"{code}: the answer states {total:g} rows and has none")
        return BarchartChain(pl.DataFrame(), controls={"rows_equal_total": True})
    dropped: Counter[str] = Counter()
    table = _to_numbers(cells, (*PRICES, *COUNTS), trade_date, latest).with_columns(
        split_barchart_symbols(pl.col("symbol")).struct.unnest().name.prefix("of_")
    )
    table = drop_faulty(table, _row_fault(code), dropped)
    future = int(table["in_future"].sum())
    dropped[FUTURE] = future
    dropped["malformed_cell"] = sum(table.select(pl.col("^bad_.*$").sum()).row(0)) - future
    controls = {"rows_equal_total": cells.height == total}
    multiplier = series.root_info.product.multiplier
    off = (pl.col("premium") - pl.col("lastPrice") * multiplier).abs() > multiplier * _ROUNDING
    off_share = table.select(off.drop_nulls().mean()).item()
    if off_share is not None:
        if off_share > 0.5:
            raise BadPayload(
                f"{code}: premiums are not the price times {multiplier:g}, so this is another product"
            )
        controls[f"premium_is_last_times_{multiplier:g}"] = not off_share
    rows, newest = chain_columns(table, series, trade_date)
    has_trade = rows.select((pl.col("last").is_not_null() & pl.col("last_ts").is_not_null()).any()).item()
    return BarchartChain(rows, cells.height, newest, not has_trade, +dropped, controls)


def parse_futures(
    body: bytes, symbols: Sequence[str], *, trade_date: date, latest: int = END_OF_TIME
) -> dict[str, tuple[float, int]]:
    """Last price and its time (ns UTC) of the requested symbols; one without either is left out.

    `trade_date` and `latest` as in `parse_chain`.
    """
    cells, _ = _read_rows(body)
    if cells.is_empty():
        return {}
    table = _to_numbers(cells, ("lastPrice",), trade_date, latest).select("symbol", "lastPrice", "time")
    table = table.drop_nulls().filter(pl.col("symbol").is_in(symbols))
    return {symbol: (price, ns) for symbol, price, ns in table.iter_rows()}


def _read_rows(body: bytes) -> tuple[pl.DataFrame, float | None]:
    """All rows of an answer, calls first, and the total that it states; `BadPayload` without a list of rows.

    Displayed values are text. Raw ones are finite numbers in columns of their own, `raw_<name>`.
    """
    text, uncounted = pl.String(), Counter[str]()  # counted later, as malformed cells
    raw = pl.Struct(dict.fromkeys(_RAW, text))
    rows = pl.List(pl.Struct({**dict.fromkeys(_SHOWN, text), "raw": raw}))
    schema = pl.Struct({"total": text, "data": pl.Struct(dict.fromkeys(SIDES, rows))})
    document = decode(body, schema, uncounted, what="quotes").struct.unnest()
    sides = _sides(document)
    if not sides:
        document = decode(_regrouped(body), schema, uncounted, what="quotes").struct.unnest()
        sides = _sides(document)
    cells = pl.concat([side.explode(empty_as_null=False) for side in sides]).struct.unnest()
    numbers = cells["raw"].struct.unnest().select(number(name).alias(f"raw_{name}") for name in _RAW)
    return cells.drop("raw").hstack(numbers), document.select(number("total")).item()


def _sides(document: pl.DataFrame) -> list[pl.Series]:
    """The lists of rows that are there."""
    sides = [document["data"].struct.field(side) for side in SIDES]
    return [side for side in sides if not side.null_count()]


def _regrouped(body: bytes) -> bytes:
    """A list of rows, or rows grouped by strike, in the schema of the page's own answer."""
    try:
        value = loads(body)
        data = value.get("data")
        if isinstance(data, dict) and data:
            data = [row for group in data.values() if isinstance(group, list) for row in group] or None
        if data == {}:
            data = []
        if isinstance(data, list):
            return orjson.dumps({"total": value.get("total"), "data": {"Call": data, "Put": []}})
    except (ValueError, orjson.JSONEncodeError):
        pass  # no JSON, or nested deeper than any answer
    raise BadPayload("quotes: the answer has no list or groups of rows")


def _to_numbers(cells: pl.DataFrame, names: Sequence[str], trade_date: date, latest: int) -> pl.DataFrame:
    """Numbers from displayed and raw values: `<name>` and `bad_<name>`, `time` (ns) and `bad_time`.

    The raw number counts; the displayed one says whether there is one at all, and must agree.
    `in_future` marks the bad times that are valid but later than can be.
    """
    moment = pl.col("raw_tradeTime")
    stamp = pl.when(moment.is_between(1, END_OF_TIME // NS_PER_S) & (moment % 1 == 0)).then(
        moment.cast(pl.Int64, strict=False) * NS_PER_S
    )
    # A date stands for a trade date, whose session begins the evening before.
    midnight = datetime(trade_date.year, trade_date.month, trade_date.day, tzinfo=UTC)
    day_end = to_ns(midnight + timedelta(days=1)) - 1
    dated = pl.col("tradeTime").str.contains("/", literal=True).fill_null(False)
    known = stamp <= pl.when(dated).then(max(latest, day_end)).otherwise(latest)
    return (
        cells.lazy()
        .with_columns(
            *(_parse_displayed(pl.col(name)).alias(f"shown_{name}") for name in names),
            *(pl.col(name).is_in(_MISSING).alias(f"none_{name}") for name in (*names, "tradeTime")),
            settled=pl.col("lastPrice").str.ends_with("s"),
        )
        .with_columns(
            *(_agreed(name).alias(name) for name in names),
            *(_bad(name, _agreed(name)).alias(f"bad_{name}") for name in names),
            time=pl.when(known).then(stamp),
            bad_time=_bad("tradeTime", pl.when(known).then(stamp)),
            in_future=(~known & ~pl.col("none_tradeTime")).fill_null(False),
        )
        .collect()
    )


def _parse_displayed(text: pl.Expr) -> pl.Expr:
    """A displayed number: `7,534.38s`, `+137.25`, `unch`; or `539-4`, in eighths."""
    plain = text.str.strip_chars_end("s").str.replace_all(",", "", literal=True)
    value = pl.when(text == "unch").then(0.0).otherwise(plain.cast(pl.Float64, strict=False))
    part = plain.str.extract_groups(r"^([+-]?)(\d+)-([0-7])$").struct
    size = part[1].cast(pl.Float64) + part[2].cast(pl.Float64) / 8
    return pl.coalesce(value, pl.when(part[0] == "-").then(-size).otherwise(size))


def _agreed(name: str) -> pl.Expr:
    raw, shown = pl.col(f"raw_{name}"), pl.col(f"shown_{name}")
    agree = raw.is_null() | ((raw - shown).abs() <= _ROUNDING)
    sane = shown.is_finite() if name in PRICES else shown.is_between(0, MOST_CONTRACTS) & (shown % 1 == 0)
    return pl.when(~pl.col(f"none_{name}") & sane & agree).then(pl.coalesce(raw, shown))


def _bad(name: str, value: pl.Expr) -> pl.Expr:
    """Whether a cell was sent but has no value: it is unreadable, or displayed and raw disagree."""
    none = pl.col(name).is_null() | pl.col(f"none_{name}")
    return pl.when(none).then((pl.col(f"raw_{name}") != 0).fill_null(False)).otherwise(value.is_null())


def _row_fault(code: str) -> pl.Expr:
    """Why a row is dropped; null when it is kept."""
    strike, side = pl.col("of_strike"), pl.col("of_option_type")
    other_strike = pl.col("raw_strike") != strike
    other_side = pl.col("optionType").str.slice(0, 1) != side
    return (
        pl.when(pl.col("of_code").is_null())
        .then(pl.lit("unknown_symbol"))
        .when(pl.col("of_code") != code)
        .then(pl.lit(OTHER))
        .when(other_strike.fill_null(False) | other_side.fill_null(False))
        .then(pl.lit("malformed_row"))
        .when(~pl.struct("of_code", "of_strike", "of_option_type").is_first_distinct())
        .then(pl.lit("duplicate"))
    )
