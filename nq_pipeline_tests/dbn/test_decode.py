"""Decoding equals the official decoder's, one null rule holds, and damage is an error."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import databento
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.clock import to_ns
from nq_pipeline.dbn import columns, stream
from nq_pipeline.dbn.stream import decode
from nq_pipeline.errors import BadPayload
from nq_pipeline_tests.testing import dbn_samples as sample
from nq_pipeline_tests.testing.databento_answers import SCHEMAS, SPANS, officially, plain, recorded, synthetic
from nq_pipeline_tests.testing.dbn_samples import NOON


def text_or_number(value: Any) -> Any:
    value = value.value if isinstance(value, Enum) or hasattr(value, "variants") else value
    value = value.decode() if isinstance(value, bytes) else value
    value = value.rstrip("\0") if isinstance(value, str) else value
    return int(value) if isinstance(value, (bool, np.integer)) else value


def test_recorded_fields_equal_the_official_decoder(shared: Path) -> None:
    answers = recorded(shared)
    assert len(answers) >= 25
    assert {schema for _, schema in answers} == set(SCHEMAS)
    for body, schema in answers:
        array = decode(body, schema).array
        official = officially(body)
        assert len(array) == len(official) > 0
        compared = 0
        for record, row in zip(official, array, strict=True):
            for field in array.dtype.names or ():
                level, at = (record.levels[0], field[:-3]) if field[-3:] == "_00" else (record, field)
                if field.startswith("_") or field in ("length", "rtype") or not hasattr(level, at):
                    continue
                assert text_or_number(getattr(level, at)) == text_or_number(row[field]), (schema, field)
                compared += 1
        assert compared >= 5 * len(array)


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


@given(st.data())
def test_a_compressed_answer_cut_anywhere_is_noticed(data: st.DataObject) -> None:
    body = synthetic("statistics")
    cut = data.draw(st.integers(1, len(body) - 1))
    with pytest.raises(BadPayload):
        decode(body[:cut], "statistics")


def test_an_unfinished_zstd_frame_is_cut_off() -> None:
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
        (lambda raw: raw[:-47] + b"\x01" + raw[-46:], "not a record of trades"),
        (lambda raw: raw[:-48] + b"\x0d" + raw[-47:], "not a record of trades"),
    ],
)
def test_damage_is_named(damage: Any, words: str) -> None:
    with pytest.raises(BadPayload, match=words):
        decode(damage(plain(synthetic("trades"))), "trades")


def test_an_answer_of_another_schema_is_refused() -> None:
    with pytest.raises(BadPayload, match="is of schema trades"):
        decode(synthetic("trades"), "statistics")


@given(st.binary(max_size=400), st.sampled_from(list(SCHEMAS)))
def test_noise_is_a_bad_payload(noise: bytes, schema: str) -> None:
    for body in (noise, b"DBN\x03" + noise, zstandard.compress(b"DBN\x03" + noise)):
        with pytest.raises(BadPayload):
            decode(body, schema)


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1))
def test_prices_are_the_integer_divided_once(values: list[int]) -> None:
    assert columns.prices(np.array(values, np.int64)).to_list() == [value / 1e9 for value in values]


def test_undefined_values_are_null() -> None:
    assert columns.prices(np.array([2**63 - 1, 0], np.int64)).to_list() == [None, 0.0]
    assert columns.sizes(np.array([2**32 - 1, 0], np.uint32)).to_list() == [None, 0]
    assert columns.instants(np.array([2**64 - 1, 2**63, 0], np.uint64)).null_count() == 2
    assert columns.texts(np.array([b"", b"NQ", b"\xff"], "S4")).to_list() == [None, "NQ", None]


@pytest.mark.parametrize(("version", "undefined"), [(1, 2**31 - 1), (2, 2**31 - 1), (3, 2**63 - 1)])
def test_undefined_quantities_depend_on_the_version(version: int, undefined: int) -> None:
    array = sample.records("statistics", 2, version)
    array["quantity"] = undefined, 5
    assert columns.sizes(array["quantity"]).to_list() == [None, 5]


def test_nulls_equal_the_official_client() -> None:
    times = [0, NOON, to_ns(datetime(2200, 1, 1, tzinfo=UTC)), 2**63 - 1, 2**63, 2**64 - 1]
    array = sample.trades(len(times))
    array["ts_recv"], array["price"][:2] = times, (2**63 - 1, -(2**63))
    raw = sample.head("trades") + array.tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        official = databento.DBNStore.from_bytes(raw).to_df().reset_index()
    ours = decode(raw, "trades").array
    assert columns.instants(ours["ts_recv"]).is_null().to_list() == official["ts_recv"].isna().to_list()
    assert columns.instants(ours["ts_recv"]).null_count() == 2
    assert columns.prices(ours["price"]).is_null().to_list() == official["price"].isna().to_list()
    assert columns.prices(ours["price"]).null_count() == 1
