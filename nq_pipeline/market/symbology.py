"""Maps vendors' names for series and contracts to ours and back.

    Globex      Q1BN5, Q1BN5 C21330          root, month letter, last digit of the year, side, strike
                                             of at least four digits (ESZ6 P0800)
    Barchart    MM1N25, MM1N5|21330C         its own roots; one or two year digits; strike, side
    OCC style   O:NDXP250701C21330000        root, yymmdd, side, strike in thousandths, read from the right

Tradovate's names are assumed to be Globex's. Vendors are not trusted: a name that cannot be parsed
becomes an `Unparsed`, never an exception. A single year digit is resolved by the trade date of the
answer (`on`) or by the vendor's expiration, never guessed. The day within the month comes from the
listing rules unless the vendor states it.

The same code means different things to different vendors: Barchart's `MQ4` is the E-mini's fourth
Friday, CME's `MQ4` a Micro. Therefore each function is for one vendor, and roots that are not in the
product table (all Micro ones) are rejected.

The functions at the end work on whole columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from nq_pipeline.market.contracts import MONTH_CODES, ROOTS, Contract, Series, format_strike
from nq_pipeline.market.listing import expiration_date, front_future, underlying_future
from nq_pipeline.market.products import FRIDAY

if TYPE_CHECKING:
    import polars as pl

NO_CODES: Mapping[str, str] = MappingProxyType({})
"""No changes to the product table's Barchart roots."""

GLOBEX_STRIKE_DIGITS = 4
"""Globex pads shorter strikes with zeros: seen for the E-mini S&P 500, assumed for all roots."""

_SERIES = rf"([A-Z0-9]{{2,4}})([{MONTH_CODES}])([0-9]{{1,2}})"
_STRIKE = r"([0-9]{1,9}(?:\.[0-9]{1,4})?)"
_OCC = r"(?:O:)?([A-Z0-9]{1,6})([0-9]{6})([CP])([0-9]{5})([0-9]{3})"
_SERIES_CODE = re.compile(_SERIES)
_GLOBEX_SYMBOL = re.compile(rf"{_SERIES} ([CP]){_STRIKE}")


@dataclass(frozen=True, slots=True)
class Unparsed:
    """A name that could not be mapped, and the reason."""

    symbol: str
    reason: str


# ── Globex ──────────────────────────────────────────────────────────────────────────────────────


def globex_code(series: Series) -> str:
    """The exchange's code of a series: `Q1BN5`."""
    return f"{series.root}{_month_and_year(series, 1)}"


def globex_symbol(contract: Contract) -> str:
    """The exchange's raw symbol of a contract: `Q1BN5 C21330`, `ESZ6 P0800`."""
    strike = format_strike(contract.strike, GLOBEX_STRIKE_DIGITS)
    return f"{globex_code(contract.series)} {contract.option_type}{strike}"


def parse_globex_code(
    code: str, *, on: date | None = None, expiration: date | None = None
) -> Series | Unparsed:
    """The series of a Globex code such as `Q1BN5`; `on` and `expiration` as in `parse_globex`."""
    found = _SERIES_CODE.fullmatch(code)
    if not found:
        return Unparsed(code, "not root, month letter and year")
    return _series(code, *found.groups(), on=on, expiration=expiration)


def parse_globex(
    symbol: str, *, on: date | None = None, expiration: date | None = None
) -> Contract | Unparsed:
    """The contract of a Globex raw symbol such as `Q1BN5 C21330`, its strike padded or not.

    `on` is the trade date of the answer: a single year digit means a year within the ten years that start one
    year before it. `expiration` is the local expiration date, if the vendor states it. It takes precedence
    over `on` and the listing rules, and must agree with the symbol's month and year.
    """
    found = _GLOBEX_SYMBOL.fullmatch(symbol)
    if not found:
        return Unparsed(symbol, "not root, month letter, year, side and strike")
    root, month, year, side, strike = found.groups()
    series = _series(symbol, root, month, year, on=on, expiration=expiration)
    if isinstance(series, Unparsed):
        return series
    if not float(strike):
        return Unparsed(symbol, "its strike is zero")
    return Contract(series, "C" if side == "C" else "P", float(strike))


# ── Barchart ────────────────────────────────────────────────────────────────────────────────────


def barchart_code(
    series: Series, *, year_digits: Literal[1, 2] = 2, codes: Mapping[str, str] = NO_CODES
) -> str | Unparsed:
    """Barchart's code of a series: `MM1N25`; for the quarterly one that of the future, `NQM25`.

    Barchart accepts one and two year digits and answers with one. `codes` are Barchart roots by Globex
    root; they extend or replace those of the product table, which lacks the fifth Monday and Thursday
    (`Q5A`, `Q5D`).
    """
    root = _barchart_roots(codes).get(series.root)
    if root is None:
        return Unparsed(series.key, f"Barchart's root for {series.root} is not known")
    return f"{root}{_month_and_year(series, year_digits)}"


def barchart_future(series: Series) -> str:
    """The future under which Barchart shows a series, `NQM25`: normally the one it exercises into.

    In the week in which the quarterly option expires it is the next one. That was seen on the Monday of such
    a week; that the other days are alike is an assumption.
    """
    product, day = series.root_info.product, series.expiration_date
    if series.root_info.family.kind != "weekly" or product.families[0].kind != "quarterly":
        return underlying_future(series, 2)
    return front_future(product, day + timedelta(days=FRIDAY - day.weekday()), 2)


