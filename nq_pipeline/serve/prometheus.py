"""`/metrics` in the format of Prometheus: lag, records, gaps, requests and cache, runs, spend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from nq_pipeline.capture.log.locks import lock_pid
from nq_pipeline.capture.log.segments import list_segments
from nq_pipeline.lake.tables import MBO, MBP_1, OPTION_CHAIN, TRADES
from nq_pipeline.spend.ledger import read_ledger

if TYPE_CHECKING:
    from nq_pipeline.lake.catalog import LiveCatalog
    from nq_pipeline.lake.store import Lake
    from nq_pipeline.settings import Settings
    from nq_pipeline.stream.hub import Hub
    from nq_pipeline.workspace import Workspace

COUNTED = (TRADES, MBP_1, MBO, OPTION_CHAIN)
"""Tables whose rows are shown; the manifest knows their number."""


class Metrics:
    """Collects the values when Prometheus asks for them.

    A part that cannot be read (a damaged table, a locked ledger) is left out, and `nq_unreadable` names it.
    """

    def __init__(
        self, settings: Settings, workspace: Workspace, lake: Lake, live: LiveCatalog, hub: Hub, dataset: str
    ) -> None:
        self._settings, self._workspace, self._lake = settings, workspace, lake
        self._live, self._hub, self._log = live, hub, workspace.capture / dataset

    def text(self) -> bytes:
        """All metrics in the text format."""
        text: bytes = generate_latest(self)  # a registry of one collector
        return text

    def collect(self) -> Iterator[Metric]:
        """The values of this moment."""
        unreadable = GaugeMetricFamily("nq_unreadable", "1: this part cannot be read now.", labels=["part"])
        for part, read in (
            ("capture", self._capture),
            ("lake", self._rows),
            ("queries", self._queries),
            ("spend", self._spend),
        ):
            try:
                yield from list(read())
            except Exception:  # whatever it is, the other parts are still worth showing
                unreadable.add_metric([part], 1)
        yield unreadable

    def _capture(self) -> Iterator[Metric]:
        capturing = lock_pid(self._workspace.capture) is not None
        yield GaugeMetricFamily("nq_capture_running", "Whether a process captures here.", capturing)
        size = sum(segment.path.stat().st_size for segment in list_segments(self._log))
        yield GaugeMetricFamily("nq_capture_log_bytes", "Size of the capture log.", size)
        lag = None if self._hub.lag_ms is None else self._hub.lag_ms / 1000
        yield GaugeMetricFamily(
            "nq_stream_lag_seconds", "Age of the newest record when it was streamed.", lag
        )
        rows = CounterMetricFamily("nq_stream_rows", "Rows streamed by this server.", labels=["type"])
        for kind, number in self._hub.sent.items():
            rows.add_metric([kind], number)
        yield rows
        yield GaugeMetricFamily("nq_stream_subscribers", "Clients of the stream.", self._hub.subscribers)

    def _rows(self) -> Iterator[Metric]:
        rows = GaugeMetricFamily("nq_table_rows", "Rows of a table.", labels=["table"])
        for table in COUNTED:
            rows.add_metric([table.name], self._lake.manifest(table).rows)
        yield rows

    def _queries(self) -> Iterator[Metric]:
        connection = self._live.cursor()
        for metric, sql in (
            (GaugeMetricFamily("nq_gaps", "Gaps of the capture.", labels=["state"]), GAPS_SQL),
            (CounterMetricFamily("nq_requests", "Requests to vendors.", labels=_REQUEST), REQUESTS_SQL),
            (
                CounterMetricFamily("nq_answers", "Answers of vendors to runs.", labels=_REQUEST[:2]),
                ANSWERS_SQL,
            ),
            (
                CounterMetricFamily("nq_runs", "Runs that chose a chain, or nothing.", labels=["result"]),
                RUNS_SQL,
            ),
        ):
            for *labels, value in connection.sql(sql).fetchall():
                metric.add_metric([str(label) for label in labels], value)
            yield metric
        ((newest,),) = connection.sql("SELECT epoch(max(snapshot_ts)) FROM option_chain").fetchall()
        age = None if newest is None else self._settings.clock.now().timestamp() - newest
        yield GaugeMetricFamily("nq_snapshot_age_seconds", "Age of the newest chain.", age)

    def _spend(self) -> Iterator[Metric]:
        month = read_ledger(self._settings).month()
        spend = GaugeMetricFamily("nq_spend_usd", "Spent and reserved this month.", labels=["kind"])
        for kind, usd in (
            ("plan", month.plan_usd),
            ("metered", month.metered_usd),
            ("reserved", month.reserved_usd),
            ("today", month.today_usd),
        ):
            spend.add_metric([kind], float(usd))
        yield spend
        left = GaugeMetricFamily("nq_budget_left_usd", "What may still be spent.", labels=["period"])
        left.add_metric(["month"], float(month.remaining_usd))
        left.add_metric(["day"], float(month.remaining_today_usd))
        yield left


_REQUEST = ["source", "outcome", "cache"]
GAPS_SQL = """
SELECT state, count(*)
FROM (SELECT max_by(state, revision) AS state FROM gaps GROUP BY gap_id) GROUP BY state"""
REQUESTS_SQL = "SELECT source, outcome, cache, count(*) FROM fetches GROUP BY ALL"
ANSWERS_SQL = "SELECT source, outcome, count(*) FROM answers GROUP BY ALL"
RUNS_SQL = """
SELECT CASE WHEN won THEN 'chosen' ELSE 'nothing' END AS result, count(*)
FROM (SELECT bool_or(won) AS won FROM decisions GROUP BY run_id) GROUP BY ALL"""
