"""Gaps that the live gateway no longer replays, filled from the historical stand-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nq_pipeline.capture.gap_repair import EDGE_NS, GapRepairer, HistoricalRecords
from nq_pipeline.capture.gaps import Gap
from nq_pipeline.capture.gateway import future_parents, option_parents
from nq_pipeline.clock import ShiftedClock, to_ns
from nq_pipeline.configuration import build_settings
from nq_pipeline.dbn.framer import read_frames
from nq_pipeline.errors import BadStream, CaptureError
from nq_pipeline.lake.tables import TRADES
from nq_pipeline.sandbox.synthetic.market import market
from nq_pipeline.sandbox.synthetic.tape import tape
from nq_pipeline.sandbox.vendors.databento.account import account_of
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.gap_history import DatabentoHistory
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.workspace import Workspace
from nq_pipeline_tests.testing import dbn_samples as sample
from nq_pipeline_tests.testing import standin
from nq_pipeline_tests.testing.capture_runs import (
    CLOSES,
    NOW,
    OPENS,
    all_verified,
    read_gaps,
    run_capture,
    serve_gateway,
)
from nq_pipeline_tests.testing.historical_feed import USD_PER_GB, Historical

PARENTS = option_parents() + future_parents()
LATER = NOW + timedelta(days=2)
FIRST, LAST = to_ns(OPENS + timedelta(hours=1)), to_ns(OPENS + timedelta(hours=1, minutes=2))
LOST = Gap("lost", "trades", FIRST, LAST, "not running", state="unfillable", reason="too old; and so on")
KEY = ["instrument_id", "ts_event", "sequence", "ordinal"]


def truth(first: int = FIRST, last: int = LAST) -> Any:
    """What was received in a span, and within the second after it."""
    return tape(market(7)).records("trades", first, last + EDGE_NS)


@contextmanager
def repairs(
    history: HistoricalRecords,
    root: Path,
    *,
    buys: bool = True,
    wait_for_publication: Callable[[], None] = lambda: None,
) -> Iterator[GapRepairer]:
    with GapRepairer(
        history,
        Workspace(root).lake,
        buys=buys,
        run_id="run",
        clock=ShiftedClock(LATER),
        wait_for_publication=wait_for_publication,
    ) as running:
        yield running


def repaired(history: HistoricalRecords, root: Path, gap: Gap = LOST, **more: Any) -> Gap:
    with repairs(history, root, **more) as running:
        running.request(gap, PARENTS)
        while running.busy:
            for found in running.finished():
                return found
    raise AssertionError("nothing came of it")


def rows(root: Path) -> pl.DataFrame:
    return Workspace(root).lake.scan(TRADES).collect()


def test_a_gap_is_bought_counted_and_in_the_lake_once(tmp_path: Path) -> None:
    history, wanted = Historical(tmp_path, LATER), truth()
    gap = repaired(history, tmp_path)
    assert (gap.state, gap.filled_by, gap.reason) == ("verified", "historical", "")
    assert gap.replayed == gap.counted == len(wanted) > 100
    assert float(gap.cost_usd) == pytest.approx(wanted.nbytes / 2**30 * USD_PER_GB)
    found = rows(tmp_path)
    assert found.height == len(wanted) == found.select(KEY).n_unique()
    assert found["raw_symbol"].null_count() == 0 and set(found["instrument_kind"]) >= {"option", "future"}
    assert found["publish_latency_ns"].null_count() == found.height


def test_what_the_lake_holds_already_is_proven_and_not_bought_again(tmp_path: Path) -> None:
    history = Historical(tmp_path, LATER)
    repaired(history, tmp_path)
    again = repaired(history, tmp_path)
    assert len(history.bought) == 1
    assert (again.state, again.filled_by, again.cost_usd) == ("verified", "already there", Decimal(0))
    replayed = repaired(history, tmp_path, replace(LOST, filled_by="live replay"), buys=False)
    assert (replayed.state, replayed.filled_by) == ("verified", "live replay")


def test_a_bought_gap_says_what_the_lake_has_too_often(tmp_path: Path) -> None:
    history = Historical(tmp_path, LATER)
    repaired(history, tmp_path)
    twice = rows(tmp_path).head(1).with_columns(ordinal=pl.lit(9, pl.UInt32))
    Workspace(tmp_path).lake.append(TRADES, twice, run_id="run")
    history.folder = tmp_path / "again"
    history.folder.mkdir()
    gap = repaired(history, tmp_path)
    assert (gap.state, gap.published) == ("verified", len(truth()) + 1)
    assert gap.is_verified_but_differs and "1 more" in gap.reason


def test_without_permission_to_buy_the_price_is_the_reason(tmp_path: Path) -> None:
    history = Historical(tmp_path, LATER)
    gap = repaired(history, tmp_path, buys=False)
    assert (gap.state, gap.cost_usd, history.bought) == ("unfillable", Decimal(0), [])
    assert gap.reason == (
        f"too old; the historical API has it for ${truth().nbytes / 2**30 * USD_PER_GB:.4f}: "
        "NQ_CAPTURE_REPAIR=paid buys it"
    )
    # The same answer the next time is no further state of the gap.
    assert repaired(history, tmp_path, gap, buys=False) is gap


def test_a_refusal_of_the_ledger_is_the_reason_and_costs_nothing(tmp_path: Path) -> None:
    gap = repaired(Historical(tmp_path, LATER, budget=0.0), tmp_path)
    assert (gap.state, gap.cost_usd, rows(tmp_path).height) == ("unfillable", Decimal(0), 0)
    assert gap.reason.endswith("$0.00 are left today")


def test_nothing_is_bought_while_what_was_captured_is_not_published(tmp_path: Path) -> None:
    def failing() -> None:
        raise CaptureError("rows are not being published")

    history = Historical(tmp_path, LATER)
    gap = repaired(history, tmp_path, wait_for_publication=failing)
    assert (gap.state, gap.reason, history.bought) == ("unfillable", "rows are not being published", [])


def test_a_bought_file_below_the_count_verifies_nothing(tmp_path: Path) -> None:
    history = Historical(tmp_path, LATER, withheld=3)
    gap = repaired(history, tmp_path)
    number = len(truth())
    assert gap.state == "unfillable" and gap.cost_usd > 0 and gap.filled_by == "historical"
    assert gap.reason == f"the historical API gave {number - 3:,} records but counts {number:,}"


def test_a_truncated_bought_file_is_refused(tmp_path: Path) -> None:
    day = (sample.DAY, sample.DAY + timedelta(1), "7")
    whole = sample.head("trades", symbols={"NQU5": [day]}) + sample.trades(20).tobytes()
    border = len(whole) - 10 * 48
    body, first = sample.zstd(whole[:border], whole[border:]), len(sample.zstd(whole[:border]))
    path = tmp_path / "bought.dbn.zst"
    path.write_bytes(body)
    assert sum(len(frame) for frame in read_frames(path)) == 1 + 20, "the mapping and the trades"
    for cut in sorted({*range(len(body))} - {first}):
        path.write_bytes(body[:cut])
        with pytest.raises(BadStream):
            list(read_frames(path))


def test_a_gap_over_several_sessions_is_bought_session_by_session(tmp_path: Path) -> None:
    first, last = to_ns(CLOSES + timedelta(minutes=58)), to_ns(CLOSES + timedelta(hours=2, minutes=1))
    history = Historical(tmp_path, LATER)
    gap = repaired(history, tmp_path, replace(LOST, first_ns=first, last_ns=last))
    assert gap.state == "verified" and len(history.bought) == 2
    assert rows(tmp_path).height == len(truth(first, last))


def metered(root: Path, **more: Any) -> Settings:
    """Settings with which the historical stand-in is asked, and paid through the ledger."""
    now = LATER.isoformat().replace("+00:00", "Z")
    return build_settings(
        data_dir=root,
        databento_api_key=f"db-{root.name:x>29}",
        databento_url=f"{standin.address()}/with/now={now}/databento",
        http_timeout_s=120,
        **more,
    )


def test_what_is_bought_is_a_line_of_the_ledger(tmp_path: Path) -> None:
    settings = metered(tmp_path)
    gap = repaired(DatabentoHistory(settings), tmp_path)
    assert gap.state == "verified" and rows(tmp_path).height == gap.counted == len(truth())
    spent = open_ledger(settings).month().by_purpose["gap_repair"]
    assert (spent.metered_usd, spent.reserved_usd) == (gap.cost_usd, Decimal(0)) and gap.cost_usd > 0


def test_without_a_budget_nothing_metered_is_requested(tmp_path: Path) -> None:
    settings = metered(tmp_path, budget_daily_usd=0)
    gap = repaired(DatabentoHistory(settings), tmp_path)
    assert (gap.state, gap.cost_usd) == ("unfillable", Decimal(0)) and "NQ_BUDGET_DAILY_USD" in gap.reason
    key = settings.vendor(DatabentoSettings).api_key
    assert key is not None
    asked = account_of(key.get_secret_value()).requests
    assert asked and not any(request["metered"] for request in asked)


def test_a_capture_buys_what_the_gateway_no_longer_replays(tmp_path: Path) -> None:
    with serve_gateway(load=None) as it:
        run_capture(it, tmp_path, all_verified)
    with serve_gateway(now=LATER, load=None) as it:
        history = Historical(tmp_path, LATER)
        totals = run_capture(
            it,
            tmp_path,
            lambda r: all_verified(r) and r.stats.cost_usd,
            history=history,
            capture_repair="paid",
        )
    found = read_gaps(tmp_path)
    bought = found.filter(pl.col("filled_by") == "historical")
    assert set(found["state"]) == {"verified"} and totals.unfillable_gaps == 0
    assert totals.alerts() == [] and totals.cost_usd == bought["cost_usd"].sum() > 0
    # Of the first day the lake has all from the start of the gap to the close, bought and captured.
    lost = to_ns(bought.sort("first_ts")["first_ts"][0])
    wanted = truth(lost, to_ns(CLOSES) - EDGE_NS)
    received = pl.col("ts_recv").dt.epoch("ns").is_between(lost, to_ns(CLOSES), closed="left")
    have = Workspace(tmp_path / "sandbox").lake.scan(TRADES, [OPENS.date()]).filter(received).collect()
    assert have.height == have.select(KEY).n_unique() == len(wanted) > 10_000
