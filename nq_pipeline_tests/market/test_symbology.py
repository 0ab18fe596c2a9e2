"""Names to series and back: every root, every vendor, recorded payloads, and anything at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nq_pipeline.dbn.stream import decode
from nq_pipeline.market import symbology
from nq_pipeline.market.contracts import PROXY_ROOTS, ROOTS, Contract, Series, format_strike
from nq_pipeline.market.listing import expirations
from nq_pipeline.market.products import PRODUCTS
from nq_pipeline.market.symbology import Unparsed

JUNE = date(2025, 6, 2)
LISTED = [s for code in PRODUCTS for s in expirations(code, date(2021, 1, 1), date(2027, 12, 31))]

series = st.sampled_from(LISTED)
sides = st.sampled_from(["C", "P"])
strikes = st.one_of(
    st.integers(1, 99_999).map(float),
    st.integers(1, 999_999_999).map(lambda n: n / 10_000),
)
contracts = st.builds(Contract, series, sides, strikes)
proxies = st.builds(
    Contract,
    st.builds(Series, st.sampled_from(sorted(PROXY_ROOTS)), st.dates(date(2020, 1, 1), date(2035, 12, 31))),
    sides,
    st.integers(1, 99_999_999).map(lambda n: n / 1_000),
)
anything = st.one_of(
    st.text(),
    st.text(alphabet="QNMCO12345ABDEFGHJKUVXZP:| .0", max_size=24),
    st.from_regex(r"[A-Z0-9]{1,5}[FGHJKMNQUVXZ]?[0-9]{0,3} ?[CP|]?[0-9]{0,9}[CP]?", fullmatch=True),
)

Parser = Callable[..., Contract | Series | Unparsed]
PARSERS: list[Parser] = [
    symbology.parse_globex,
    symbology.parse_globex_code,
    symbology.parse_barchart_code,
]


def occ_ticker(contract: Contract) -> str:
    series = contract.series
    thousandths = round(contract.strike * 1000)
    return f"{series.root}{series.expiration_date:%y%m%d}{contract.option_type}{thousandths:08d}"


def split(column: Callable[[pl.Expr], pl.Expr], *texts: str | None) -> list[dict[str, Any]]:
    frame = pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})
    return frame.select(column(pl.col("text")).alias("part"))["part"].to_list()


# ── round trips ─────────────────────────────────────────────────────────────────────────────────


def test_every_root_has_a_series_to_round_trip() -> None:
    assert {s.root for s in LISTED} == set(ROOTS)


@given(contracts, st.integers(-300, 3000))
def test_globex_symbols_round_trip_from_any_trade_date_near_them(contract: Contract, days: int) -> None:
    on = contract.series.expiration_date - timedelta(days)
    symbol = symbology.globex_symbol(contract)
    assert symbology.parse_globex(symbol, on=on) == contract
    assert symbology.parse_globex(symbol, expiration=contract.series.expiration_date) == contract
    assert symbology.parse_globex_code(symbology.globex_code(contract.series), on=on) == contract.series


@given(contracts, st.sampled_from([1, 2]))
def test_barchart_codes_round_trip_with_one_year_digit_or_two(contract: Contract, digits: Any) -> None:
    on = contract.series.expiration_date
    unknown = [root for root, facts in ROOTS.items() if facts.barchart is None]
    codes = {root: f"Z{number:02d}" for number, root in enumerate(unknown)}
    code = symbology.barchart_code(contract.series, year_digits=digits, codes=codes)
    assert isinstance(code, str)
    assert symbology.parse_barchart_code(code, on=on, codes=codes) == contract.series


@given(contracts)
@settings(deadline=None)
def test_series_keys_round_trip(contract: Contract) -> None:
    assert Series.parse(contract.series.key) == contract.series
    assert contract.key == f"{contract.series.key}-{contract.option_type}-{format_strike(contract.strike)}"
    assert float(format_strike(contract.strike)) == contract.strike


# ── the tables ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "key"),
    [
        ("MC6M25", "Q1A-2025-06-02"),
        ("MC7M5", "Q2A-2025-06-09"),
        ("MC8M25", "Q3A-2025-06-16"),
        ("MC9M25", "Q4A-2025-06-23"),
        ("MM1N25", "Q1B-2025-07-01"),
        ("MM1N5", "Q1B-2025-07-01"),
        ("MC2M25", "Q2C-2025-06-11"),
        ("MM6N25", "Q1D-2025-07-03"),
        ("MQ4M25", "QN4-2025-06-27"),
        ("MQ6M25", "QNE-2025-06-30"),
        ("NQM25", "NQ-2025-06-20"),
        (" mq1m25 ", "QN1-2025-06-06"),
    ],
)
def test_barchart_code_means(code: str, key: str) -> None:
    assert symbology.parse_barchart_code(code, on=JUNE) == Series.parse(key)


@pytest.mark.parametrize(
    ("code", "future"),
    [  # the addresses in drop-down lists of pages of June 2025
        ("NQM25", "NQM25"),
        ("MQ1M25", "NQM25"),
        ("MC6M25", "NQM25"),
        ("MC7M25", "NQM25"),
        ("MC8M25", "NQU25"),  # exercises into NQM25
        ("MC9M25", "NQU25"),
        ("MQ6M25", "NQU25"),
    ],
)
def test_barchart_shows_a_series_under_its_future(code: str, future: str) -> None:
    series = symbology.parse_barchart_code(code, on=JUNE)
    assert isinstance(series, Series)
    assert symbology.barchart_future(series) == future


def test_an_unknown_barchart_root_is_unparsed_until_added() -> None:
    fifth_monday = Series.parse("Q5A-2025-09-29")
    assert isinstance(symbology.barchart_code(fifth_monday), Unparsed)
    assert isinstance(symbology.parse_barchart_code("MC0U25"), Unparsed)
    assert symbology.barchart_code(fifth_monday, codes={"Q5A": "MC0"}) == "MC0U25"
    assert symbology.parse_barchart_code("MC0U25", codes={"Q5A": "MC0"}) == fifth_monday


@pytest.mark.parametrize("root", ["MNQ", "MQ1", "MQ4", "MQE", "D1A", "D5D"])
def test_a_micro_root_is_never_taken_for_the_e_mini(root: str) -> None:
    found = symbology.parse_globex(f"{root}M5 C21000", on=JUNE)
    assert isinstance(found, Unparsed)
    assert "product table" in found.reason


@pytest.mark.parametrize(
    ("symbol", "on", "year"),
    [
        ("NQM5", "2025-06-02", 2025),
        ("NQM5", "2026-01-05", 2025),  # expired half a year ago
        ("NQM5", "2026-07-01", 2035),  # over a year ago: the next decade's
        ("NQH0", "2029-12-31", 2030),
        ("NQZ9", "2030-01-02", 2029),
        ("NQM25", "2031-01-02", 2025),  # two digits say it themselves
    ],
)
def test_a_year_of_one_digit_is_read_from_the_trade_date(symbol: str, on: str, year: int) -> None:
    found = symbology.parse_globex_code(symbol, on=date.fromisoformat(on))
    assert isinstance(found, Series)
    assert found.expiration_date.year == year


def test_a_year_of_one_digit_without_context_is_not_guessed() -> None:
    for parser, symbol in (
        (symbology.parse_globex, "NQM5 P21000"),
        (symbology.parse_barchart_code, "MM1N5"),
    ):
        found = parser(symbol)
        assert isinstance(found, Unparsed)
        assert "trade date" in found.reason


def test_a_stated_expiration_overrules_the_listing_rules() -> None:
    odd = date(2025, 6, 30)  # a fifth Monday that is the end of the month
    assert isinstance(symbology.parse_globex("Q5AM5 C21000", on=JUNE), Unparsed)
    assert symbology.parse_globex("Q5AM5 C21000", expiration=odd) == Contract(
        Series("Q5A", odd), "C", 21000.0
    )
    for wrong in (date(2025, 7, 1), date(2026, 6, 30)):
        assert isinstance(symbology.parse_globex("Q5AM5 C21000", expiration=wrong), Unparsed)


@pytest.mark.parametrize(
    "symbol",
    [
        "UD:1V: GN 1234567",  # a user-defined spread
        "NQM5-NQU5",
        "Q2BF6",
        "Q2BF6 X21000",
        "Q2BF6  C21000",
        "Q2BF6 C0",
        "Q2BF6 C-5",
        "Q2BF6 C21,000",
        "Q2BY6 C21000",
        "Q2BF٦ C21000",
        "",
    ],
)
def test_what_is_no_globex_option_is_an_error_value(symbol: str) -> None:
    found = symbology.parse_globex(symbol, on=JUNE)
    assert isinstance(found, Unparsed)
    assert found.symbol == symbol
    assert found.reason


@pytest.mark.parametrize(
    ("symbol", "on", "key"),
    [
        ("ESZ6 P0800", "2026-06-24", "ES-2026-12-18-P-800"),
        ("ESZ3 C0100", "2023-08-01", "ES-2023-12-15-C-100"),
        ("ESM4 C0900", "2023-08-01", "ES-2024-06-21-C-900"),
        ("ESM4 P5250", "2024-05-09", "ES-2024-06-21-P-5250"),
        ("EW2F6 C7000", "2026-01-09", "EW2-2026-01-09-C-7000"),
        ("Q2BF6 P18000", "2026-01-09", "Q2B-2026-01-13-P-18000"),
    ],
)
def test_globex_symbol_is_read_and_written_alike(symbol: str, on: str, key: str) -> None:
    found = symbology.parse_globex(symbol, on=date.fromisoformat(on))
    assert isinstance(found, Contract)
    assert (found.key, symbology.globex_symbol(found)) == (key, symbol)
    frame = pl.DataFrame({"code": [symbol.split()[0]], "side": [found.option_type], "strike": [found.strike]})
    written = frame.select(symbology.globex_symbols(pl.col("code"), pl.col("side"), pl.col("strike")))
    assert written.item() == symbol
    assert split(symbology.split_globex_symbols, symbol)[0]["strike"] == found.strike


def test_an_unpadded_low_strike_is_the_same_contract() -> None:
    on = date(2026, 6, 24)
    assert symbology.parse_globex("ESZ6 P800", on=on) == symbology.parse_globex("ESZ6 P0800", on=on)


def test_recorded_definitions_are_read_and_written_alike(shared: Path) -> None:
    symbols = set()
    for path in sorted((shared / "databento").glob("*definition*.dbn.zst")):
        records = decode(path.read_bytes(), "definition").array
        for record in records[np.isin(records["instrument_class"], (b"C", b"P"))]:
            symbol = record["raw_symbol"].decode()
            expires = datetime.fromtimestamp(int(record["expiration"]) // 10**9, UTC).date()
            found = symbology.parse_globex(symbol, expiration=expires)
            assert isinstance(found, Contract)
            assert (found.strike, symbology.globex_symbol(found)) == (record["strike_price"] / 1e9, symbol)
            symbols.add(symbol)
    assert len(symbols) >= 7


def test_fractional_strikes_are_kept() -> None:
    found = symbology.parse_globex("Q2BF6 C21000.5", on=JUNE)
    assert isinstance(found, Contract)
    assert found.key == "Q2B-2026-01-13-C-21000.5"


def test_occ_roots_are_read_from_the_right() -> None:
    tickers = (
        "O:NDXP250701C21330000",
        "O:QQQ1250701C00500000",
        "O:NDX251301C21330000",
        "O:NDX25070121330000",
    )
    assert [tuple(part.values()) for part in split(symbology.split_occ_tickers, *tickers)] == [
        ("NDXP", date(2025, 7, 1), "C", 21330.0),
        ("QQQ1", date(2025, 7, 1), "C", 500.0),  # an adjusted contract's root, which is none of ours
        ("NDX", None, "C", 21330.0),
        (None, None, None, None),
    ]


@pytest.mark.parametrize("text", ["", "Q1B", "Q1B-", "-2025-07-01", "Q1B-2025-13-01", "Q1B-today"])
def test_what_is_no_series_key_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="write ROOT-YYYY-MM-DD"):
        Series.parse(text)


# ── anything at all ─────────────────────────────────────────────────────────────────────────────


@given(anything, st.none() | st.dates(date(1990, 1, 1), date(2150, 1, 1)), st.sampled_from(PARSERS))
@settings(max_examples=200, deadline=None)
def test_no_text_makes_a_parser_raise(text: str, on: date | None, parser: Parser) -> None:
    found = parser(text, on=on)
    assert isinstance(found, Contract | Series | Unparsed)
    if isinstance(found, Unparsed):
        assert found.symbol == text


@given(st.lists(st.one_of(st.none(), anything), max_size=20))
@settings(deadline=None)
def test_columns_of_anything_split_or_are_null(texts: list[str | None]) -> None:
    for column in (
        symbology.split_globex_symbols,
        symbology.split_barchart_symbols,
        symbology.split_occ_tickers,
    ):
        parts = split(column, *texts)
        assert len(parts) == len(texts)
        for part in parts:
            missing = [part[name] is None for name in part if name != "expiration_date"]
            assert all(missing) or not any(missing)


# ── whole columns say what single names say ─────────────────────────────────────────────────────


@given(st.lists(contracts, min_size=1, max_size=20))
def test_columns_of_contracts_are_named_as_single_ones(some: list[Contract]) -> None:
    frame = pl.DataFrame(
        {
            "series": [c.series.key for c in some],
            "root": [c.series.root for c in some],
            "day": [c.series.expiration_date for c in some],
            "code": [symbology.globex_code(c.series) for c in some],
            "side": [c.option_type for c in some],
            "strike": [c.strike for c in some],
        }
    )
    side, strike = pl.col("side"), pl.col("strike")
    named = frame.select(
        key=symbology.contract_keys(pl.col("series"), side, strike),
        series=symbology.series_keys(pl.col("root"), pl.col("day")),
        symbol=symbology.globex_symbols(pl.col("code"), side, strike),
    )
    assert named["key"].to_list() == [c.key for c in some]
    assert named["series"].to_list() == [c.series.key for c in some]
    assert named["symbol"].to_list() == [symbology.globex_symbol(c) for c in some]
    parts = split(symbology.split_globex_symbols, *named["symbol"])
    assert [(p["code"], p["option_type"], p["strike"]) for p in parts] == list(
        zip(frame["code"], frame["side"], frame["strike"], strict=True)
    )


@example([0.00005, 0.00015, 100.0, 1e9], 4)
@given(st.lists(st.floats(0, 1e9), min_size=1), st.sampled_from([1, 4]))
@settings(deadline=None)
def test_a_column_of_strikes_is_written_exactly_as_single_ones(values: list[float], digits: int) -> None:
    texts = pl.DataFrame({"k": values}).select(symbology.strike_texts(pl.col("k"), digits)).to_series()
    assert texts.to_list() == [format_strike(value, digits) for value in values]


@given(st.lists(proxies, max_size=20))
@settings(deadline=None)
def test_a_column_of_occ_tickers_splits_into_its_contracts(some: list[Contract]) -> None:
    for prefix in ("O:", ""):
        tickers = [f"{prefix}{occ_ticker(contract)}" for contract in some]
        assert split(symbology.split_occ_tickers, *tickers) == [
            {
                "root": c.series.root,
                "expiration_date": c.series.expiration_date,
                "option_type": c.option_type,
                "strike": c.strike,
            }
            for c in some
        ]


def test_a_contract_key_with_a_missing_part_is_missing() -> None:
    frame = pl.DataFrame({"s": ["NQ-2025-06-20", None], "o": ["C", "C"], "k": [None, 1.0]})
    keys = frame.select(symbology.contract_keys(pl.col("s"), pl.col("o"), pl.col("k"))).to_series()
    assert keys.to_list() == [None, None]


# ── recorded payloads ───────────────────────────────────────────────────────────────────────────


def boards(shared: Path) -> Iterator[tuple[str, date, list[dict[str, Any]]]]:
    for path in sorted((shared / "barchart").glob("chain_M*.json")):
        code, recorded = re.match(r"chain_([A-Z0-9]+)_(\d{8})", path.name).groups()  # type: ignore[union-attr]
        data = json.loads(path.read_text())["data"]
        yield code, date.fromisoformat(recorded), data["Call"] + data["Put"]


def test_recorded_barchart_rows_are_of_their_series(shared: Path) -> None:
    seen = 0
    for code, recorded, rows in boards(shared):
        board = symbology.parse_barchart_code(code, on=recorded)
        assert isinstance(board, Series)
        short = symbology.barchart_code(board, year_digits=1)
        parts = split(symbology.split_barchart_symbols, *(row["symbol"] for row in rows))
        for row, part in zip(rows, parts, strict=True):
            strike, side = float(row["raw"]["strike"]), row["optionType"][0]
            assert part == {"code": short, "strike": strike, "option_type": side}
            assert row["symbol"] == f"{short}|{format_strike(strike)}{side}"
        seen += len(rows)
    assert seen > 2000


def test_recorded_tickers_agree_with_their_terms(shared: Path) -> None:
    for name in ("reference_options_contracts_NDX_20250610.json", "sdkmock_reference_contracts_page1.json"):
        items = json.loads((shared / "polygon" / name).read_text())["results"]
        assert items
        parts = split(symbology.split_occ_tickers, *(item["ticker"] for item in items))
        for item, part in zip(items, parts, strict=True):
            assert part["strike"] == item["strike_price"]
            assert part["option_type"] == item["contract_type"][0].upper()
            assert part["expiration_date"].isoformat() == item["expiration_date"]
            if part["root"] in PROXY_ROOTS:
                facts = PROXY_ROOTS[part["root"]]
                assert facts.family.exercise_style == item["exercise_style"]
                assert facts.product.multiplier == item["shares_per_contract"]
            else:
                assert part["root"] == item["underlying_ticker"]