def parse_barchart_code(
    code: str, *, on: date | None = None, expiration: date | None = None, codes: Mapping[str, str] = NO_CODES
) -> Series | Unparsed:
    """The series of a Barchart code, `MM1N25`, `MM1N5` or `NQM25`.

    `on` and `expiration` as in `parse_globex`, `codes` as in `barchart_code`.
    """
    found = _SERIES_CODE.fullmatch(code.strip().upper())
    if not found:
        return Unparsed(code, "not root, month letter and year")
    vendor_root, month, year = found.groups()
    root = next((ours for ours, theirs in _barchart_roots(codes).items() if theirs == vendor_root), None)
    if root is None:
        return Unparsed(code, f"{vendor_root} is not a known Barchart root")
    return _series(code, root, month, year, on=on, expiration=expiration)


def _barchart_roots(codes: Mapping[str, str]) -> dict[str, str]:
    """Barchart's root by Globex root; `codes` take precedence over the product table."""
    known = {code: root.barchart for code, root in ROOTS.items() if root.barchart and code not in codes}
    return {**codes, **known}


# ── common to all ───────────────────────────────────────────────────────────────────────────────


def _series(
    symbol: str, root: str, month: str, year: str, *, on: date | None, expiration: date | None
) -> Series | Unparsed:
    """The series of a root, month letter and one or two year digits."""
    if root not in ROOTS:
        return Unparsed(symbol, f"{root} is not in the product table")
    number = MONTH_CODES.index(month) + 1
    if expiration is not None:
        series = Series(root, expiration)
        if series.contract_month[1] != number or not str(series.contract_month[0]).endswith(year):
            return Unparsed(symbol, f"its month or year disagrees with the expiration {expiration}")
        return series
    if len(year) == 2:
        full = 2000 + int(year)
    elif on is not None:
        full = _year_of(int(year), number, on)
    else:
        return Unparsed(symbol, "a single year digit needs the trade date of the answer")
    expires = expiration_date(root, full, number)
    if expires is None:
        return Unparsed(symbol, f"by rule {root} has no expiration in {full}-{number:02d}")
    return Series(root, expires)


def _year_of(digit: int, month: int, on: date) -> int:
    """The year with this last digit whose month is within ten years from one year before `on`."""
    year = on.year - 1 + (digit - (on.year - 1)) % 10
    return year + 10 if (year, month) < (on.year - 1, on.month) else year


def _month_and_year(series: Series, digits: int) -> str:
    year, month = series.contract_month
    return f"{MONTH_CODES[month - 1]}{year % 10**digits:0{digits}d}"


# ── whole columns ───────────────────────────────────────────────────────────────────────────────


def split_globex_symbols(raw_symbol: pl.Expr) -> pl.Expr:
    """Split `Q1BN5 C21330`: a struct of code, option_type and strike, null for other texts."""
    return _split(raw_symbol, r"^([A-Z0-9]+) ([CP])" + _STRIKE + "$", "code", "option_type", "strike")


def split_barchart_symbols(symbol: pl.Expr) -> pl.Expr:
    """Split `MM1N5|21330C`: a struct of code, strike and option_type, null for other texts.

    An answer is about one series: compare the code with `barchart_code(series, year_digits=1)`.
    """
    return _split(symbol, r"^([A-Z0-9]+)\|" + _STRIKE + "([CP])$", "code", "strike", "option_type")


def split_occ_tickers(ticker: pl.Expr) -> pl.Expr:
    """Split `O:NDXP250701C21330000`: a struct of root, expiration_date, option_type, strike.

    Null for other texts; an impossible day gives a null `expiration_date`. Roots need not be in
    `PROXY_ROOTS`.
    """
    import polars as pl

    part = ticker.str.extract_groups(f"^{_OCC}$").struct
    return pl.struct(
        part[0].alias("root"),
        (pl.lit("20") + part[1]).str.to_date("%Y%m%d", strict=False).alias("expiration_date"),
        part[2].alias("option_type"),
        # From text, because polars divides by a constant inexactly: 43 / 1000 is not 0.043.
        pl.concat_str(part[3], part[4], separator=".").cast(pl.Float64).alias("strike"),
    )


def series_keys(root: pl.Expr, expiration_date: pl.Expr) -> pl.Expr:
    """`Series.key` for columns of roots and dates."""
    import polars as pl

    return pl.concat_str(root, expiration_date.dt.to_string("%Y-%m-%d"), separator="-")


def contract_keys(series: pl.Expr, option_type: pl.Expr, strike: pl.Expr) -> pl.Expr:
    """`Contract.key` for columns of series keys, sides and strikes; null if one of them is null."""
    import polars as pl

    return pl.concat_str(series, option_type, strike_texts(strike), separator="-")


def globex_symbols(code: pl.Expr, option_type: pl.Expr, strike: pl.Expr) -> pl.Expr:
    """`globex_symbol` for columns of Globex codes, sides and strikes."""
    import polars as pl

    return pl.concat_str(code, pl.lit(" "), option_type, strike_texts(strike, GLOBEX_STRIKE_DIGITS))


def strike_texts(strike: pl.Expr, whole_digits: int = 1) -> pl.Expr:
    """`format_strike` for a column."""
    import polars as pl

    scaled = (strike.cast(pl.Float64) * 10_000).round(0, mode="half_to_even").cast(pl.Int64)
    fraction = (scaled % 10_000).cast(pl.String).str.zfill(4)
    whole = (scaled // 10_000).cast(pl.String).str.zfill(whole_digits)
    text = pl.concat_str(whole, fraction, separator=".")
    return text.str.strip_chars_end("0").str.strip_chars_end(".")


def _split(symbol: pl.Expr, pattern: str, *names: str) -> pl.Expr:
    import polars as pl

    part = symbol.str.extract_groups(pattern).struct
    return pl.struct(
        part[i].cast(pl.Float64).alias(name) if name == "strike" else part[i].alias(name)
        for i, name in enumerate(names)
    )
