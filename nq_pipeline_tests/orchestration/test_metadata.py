"""What travels in metadata: tables in which nothing is markup, and a small picture."""

from __future__ import annotations

import base64
import re
import socket
from datetime import UTC, date, datetime
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.analytics import metrics
from nq_pipeline.analytics.metrics import measure
from nq_pipeline.chains.request import build_request
from nq_pipeline.charts import series_label_text
from nq_pipeline.configuration import build_settings, load
from nq_pipeline.lake.tables import SOURCE_CHAIN
from nq_pipeline.market.pricing import price_chain
from nq_pipeline.orchestration.metadata import catalog, of_partition
from nq_pipeline.report.markdown import (
    INLINE,
    MOST_ROWS,
    chart,
    front_open_interest,
    metric_charts,
    metric_sparklines,
    pressure_charts,
    sparkline,
    table,
)
from nq_pipeline_tests.testing import chart_frames
from nq_pipeline_tests.testing.fake_vendors import STRIKES, chain
from nq_pipeline_tests.testing.s3 import Bucket

SVG = "{http://www.w3.org/2000/svg}"
REQUEST = build_request(
    build_settings(now=datetime(2025, 6, 10, 15, tzinfo=UTC), horizon_days=1, far_expirations=False)
)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_a_table_keeps_its_shape_whatever_a_vendor_sends(cells: list[str]) -> None:
    lines = table(pl.DataFrame({"reason": cells, "n": range(len(cells))}))
    rows = lines.split("\n")
    assert len(rows) == 2 + len(cells)
    for row in rows:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3
        assert not re.search(r"(?<!\\)(?:\\\\)*[<\[`]", row)


def test_a_long_table_is_cut_and_says_so() -> None:
    text = table(pl.DataFrame({"n": range(MOST_ROWS + 3)}))
    assert text.endswith("3 more rows are in the lake.")


def test_a_thumbnail_is_a_whole_picture_and_stays_small() -> None:
    table = chart(front_open_interest(chain(REQUEST, "barchart"), rate=0.04))
    assert len(table) < 40_000
    name = series_label_text(REQUEST.series[0].key)
    assert table.startswith(f"![Open interest, {name}](data:image/svg+xml;base64,")
    svg = base64.b64decode(table.partition("base64,")[2].rstrip(")"))
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert any(text.startswith("future 21,5") for text in texts)
    assert any(f"{40 * len(STRIKES):,} calls, {40 * len(STRIKES):,} puts" in text for text in texts)


def test_without_open_interest_a_sentence_replaces_the_chart() -> None:
    frame = chain(REQUEST, "databento").with_columns(open_interest=pl.lit(None, pl.Int64))
    text = chart(front_open_interest(frame, rate=0.04))
    assert text == "No open interest: no vendor sent any."


def test_every_metric_has_a_picture_of_one_product() -> None:
    frame = chain(REQUEST, "barchart")
    priced = metrics.priced_chain(frame, price_chain(frame, rate=0.04))
    measured = {table.name: rows for table, rows in measure(priced).items()}
    pictures = metric_charts(measured, "NQ")
    assert set(measured) - set(pictures) == {"constant_maturity"}, "its five numbers are a table"
    assert all(chart(picture).startswith("![") for picture in pictures.values())
    assert all(isinstance(picture, str) for picture in metric_charts(measured, "ES").values())


def test_every_metric_has_a_sparkline_that_dagster_shows_inline() -> None:
    frame = chain(REQUEST, "barchart")
    priced = metrics.priced_chain(frame, price_chain(frame, rate=0.04))
    drawn = metric_sparklines({table.name: rows for table, rows in measure(priced).items()}, "NQ")
    for name, curve in drawn.items():
        assert curve and len(curve) < INLINE, name
        (line,) = ElementTree.fromstring(base64.b64decode(curve.partition("base64,")[2].rstrip(")")))
        assert 2 <= len(line.attrib["points"].split()) <= 40


@pytest.mark.parametrize(
    "points", [{"x": [], "y": []}, {"x": [1.0], "y": [2.0]}, {"x": [1.0, 2.0], "y": [None, 3.0]}]
)
def test_fewer_than_two_points_are_no_curve(points: dict[str, list[float]]) -> None:
    assert sparkline(pl.DataFrame(points, schema={"x": pl.Float64, "y": pl.Float64}), "a curve") == ""


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), min_size=2, max_size=3000))
def test_a_curve_of_any_points_is_short(points: list[tuple[float, float]]) -> None:
    drawn = sparkline(pl.DataFrame(points, schema=["x", "y"], orient="row"), "open interest by strike")
    assert len(drawn) < INLINE and "nan" not in drawn


def test_pressure_shows_calls_and_puts() -> None:
    rows = chart_frames.pressure().with_columns(root=pl.lit("Q1B"))
    assert pressure_charts(rows, "NQ").count("![Pressure, ") == 2
    assert "![" not in pressure_charts(rows, "ES")


def test_a_file_of_a_host_has_its_name_where_hosts_share_a_lake(tmp_path: Path) -> None:
    alone = build_settings(data_dir=tmp_path)
    shared = build_settings(data_dir=tmp_path, lake_url="s3://bucket/lakes")
    file = tmp_path / "sandbox" / "nq.duckdb"
    assert catalog(alone).value == str(file)
    assert catalog(shared).value == f"file://{socket.gethostname()}{file}"


def test_rows_of_an_object_store_have_its_address(tmp_path: Path, bucket: Bucket) -> None:
    settings = load(data_dir=tmp_path, lake_url=bucket.url)
    shown = of_partition(SOURCE_CHAIN, date(2025, 6, 10), settings)
    where = f"{bucket.url}/sandbox/lake/source_chain/trade_date=2025-06-10"
    assert shown == {"dagster/partition_row_count": 0, "dagster/uri": where, "folder": where}
