"""What travels in metadata: tables in which nothing is markup, and a small picture."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from xml.etree import ElementTree

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from nq_pipeline.orchestration.metadata import MOST_ROWS, markdown
from nq_pipeline.orchestration.plots import open_interest_by_strike
from nq_pipeline.settings import Settings
from nq_pipeline.sources.snapshot import build_request
from nq_pipeline_tests.orchestration.fakes import STRIKES, chain

REQUEST = build_request(Settings(now=datetime(2025, 6, 10, 15, tzinfo=UTC), horizon_days=1))


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_whatever_a_vendor_sends_a_table_keeps_its_rows_and_columns(cells: list[str]) -> None:
    lines = markdown(pl.DataFrame({"reason": cells, "n": range(len(cells))})).md_str
    rows = (lines or "").split("\n")
    assert len(rows) == 2 + len(cells)
    for row in rows:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3
        assert not re.search(r"(?<!\\)(?:\\\\)*[<\[`]", row)


def test_a_long_table_is_cut_and_says_so() -> None:
    text = markdown(pl.DataFrame({"n": range(MOST_ROWS + 3)})).md_str or ""
    assert text.endswith("3 more rows are in the lake.")


def test_the_picture_has_a_bar_for_every_strike_with_open_interest_and_stays_small() -> None:
    picture = open_interest_by_strike(chain(REQUEST, "barchart"))
    assert picture is not None and len(picture) < 30_000
    assert picture.startswith(f"![open interest of {REQUEST.series[0]}]")
    svg = base64.b64decode(picture.partition("base64,")[2].rstrip(")"))
    paths = [p.get("d", "") for p in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")]
    assert [path.count("v") for path in paths[-2:]] == [len(STRIKES), len(STRIKES)]


def test_without_open_interest_there_is_no_picture() -> None:
    frame = chain(REQUEST, "databento").with_columns(open_interest=pl.lit(None, pl.Int64))
    assert open_interest_by_strike(frame) is None
