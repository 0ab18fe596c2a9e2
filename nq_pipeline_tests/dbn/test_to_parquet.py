"""Parquet from DBN: equal to what the official client writes, whole or not at all, in bounded memory."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import warnings
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import databento
import databento_dbn
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.cli import main
from nq_pipeline.dbn import layout, stream
from nq_pipeline.dbn.to_parquet import ROW_GROUP_ROWS, convert
from nq_pipeline.errors import LakeError
from nq_pipeline_tests.testing import dbn_samples as sample
from nq_pipeline_tests.testing.dbn_samples import DAY, NOON
from nq_pipeline_tests.testing.recorded import SHARED

RECORDED = sorted((SHARED / "databento").glob("*.dbn.zst"))
SYMBOLS = {"NQU5": [(DAY, DAY + timedelta(1), "7")]}
"""What the sample trades are about."""


def official(path: Path, schema: str | None = None) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return databento.DBNStore.from_file(path).to_df(schema=schema)


def official_types(path: Path, out: Path) -> pa.Schema:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        databento.DBNStore.from_file(path).to_parquet(out)
    return pq.read_schema(out)


def assert_equal(ours: Path, theirs: pd.DataFrame, more: tuple[str, ...] = ()) -> None:
    """The same columns, types, values and index, bit for bit; `more` are columns of ours alone."""
    mine = pd.read_parquet(ours).drop(columns=list(more))
    if not theirs["symbol"].notna().any():  # a column of nothing has no type in pandas
        theirs = theirs.astype({"symbol": mine["symbol"].dtype})
    pd.testing.assert_frame_equal(mine, theirs, check_exact=True)


def written(folder: Path, raw: bytes, name: str = "in.dbn") -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


# ── equal to the official client ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name[:50])
def test_every_recorded_file_converts_with_every_field_equal(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours.parquet"
    done = convert(path, out)
    theirs = official(path)
    assert_equal(out, theirs)
    assert (done.records, done.cut, done.files[0].rows) == (len(theirs), "", len(theirs))
    assert done.files[0].unmapped == theirs["symbol"].isna().sum()
    mine, other = pq.read_schema(out), official_types(path, tmp_path / "theirs.parquet")
    if theirs["symbol"].notna().any():
        assert mine.equals(other)


@given(data=st.data())
def test_any_records_convert_like_the_official_client(data: st.DataObject, tmp_path: Path) -> None:
    schema = data.draw(st.sampled_from(sorted(layout.RTYPES)))
    # The official client reads daily bars at the end of the session in version 3 alone.
    version = data.draw(st.sampled_from([3] if schema == "ohlcv-eod" else layout.VERSIONS))
    count = data.draw(st.integers(1, 20))
    seed = data.draw(st.integers(0, 2**32 - 1))
    known = layout.record_layout(schema, version)
    random = np.random.default_rng(seed)
    array = random.integers(0, 256, count * known.dtype.itemsize, np.uint8).view(known.dtype).copy()
    array["length"], array["rtype"] = known.dtype.itemsize // 4, known.rtype
    array["instrument_id"] = random.integers(1, 5, count)
    for name in known.dtype.names or ():
        kind = known.dtype[name]
        if name in known.instants:
            array[name] = NOON + random.integers(-5 * 10**14, 5 * 10**14, count)
            array[name][random.random(count) < 0.2] = layout.UNDEF_TIMESTAMP
        elif name in known.prices:
            array[name][random.random(count) < 0.3] = layout.UNDEF_PRICE
        elif kind.kind == "S":
            letters = random.choice(list(b"\0 AZaz09~"), (count, kind.itemsize)).astype(np.uint8)
            array[name] = letters.view(kind)[:, 0]
        elif kind.kind in "iu" and name not in ("length", "rtype", "instrument_id"):
            array[name][random.random(count) < 0.3] = np.iinfo(kind).max
    symbols: dict[str, list[tuple[date, date, str]]] = {}
    for number in range(1, 5):
        first = DAY + timedelta(int(random.integers(-9, 5)))
        symbols[f"S{number}"] = [(first, first + timedelta(int(random.integers(1, 9))), str(number))]
    top, body = sample.head(schema, version, symbols=symbols), array.tobytes()
    forms = [top + body, sample.zstd(top + body), sample.zstd(top + body[:50], body[50:99], body[99:])]
    path = written(tmp_path, forms[seed % 3])
    convert(path, tmp_path / "ours.parquet")
    # The official client reads tcbbo as cbbo, and so without two columns of the record.
    more = ("action", "ts_in_delta") if schema == "tcbbo" else ()
    assert_equal(tmp_path / "ours.parquet", official(path), more)


@pytest.mark.parametrize("schema", [str(schema) for schema in databento_dbn.Schema.variants()])
def test_every_schema_of_the_vendor_is_read_in_every_version(schema: str, tmp_path: Path) -> None:
    for version in layout.VERSIONS:
        array = sample.records(schema, 3, version, instrument_id=7, ts_event=NOON)
        for top in (sample.head(schema, version), sample.head(None, version, stype_in=None)):
            done = convert(written(tmp_path, top + array.tobytes()), tmp_path / "out.parquet")
            assert [file.rows for file in done.files] == [3]
            assert not done.skipped


def test_bars_of_the_oldest_files_are_read(tmp_path: Path) -> None:
    array = sample.records("ohlcv-1d", 3, 1, instrument_id=7, ts_event=NOON, close=10**10)
    array["rtype"] = layout.OLD_BARS
    path = written(tmp_path, sample.head("ohlcv-1d", 1, symbols=SYMBOLS) + array.tobytes())
    convert(path, tmp_path / "out.parquet")
    assert_equal(tmp_path / "out.parquet", official(path))


def test_a_version_that_is_not_read_is_not_called_damage(tmp_path: Path) -> None:
    with pytest.raises(stream.UnsupportedDbn, match="DBN version 9 is not supported"):
        convert(written(tmp_path, b"DBN\x09" + bytes(200)), tmp_path / "out.parquet")


def test_an_id_used_again_is_the_symbol_of_its_day(tmp_path: Path) -> None:
    symbols = {
        "NQM5": [(DAY - timedelta(3), DAY, "7")],
        "NQU5": [(DAY, DAY + timedelta(1), "7")],
        "GONE": [(DAY, DAY + timedelta(9), "")],
    }
    day = 86_400 * 10**9
    array = sample.trades(6, ids=(7, 7, 8), start=NOON - 2 * day, step=day)
    path = written(tmp_path, sample.head("trades", symbols=symbols) + array.tobytes())
    done = convert(path, tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet")["symbol"].to_list() == [
        "NQM5", "NQM5", None, None, None, None
    ]  # fmt: skip
    assert done.files[0].unmapped == 4
    assert_equal(tmp_path / "out.parquet", official(path))


def test_several_row_groups_hold_all_records_in_order(tmp_path: Path) -> None:
    array = sample.trades(2 * ROW_GROUP_ROWS + 17)
    path = written(tmp_path, sample.zstd(sample.head("trades", symbols=SYMBOLS) + array.tobytes()))
    done = convert(path, tmp_path / "out.parquet")
    assert_equal(tmp_path / "out.parquet", official(path))
    footer = pq.read_metadata(tmp_path / "out.parquet")
    assert [footer.row_group(i).num_rows for i in range(3)] == [ROW_GROUP_ROWS, ROW_GROUP_ROWS, 17]
    assert done.files[0].bytes == (tmp_path / "out.parquet").stat().st_size


def test_duckdb_and_polars_read_the_same_values(tmp_path: Path) -> None:
    array = sample.trades(1000)
    array["sequence"] = 2**32 - 1 - np.arange(1000)
    array["ts_in_delta"] = np.resize([-(2**31), 2**31 - 1], 1000)
    array["ts_recv"][5] = layout.UNDEF_TIMESTAMP
    path = written(tmp_path, sample.head("trades", symbols=SYMBOLS) + array.tobytes())
    out = tmp_path / "out.parquet"
    convert(path, out)
    expected = pl.from_pandas(official(path).reset_index())
    assert pl.read_parquet(out).select(expected.columns).equals(expected)
    relation = duckdb.sql(f"select sequence, ts_in_delta, epoch_ns(ts_recv) as ts_recv, symbol from '{out}'")
    recv = expected["ts_recv"].dt.epoch("ns").alias("ts_recv")
    assert relation is not None and relation.pl().equals(
        expected.select("sequence", "ts_in_delta", recv, "symbol")
    )


def test_a_file_without_records_has_the_columns_all_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, sample.head("trades", symbols=SYMBOLS))
    done = convert(path, tmp_path / "empty.parquet")
    assert done.files[0].rows == 0
    full = written(tmp_path, sample.head("trades", symbols=SYMBOLS) + sample.trades(1).tobytes())
    assert pq.read_schema(tmp_path / "empty.parquet").equals(official_types(full, tmp_path / "full.parquet"))


def test_a_stream_is_read_without_seeking(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, raw: bytes) -> None:
            self.raw = raw

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            part, self.raw = self.raw[: min(1000, len(buffer))], self.raw[1000:]
            buffer[: len(part)] = part
            return len(part)

    raw = sample.zstd(sample.head("trades", symbols=SYMBOLS) + sample.trades(5000).tobytes())
    convert(io.BufferedReader(Pipe(raw)), tmp_path / "piped.parquet")
    convert(written(tmp_path, raw), tmp_path / "file.parquet")
    assert (tmp_path / "piped.parquet").read_bytes() == (tmp_path / "file.parquet").read_bytes()


# ── live captures ───────────────────────────────────────────────────────────────────────────────


def capture() -> tuple[bytes, dict[str, np.ndarray]]:
    """A live capture: mappings, a heartbeat, and records of four schemas that alternate at random."""
    random = np.random.default_rng(5)
    kinds = {
        "trades": sample.trades(4000, ids=(7, 8, 9)),
        "mbp-1": sample.records("mbp-1", 3000, instrument_id=8, ts_recv=NOON + np.arange(3000), side=b"B"),
        "ohlcv-1s": sample.records("ohlcv-1s", 500, instrument_id=7, ts_event=NOON, close=10**10),
        "definition": sample.records("definition", 50, instrument_id=7, ts_recv=NOON, raw_symbol=b"NQU5"),
    }
    order = random.permutation(np.repeat(list(kinds), [len(array) for array in kinds.values()]))
    rows = {schema: iter(array) for schema, array in kinds.items()}
    parts = [next(rows[schema]).tobytes() for schema in order]
    system = bytes(databento_dbn.SystemMsg(ts_event=NOON, msg="Heartbeat"))
    parts[0:0] = [
        sample.mapping(7, "NQ.FUT", "NQU5"),
        sample.mapping(8, "NQZ5", "8", NOON - NOON % (86_400 * 10**9), NOON + 86_400 * 10**9),
    ]
    parts.insert(1000, system)
    return sample.head(None, stype_in=None) + b"".join(parts), kinds


def test_a_live_capture_becomes_one_file_per_schema(tmp_path: Path) -> None:
    raw, kinds = capture()
    path = written(tmp_path, raw)
    done = convert(path, tmp_path / "out.parquet")
    assert {file.schema: file.rows for file in done.files} == {k: len(v) for k, v in kinds.items()}
    assert done.skipped == {"symbol_mapping": 2, "system": 1}
    assert done.records == sum(file.rows for file in done.files) + sum(done.skipped.values())
    for schema in kinds:
        assert_equal(tmp_path / f"out.{schema}.parquet", official(path, schema))
    trades = pl.read_parquet(tmp_path / "out.trades.parquet")
    names = trades.group_by("instrument_id").agg(pl.col("symbol").first()).sort("instrument_id")
    assert names["symbol"].to_list() == ["NQU5", "NQZ5", None]
    assert {file.schema: file.unmapped for file in done.files}["trades"] == 1333


def test_ts_out_is_a_column_where_the_gateway_sent_it(tmp_path: Path) -> None:
    array = sample.records("trades", 3, ts_out=True, ts_recv=NOON, instrument_id=7)
    array["ts_out"] = NOON + np.arange(3)
    raw = sample.head(None, ts_out=True, stype_in=None) + array.tobytes()
    convert(written(tmp_path, raw), tmp_path / "out.parquet")
    sent = pl.read_parquet(tmp_path / "out.trades.parquet")["ts_out"]
    assert sent.dt.epoch("ns").to_list() == [NOON, NOON + 1, NOON + 2]


@given(
    lengths=st.lists(
        st.one_of(st.integers(4, 255), st.sampled_from([12, 14, 20])).flatmap(
            lambda words: st.integers(1, 40).map(lambda times: [words] * times)
        ),
        max_size=60,
    ),
    tail=st.binary(max_size=15),
)
def test_the_walk_finds_every_record_whatever_their_lengths(lengths: list[list[int]], tail: bytes) -> None:
    flat = [words for run in lengths for words in run]
    random = np.random.default_rng(len(flat))
    raw = b"".join(bytes([words]) + random.bytes(4 * words - 1) for words in flat)
    ends = np.cumsum([4 * words for words in flat], dtype=np.int64)
    starts, kinds, end, bad = layout.walk_records(raw + (b"\xff" + tail if tail else b""), layout.WELL_FORMED)
    assert (end, bad) == (len(raw), False)
    assert starts.tolist() == [0, *ends.tolist()][: len(flat)]
    assert kinds.tolist() == [int.from_bytes(raw[at : at + 2], "little") for at in starts.tolist()]


# ── cut off and damaged ─────────────────────────────────────────────────────────────────────────


@given(data=st.data(), compressed=st.booleans(), mixed=st.booleans())
def test_a_cut_file_is_refused_or_its_whole_records_converted(
    data: st.DataObject, compressed: bool, mixed: bool, tmp_path: Path
) -> None:
    array = sample.trades(300)
    top = sample.head(None, stype_in=None) if mixed else sample.head("trades", symbols=SYMBOLS)
    raw = top + array.tobytes()
    body = sample.zstd(raw) if compressed else raw
    cut = data.draw(st.integers(0, len(body) - 1))
    path, out = written(tmp_path, body[:cut]), tmp_path / "out.parquet"
    kept_path = tmp_path / ("out.trades.parquet" if mixed else "out.parquet")
    kept_path.unlink(missing_ok=True)
    if not compressed and cut >= len(top) and (cut - len(top)) % 48 == 0:
        assert convert(path, out).records == (cut - len(top)) // 48  # nothing shows that more was to come
        return
    with pytest.raises(stream.TruncatedDbn) as caught:
        convert(path, out)
    assert not kept_path.exists()
    if not compressed and cut > len(top):
        assert caught.value.records == (cut - len(top)) // 48
        assert f"after {caught.value.records:,} whole records" in str(caught.value)
    if compressed or cut <= len(top):
        return
    done = convert(path, out, keep_complete=True)
    assert done.records == caught.value.records and done.cut == str(caught.value)
    if done.records:
        prices = pl.read_parquet(kept_path)["price"].to_numpy()
        assert (prices == array["price"][: done.records] / 1e9).all()


@pytest.mark.parametrize("kept", range(9))
@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_cut_in_its_first_bytes_is_truncated_not_damaged(
    tmp_path: Path, kept: int, compressed: bool
) -> None:
    raw = sample.head("trades", symbols=SYMBOLS)
    path = written(tmp_path, (sample.zstd(raw) if compressed else raw)[:kept])
    with pytest.raises(stream.TruncatedDbn):
        convert(path, tmp_path / "out.parquet")


def test_the_blocks_before_a_cut_in_zstd_are_kept(tmp_path: Path) -> None:
    array = sample.trades(50_000)
    array["price"] = np.random.default_rng(1).integers(0, 2**62, len(array))
    body = sample.zstd(sample.head("trades", symbols=SYMBOLS) + array.tobytes())
    path, out = written(tmp_path, body[:-100]), tmp_path / "out.parquet"
    with pytest.raises(stream.TruncatedDbn, match="ends within a zstd frame"):
        convert(path, out)
    done = convert(path, out, keep_complete=True)
    assert 40_000 < done.files[0].rows < 50_000
    assert_equal(out, official(path))


@pytest.mark.parametrize("schema", ["trades", None])
@pytest.mark.parametrize("tail", [bytes(4096), bytes(100), b"\x01" * 200], ids=["zeros", "few zeros", "ones"])
def test_what_is_no_record_ends_a_file(schema: str | None, tail: bytes, tmp_path: Path) -> None:
    top = sample.head(schema, symbols=SYMBOLS)
    path = written(tmp_path, top + sample.trades(10).tobytes() + tail)
    with pytest.raises(stream.TruncatedDbn, match="after 10 whole records"):
        convert(path, tmp_path / "out.parquet")
    assert convert(path, tmp_path / "out.parquet", keep_complete=True).files[0].rows == 10


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"Not DBN at all, just text", "is not a DBN file"),
        (b"DBN\x03\xff\xff\xff\xff" + bytes(200), "more than is accepted"),
        (b"DBN\x03\x64\x00\x00\x00" + b"\xee" * 200, "cannot be read"),
        (sample.head("trades") + sample.records("status", 6).tobytes(), "not a record of trades, after 0"),
        (sample.head("trades", symbols={"NQ": [(DAY, DAY, "seven")]}), "not an instrument_id"),
        (sample.head("trades", symbols={"NQ": [(DAY, DAY, str(2**32))]}), "not an instrument_id"),
    ],
    ids=["text", "head", "metadata", "kind", "symbols", "number"],
)
def test_bytes_that_are_no_dbn_are_refused(raw: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(LakeError, match=words):
        convert(written(tmp_path, raw), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("raw", [b"", b"D", b"DBN\x03"])
def test_a_file_of_a_few_bytes_is_truncated(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(stream.TruncatedDbn, match="within its header"):
        convert(written(tmp_path, raw), tmp_path / "out.parquet")


def test_a_record_of_the_wrong_length_is_damage(tmp_path: Path) -> None:
    array = sample.trades(3).tobytes()
    raw = sample.head(None, stype_in=None) + array[:48] + b"\x10" + array[49:96] + bytes(16)
    with pytest.raises(stream.DamagedDbn, match="length"):
        convert(written(tmp_path, raw), tmp_path / "out.parquet")


def test_text_that_is_not_utf_8_is_damage(tmp_path: Path) -> None:
    array = sample.trades(3)
    array["side"][1] = b"\xff"
    with pytest.raises(LakeError, match="side"):
        convert(written(tmp_path, sample.head("trades") + array.tobytes()), tmp_path / "out.parquet")


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_converting_again_gives_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, capture()[0])
    convert(path, tmp_path / "out.parquet")
    first = {f.name: hashlib.sha256(f.read_bytes()).digest() for f in tmp_path.iterdir()}
    convert(path, tmp_path / "out.parquet")
    assert {f.name: hashlib.sha256(f.read_bytes()).digest() for f in tmp_path.iterdir()} == first


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    raw = sample.head("trades", symbols=SYMBOLS) + sample.trades(ROW_GROUP_ROWS + 10).tobytes()
    convert(written(tmp_path, raw), tmp_path / "out.parquet")
    before = (tmp_path / "out.parquet").read_bytes()
    path = written(tmp_path, raw[:-1])
    with pytest.raises(stream.TruncatedDbn):
        convert(path, tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["in.dbn", "out.parquet"]


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    path = written(tmp_path, sample.head("trades"))
    with pytest.raises(LakeError, match="was not written"):
        convert(path, path / "out.parquet")
    with pytest.raises(LakeError, match="overwrite itself"):
        convert(path, path)


def test_the_command_reports_the_file_it_wrote(tmp_path: Path) -> None:
    def nq(*words: str) -> Result:
        return CliRunner().invoke(main, ["convert", *words])

    path = written(
        tmp_path, sample.head("trades", symbols=SYMBOLS) + sample.trades(5).tobytes(), "in.dbn.zst"
    )
    done = nq(str(path))
    assert (done.exit_code, done.output.split(":")[1][:9]) == (0, " 5 trades")
    assert_equal(tmp_path / "in.parquet", official(path))
    path.write_bytes(path.read_bytes()[:-1])
    refused = nq(str(path), "-o", "other.parquet")
    assert refused.exit_code == 1 and "after 4 whole records" in refused.output
    assert (
        "Incomplete: in.dbn.zst ends within a record"
        in nq(str(path), "-o", "other.parquet", "--keep-complete").output
    )
    kept = json.loads(nq(str(path), "-o", "other.parquet", "--keep-complete", "--json").output)
    assert kept["records"] == 4 and kept["files"][0]["rows"] == 4 and "within a record" in kept["cut"]
    assert nq("nowhere.dbn").exit_code == 2
    live = nq(str(written(tmp_path, capture()[0], "live.dbn"))).output
    assert "live.definition.parquet: 50 definition" in live
    assert "2 records of kind symbol_mapping have no table." in live


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_stays_flat_as_the_file_grows_tenfold(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from nq_pipeline.dbn.to_parquet import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]))
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    peaks = []
    for count in (500_000, 5_000_000):
        array = sample.trades(count, ids=range(1, 3001), step=10**13 // count)
        path = written(tmp_path, sample.zstd(sample.head("trades", symbols=SYMBOLS) + array.tobytes()))
        command = [sys.executable, "-c", code, str(path), str(tmp_path / "out.parquet")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] < 1.1 * peaks[0]


def test_pandas_is_not_loaded(tmp_path: Path) -> None:
    path = written(tmp_path, capture()[0])
    code = (
        "import sys; from pathlib import Path; from nq_pipeline.dbn.to_parquet import convert\n"
        "convert(Path(sys.argv[1]), Path('out.parquet')); assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=tmp_path)
