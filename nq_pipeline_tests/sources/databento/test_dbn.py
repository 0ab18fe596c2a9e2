"""DBN to columns: the same values as the official decoder gives, and an error for any damage."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from nq_pipeline.clock import to_ns
from nq_pipeline.dbn import columns, stream
from nq_pipeline.dbn.layout import record_layout
from nq_pipeline.dbn.stream import decode
from nq_pipeline.errors import BadPayload
from nq_pipeline.market import sessions
from nq_pipeline.market.contracts import Series
from nq_pipeline.sources.databento import parse
from nq_pipeline_tests.testing import standin
from nq_pipeline_tests.testing.source_contract import MOMENT

SCHEMAS = (
    "definition", "statistics", "trades", "bbo-1s", "bbo-1m", "ohlcv-1s", "ohlcv-1m", "ohlcv-1h", "ohlcv-1d",
)  # fmt: skip
NEVER = 2**63 - 1
SERIES = (Series.parse("Q2C-2025-06-11"), Series.parse("Q2D-2025-06-12"))
SPANS = {
    "definition": ("2025-06-10T00:00:00Z", "2025-06-10T15:00:00Z"),
    "bbo-1m": ("2025-06-10T14:58:00Z", "2025-06-10T15:00:00Z"),
    "statistics": ("2025-06-09T20:00:00Z", "2025-06-10T15:00:00Z"),
    "trades": ("2025-06-10T13:30:00Z", "2025-06-10T15:00:00Z"),
}


def recorded(shared: Path, part: str = "") -> list[tuple[bytes, str]]:
    """The recorded answers of schemas this program reads, with their schema, whose name has a part."""
    found = []
    for path in sorted((shared / "databento").glob("*.dbn.zst")):
        schema = next(
            (name for name in SCHEMAS if re.search(rf"[._-]{name}(_|\.|-glbx)|^{name}", path.name)), None
        )
        if schema is not None and part in path.name:
            found.append((path.read_bytes(), schema))
    assert found
    return found


def synthetic(schema: str) -> bytes:
    start, end = (str(np.datetime64(text.removesuffix("Z"), "ns").astype(int)) for text in SPANS[schema])
    symbols = "Q2C.OPT,Q2D.OPT" + (",NQ.FUT" if schema in ("definition", "bbo-1m") else "")
    return standin.body(
        "timeseries.get_range", schema=schema, symbols=symbols, stype_in="parent", start=start, end=end
    )


def plain(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True).read()


def records_start(raw: bytes) -> int:
    return 8 + int.from_bytes(raw[4:8], "little")


def officially(body: bytes) -> list[Any]:
    """The records as objects of the official decoder."""
    import databento as official

    return list(official.DBNStore.from_bytes(body))


def text_or_number(value: Any) -> Any:
    value = value.value if isinstance(value, Enum) or hasattr(value, "variants") else value
    value = value.decode() if isinstance(value, bytes) else value
    value = value.rstrip("\0") if isinstance(value, str) else value
    return int(value) if isinstance(value, (bool, np.integer)) else value


def test_every_field_of_a_recorded_answer_is_what_the_official_decoder_says(shared: Path) -> None:
    answers = recorded(shared)
    assert len(answers) >= 25
    assert {schema for _, schema in answers} == set(SCHEMAS)
    for body, schema in answers:
        array = decode(body, schema).array
        official = officially(body)
        assert len(array) == len(official) > 0
        compared = 0
        for record, row in zip(official, array, strict=True):
            for field in array.dtype.names:
                level, at = (record.levels[0], field[:-3]) if field[-3:] == "_00" else (record, field)
                if field.startswith("_") or field in ("length", "rtype") or not hasattr(level, at):
                    continue
                assert text_or_number(getattr(level, at)) == text_or_number(row[field]), (schema, field)
                compared += 1
        assert compared >= 5 * len(array)


def test_recorded_definitions_become_contracts(shared: Path) -> None:
    for body, schema in recorded(shared, "definition"):
        dropped: Counter[str] = Counter()
        frame = parse.definitions(decode(body, schema), dropped)
        official = {record.raw_symbol: record for record in officially(body)}
        spreads = [record for record in official.values() if str(record.instrument_class) in ("T", "M", "S")]
        assert dropped == ({"spread": len(spreads)} if spreads else {})
        assert frame.height == len(official) - len(spreads)
        for row in frame.iter_rows(named=True):
            record = official[row["raw_symbol"]]
            assert row["instrument_id"] == record.instrument_id
            assert row["root"] == record.asset
            assert row["instrument_class"] == str(record.instrument_class)
            assert row["strike"] == (record.strike_price / 1e9 if row["instrument_class"] != "F" else None)
            assert to_ns(row["expiration"]) == record.expiration
            assert row["multiplier"] == record.unit_of_measure_qty / 1e9
            assert (row["underlying"] or "") == record.underlying


def test_a_recorded_option_has_its_last_book_and_the_trade_of_the_day_before(shared: Path) -> None:
    ((body, schema),) = recorded(shared, "options_catalog__options_bbo-1m")
    known = pl.Series(["ESM4 P5230", "ESM4 P5250"])
    books = (
        parse.quotes(decode(body, schema), known, Counter(), latest=NEVER)
        .sort("raw_symbol")
        .row(0, named=True)
    )
    assert books["raw_symbol"] == "ESM4 P5230"
    assert (books["bid"], books["bid_size"], books["ask"], books["ask_size"]) == (97.0, 16, 97.5, 75)
    assert to_ns(books["quote_ts"]) == 1_715_249_040_000_000_000
    assert books["quoted_last"] == 92.25
    assert books["quoted_last_ts"].date().isoformat() == "2024-05-08"


def test_recorded_statistics_of_types_a_chain_does_not_use_are_left_alone(shared: Path) -> None:
    ((body, schema),) = recorded(shared, "test_data.statistics")
    records = decode(body, schema)
    frame = parse.statistics(
        records, pl.Series(["ESH1"]), Counter(), latest=NEVER, trade_date=date(2099, 1, 1)
    )
    used = np.isin(records.array["stat_type"], (3, 6, 9))
    assert frame.height == int(used.any())


@pytest.mark.parametrize("schema", SPANS)
def test_compressed_and_plain_bodies_decode_alike(schema: str) -> None:
    body = synthetic(schema)
    one, other = decode(body, schema), decode(plain(body), schema)
    assert len(one.array)
    assert np.array_equal(one.array, other.array)
    assert list(one.symbols) == list(other.symbols)


def test_several_frames_are_one_answer() -> None:
    raw = plain(synthetic("trades"))
    half = len(raw) // 2
    split = zstandard.compress(raw[:half]) + zstandard.compress(raw[half:])
    assert np.array_equal(decode(split, "trades").array, decode(raw, "trades").array)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_compressed_answer_cut_anywhere_is_noticed(data: st.DataObject) -> None:
    body = synthetic("statistics")
    cut = data.draw(st.integers(1, len(body) - 1))
    with pytest.raises(BadPayload):
        decode(body[:cut], "statistics")


def test_an_answer_cut_at_the_end_of_a_record_is_noticed_by_the_missing_end_of_its_frame() -> None:
    raw = plain(synthetic("trades"))
    compressor = zstandard.ZstdCompressor().compressobj()
    unfinished = compressor.compress(raw[:-48]) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with pytest.raises(BadPayload, match="cut off"):
        decode(unfinished, "trades")


def test_a_bomb_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_DECODED_BYTES", 1 << 20)
    raw = plain(synthetic("trades"))
    with pytest.raises(BadPayload, match="larger than 1 MiB"):
        decode(zstandard.compress(raw + raw[-48:] * (1 << 20)), "trades")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"<html>" + raw, "something else"),
        (lambda raw: b"", "something else"),
        (lambda raw: raw[:3] + b"\x04" + raw[4:], "version 4"),
        (lambda raw: raw[:-1], "within a record"),
        (lambda raw: raw[:20], "within its header"),
        (lambda raw: raw[:-47] + b"\x01" + raw[-46:], "no record of trades"),
        (lambda raw: raw[:-48] + b"\x0d" + raw[-47:], "no record of trades"),
    ],
)
def test_damage_is_named(damage: Any, words: str) -> None:
    with pytest.raises(BadPayload, match=words):
        decode(damage(plain(synthetic("trades"))), "trades")


def test_an_answer_of_another_schema_is_refused() -> None:
    with pytest.raises(BadPayload, match="is of schema trades"):
        decode(synthetic("trades"), "statistics")


def chain(bodies: dict[str, bytes]) -> parse.Parsed:
    records = {schema: decode(body, schema) for schema, body in bodies.items()}
    return parse.parse_chain(
        records, SERIES, session=sessions.current_session(MOMENT), until=to_ns(MOMENT) + 1
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_flipped_bytes_cost_rows_and_cells_but_never_the_parser(data: st.DataObject) -> None:
    schema = data.draw(st.sampled_from(list(SPANS)))
    raw = bytearray(plain(synthetic(schema)))
    start, size = records_start(raw), record_layout(schema, 3).dtype.itemsize
    heads = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, start - 1) if heads else st.integers(start, len(raw) - 1))
        if not heads and (at - start) % size < 2:
            at += 2  # a wrong length or kind refuses the answer, which other tests show
        raw[at] = data.draw(st.sampled_from((0, 1, 127, 128, 255)))
    whole = {name: synthetic(name) for name in SPANS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parsed = chain(whole | {schema: bytes(raw)})
        except BadPayload:
            assert heads
            return
    assert parsed.frame["contract_key"].is_unique().all()
    if not heads and schema == "definition":
        lost = chain(whole).frame.height - parsed.frame.height
        assert lost <= 6
    assert parsed.frame["strike"].null_count() == parsed.frame["expiration"].null_count() == 0


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(list(SCHEMAS)))
def test_noise_is_a_bad_payload(noise: bytes, schema: str) -> None:
    for body in (noise, b"DBN\x03" + noise, zstandard.compress(b"DBN\x03" + noise)):
        with pytest.raises(BadPayload):
            decode(body, schema)


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1))
def test_prices_are_the_integer_divided_once(values: list[int]) -> None:
    assert columns.prices(np.array(values, np.int64)).to_list() == [value / 1e9 for value in values]


def test_what_is_undefined_is_null() -> None:
    assert columns.prices(np.array([2**63 - 1, 0], np.int64)).to_list() == [None, 0.0]
    assert columns.sizes(np.array([2**32 - 1, 0], np.uint32)).to_list() == [None, 0]
    assert columns.instants(np.array([2**64 - 1, 2**63, 0], np.uint64)).null_count() == 2
    assert columns.texts(np.array([b"", b"NQ", b"\xff"], "S4")).to_list() == [None, "NQ", None]
