"""The historical API as the live capture uses it to repair gaps."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from nq_pipeline.clock import from_ns
from nq_pipeline.errors import NotEntitled
from nq_pipeline.leases.purchase_records import PurchaseRecords
from nq_pipeline.market import sessions
from nq_pipeline.settings import Settings
from nq_pipeline.sources.databento.client import open_client
from nq_pipeline.sources.databento.downloader import Downloader, count_records
from nq_pipeline.sources.databento.entitlement import record_refusal, standing_refusal
from nq_pipeline.sources.databento.history_store import HistoryStore
from nq_pipeline.sources.databento.purchases import Purchases
from nq_pipeline.sources.databento.query import Query
from nq_pipeline.sources.databento.spec import DatabentoSettings
from nq_pipeline.sources.databento.vendor_errors import NoRecords
from nq_pipeline.spend.export import publish_spend
from nq_pipeline.spend.ledger import open_ledger
from nq_pipeline.spend.money import ZERO


class DatabentoHistory:
    """Implements `capture.gap_repair.History`; purchases have the purpose `gap_repair`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = open_client(settings)

    def price(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> Decimal:
        """Return what the records of a span cost now, USD. Free."""
        try:
            return self._client.cost(self._query(schema, parents, start_ns, end_ns))
        except NoRecords:
            return ZERO

    def count(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> int:
        """Return how many records a span has by the vendor's count. Free."""
        return count_records(self._client, self._query(schema, parents, start_ns, end_ns))

    def fetch(
        self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int, *, run_id: str
    ) -> tuple[Path, Decimal]:
        """Buy the records of a span once; returns the file and what this call paid, USD.

        Raises `NoRecords` when the span has none, `NotEntitled` when the plan does not include it.
        """
        trade_date = sessions.trade_date(from_ns(start_ns))
        if (refusal := standing_refusal(self._settings, schema, trade_date)) is not None:
            raise NotEntitled(f"{refusal.text} (not requested again before {refusal.ask_again})")
        ledger, attempts = open_ledger(self._settings), self._settings.http.attempts
        purchases = Purchases(self._client, ledger, "gap_repair", run_id, attempts=attempts)
        records = PurchaseRecords.of(self._settings)
        downloader = Downloader(purchases, HistoryStore.of(self._settings), records)
        try:
            download = downloader.ensure(self._query(schema, parents, start_ns, end_ns))
        except NotEntitled as error:
            record_refusal(self._settings, schema, trade_date, str(error))
            raise
        finally:  # the catalog also shows a refusal, and the reservation a failure left
            publish_spend(self._settings, run_id=run_id)
        if not download.files:
            raise NoRecords(f"{schema}: the span has no records")
        return download.files[0], download.cost_usd

    def _query(self, schema: str, parents: tuple[str, ...], start_ns: int, end_ns: int) -> Query:
        return Query(self._settings.vendor(DatabentoSettings).dataset, schema, parents, start_ns, end_ns)
