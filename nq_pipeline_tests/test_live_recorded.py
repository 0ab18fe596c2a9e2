"""The main job on real input: recorded answers over HTTP, `nq run` in live, compared cell by cell.

The comparison reads the recorded JSON itself and shares no code with the parser.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from click.testing import CliRunner

from nq_pipeline.cli import main
from nq_pipeline.lake import catalog
from nq_pipeline.workspace import Workspace

CHICAGO = ZoneInfo("America/Chicago")
BOARDS = {
    "chain_MC2M25_20250610T1449Z.json": ("MC2M25", "Q2C-2025-06-11", "2025-06-10T14:49:00Z"),
    "chain_MC4M25_20250612T1418Z.json": ("MC4M25", "Q4C-2025-06-25", "2025-06-12T14:18:00Z"),
    "chain_MC6M25_20250602_after_expiry.json": ("MC6M25", "Q1A-2025-06-02", "2025-06-02T21:30:00Z"),
    "chain_MC6N5_20250625.json": ("MC6N25", "Q1A-2025-07-07", "2025-06-25T19:22:00Z"),
    "chain_MC7M25_20250609T0532Z_expiry_eve.json": ("MC7M25", "Q2A-2025-06-09", "2025-06-09T05:32:00Z"),
    "chain_MQ4M25_20250627T0433Z.json": ("MQ4M25", "QN4-2025-06-27", "2025-06-27T04:33:00Z"),
}

SETTLED = {
    "chain_MC2M25_20250610T1449Z.json": date(2025, 6, 9),
    "chain_MC4M25_20250612T1418Z.json": date(2025, 6, 11),
    "chain_MC6N5_20250625.json": date(2025, 6, 24),
    "chain_MC7M25_20250609T0532Z_expiry_eve.json": date(2025, 6, 6),
    "chain_MQ4M25_20250627T0433Z.json": date(2025, 6, 26),
}
"""The last trade date that had settled when a board was recorded; without one, its own."""


@contextmanager
def recorded(shared: Path, boards: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A server that knows recorded answers and nothing else; yields its address and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            parts = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(parts.query).items()}
            status, body = self._answer(parts.path, query)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
            if path == "/proxies/core-api/v1/quotes/get" and query.get("symbol") in boards:
                return 200, (shared / "barchart" / boards[query["symbol"]]).read_bytes()
            if path == "/proxies/core-api/v1/quotes/get":
                return 200, (shared / "barchart" / "chain_empty_20250608.json").read_bytes()
            if path == "/v3/snapshot/options/I:NDX":
                observed = json.loads((shared / "polygon" / "errors_observed_verbatim.json").read_text())
                return observed[0]["http_status"], json.dumps(observed[0]["body"]).encode()
            if path == "/v3/reference/options/contracts" and "cursor" not in query:
                return 200, (
                    shared / "polygon" / "reference_options_contracts_NDX_20250610.json"
                ).read_bytes()
            if path == "/v3/reference/options/contracts":
                return 200, b'{"results":[],"status":"OK","request_id":"last"}'
            return 404, b"{}"

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def nq(data: Path, *words: str, **settings: str) -> dict[str, Any]:
    environment = {"NQ_DATA_DIR": str(data), "NQ_ENVIRONMENT": "live", **settings}
    done = CliRunner().invoke(main, [*words, "--json"], env=environment)
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("board", BOARDS)
def test_a_recorded_board_arrives_in_the_lake_cell_by_cell(shared: Path, tmp_path: Path, board: str) -> None:
    code, series, now = BOARDS[board]
    with recorded(shared, {code: board}) as (url, _):
        report = nq(
            tmp_path,
            "run", "--source", "barchart", "--series", series,
            NQ_NOW=now, NQ_BARCHART_URL=url, NQ_BARCHART_SPACING_S="0",
        )  # fmt: skip
    payload = json.loads((shared / "barchart" / board).read_text())
    rows = [row for side in payload["data"].values() for row in side]
    with catalog.connect(Workspace(tmp_path / "live").lake) as lake:
        frame = lake.sql("select * from option_chain_latest").pl()
        kept = lake.sql("select * from source_chain").pl()
    assert report["winners"] == {"barchart": len(rows)}
    assert frame.height == kept.height == len(rows) == payload["total"]
    trade_date = date.fromisoformat(report["trade_date"])
    have = {row["vendor_symbol"]: row for row in frame.iter_rows(named=True)}
    for row in rows:
        expected = cells(row, trade_date, SETTLED.get(board, trade_date))
        found = have[row["symbol"]]
        assert {name: found[name] for name in expected} == expected, row["symbol"]
        assert found["series"] == series and found["multiplier"] == 20 and found["environment"] == "live"


def cells(row: dict[str, Any], trade_date: date, last_settled: date) -> dict[str, Any]:
    """What the lake must say of one recorded row: display and raw read together."""
    raw = row["raw"]

    def shown(name: str) -> float | None:
        return None if row[name] == "N/A" else float(raw[name])

    settled = row["lastPrice"].endswith("s")
    price = shown("lastPrice")
    when = datetime.fromtimestamp(raw["tradeTime"], UTC)
    if "CT" in row["tradeTime"]:
        local = when.astimezone(CHICAGO)
        session = local.date() + timedelta(days=local.hour >= 17)
        while session.weekday() > 4:
            session += timedelta(days=1)
    else:
        session = datetime.strptime(row["tradeTime"], "%m/%d/%y").date()
    counts = row["volume"] != "N/A" and session == trade_date
    return {
        "strike": float(raw["strike"]),
        "option_type": row["optionType"][0],
        "bid": shown("bidPrice"),
        "ask": shown("askPrice"),
        "last": None if settled else price,
        "settlement": price if settled else None,
        "settlement_date": min(session, last_settled) if settled else None,
        "is_settlement": settled,
        "open": shown("openPrice"),
        "high": shown("highPrice"),
        "low": shown("lowPrice"),
        "change": shown("priceChange"),
        "volume": raw["volume"] if counts else None,
        "open_interest": None if row["openInterest"] == "N/A" else raw["openInterest"],
    }


def test_recorded_ndx_contracts_are_proxies_and_lose(shared: Path, tmp_path: Path) -> None:
    code, series, now = BOARDS["chain_MC2M25_20250610T1449Z.json"]
    with recorded(shared, {code: "chain_MC2M25_20250610T1449Z.json"}) as (url, asked):
        report = nq(
            tmp_path,
            "run", "--series", series, "--series", "NQ-2029-12-21",
            NQ_NOW=now, NQ_SOURCES="polygon,barchart", NQ_BARCHART_ENABLED="true", NQ_BARCHART_URL=url,
            NQ_BARCHART_SPACING_S="0", NQ_POLYGON_URL=url, NQ_POLYGON_RPM="0", POLYGON_API_KEY="not-a-key",
        )  # fmt: skip
    contracts = json.loads(
        (shared / "polygon" / "reference_options_contracts_NDX_20250610.json").read_text()
    )["results"]
    with catalog.connect(Workspace(tmp_path / "live").lake) as lake:
        proxies = lake.sql("select * from source_chain where source = 'polygon'").pl()
        chain = lake.sql("select distinct source, underlying_class from option_chain_latest").pl()
    assert report["sources"]["polygon"]["outcome"] == "partial"
    assert sorted(proxies["vendor_symbol"]) == sorted(c["ticker"] for c in contracts)
    for contract in contracts:
        row = proxies.row(by_predicate=pl.col("vendor_symbol") == contract["ticker"], named=True)
        assert row["strike"] == contract["strike_price"]
        assert row["option_type"] == contract["contract_type"][0].upper()
        assert row["expiration_date"].isoformat() == contract["expiration_date"]
        assert row["exercise_style"] == contract["exercise_style"]
        assert row["multiplier"] == contract["shares_per_contract"]
        assert row["underlying_class"] == "index"
        assert all(row[name] is None for name in ("bid", "ask", "last", "volume", "open_interest"))
    assert chain.rows() == [("barchart", "future")]
    assert not any("not-a-key" in path for path in asked)
