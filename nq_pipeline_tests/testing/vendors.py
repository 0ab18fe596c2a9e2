"""A vendor whose answers are bytes, asked through its `VendorSession`, for tests of whole snapshots.

python -m nq_pipeline_tests.testing.vendors DATA     takes one snapshot on command, for tests that kill it
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import orjson
import polars as pl

from nq_pipeline.chains.replay import replay_snapshot
from nq_pipeline.chains.request import build_request
from nq_pipeline.chains.result import Snapshot
from nq_pipeline.chains.snapshot import take_snapshot
from nq_pipeline.configuration import build_settings
from nq_pipeline.errors import SourceError, Unavailable
from nq_pipeline.lake.tables import INSTANT, SOURCE_CHAIN
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.base import ChainAnswer, ChainRequest, Probe, SeriesAnswer, failed, overall
from nq_pipeline.transport.policy import Policy
from nq_pipeline.transport.vendor_session import VendorSession
from nq_pipeline_tests.testing.fake_vendors import chain

NOW = datetime(2025, 6, 10, 15, 0, tzinfo=UTC)
NDXP = Series("NDXP", date(2025, 6, 13))


class Vendor:
    """Gives the series it has; what it says travels through archive and cache like any vendor's.

    Parameters
    ----------
    has
        Series keys it has; None is all.
    outcome
        Of every series it has.
    price
        What it says asking costs, USD; None is that it cannot say.
    dropped, controls
        What it says could not be used, and of its control totals.
    perform
        Called where a real vendor's client waits for its answer; may block or raise.
    """

    policy = Policy()

    def __init__(
        self,
        name: str,
        *,
        has: set[str] | None = None,
        metered: bool = False,
        price: str | None = "0.10",
        proxy: bool = False,
        outcome: Outcome = Outcome.OK,
        perform: Callable[[], object] = lambda: None,
        dropped: Mapping[str, int] | None = None,
        controls: Mapping[str, bool] | None = None,
    ) -> None:
        self.name = name
        self.base_url = f"http://127.0.0.1:9/{name}"
        self.metered = metered
        self.underlying_classes = frozenset({"index" if proxy else "future"})
        self.has, self.perform, self._price, self._outcome = has, perform, price, outcome
        self._dropped, self._controls = Counter(dropped or {}), controls or {}
        self.requests: list[ChainRequest] = []
        self.answered = 0

    def ask(self, request: ChainRequest, session: VendorSession) -> ChainAnswer:
        self.requests.append(request)
        try:
            question = {"series": ",".join(s.key for s in request.series)}
            reply = session.call("chain", question, lambda: self._reply(request))
        except SourceError as error:
            return failed(self.name, request, error)
        given = tuple(Series.parse(key) for key in reply.json())
        (kind,) = self.underlying_classes
        frame = (
            chain(request, self.name, series=given, underlying_class=kind) if given else SOURCE_CHAIN.empty()
        )
        frame = frame.with_columns(
            snapshot_ts=pl.lit(reply.snapshot_ts).cast(INSTANT),
            request_id=pl.lit(reply.request_id),
            raw_sha256=pl.lit(reply.sha256),
        )
        asked = given if kind != "future" else request.series
        series = {
            s.key: SeriesAnswer(self._outcome) if s in given else SeriesAnswer(Outcome.EMPTY, "not listed")
            for s in asked
        }
        return ChainAnswer(
            source=self.name,
            outcome=overall([answer.outcome for answer in series.values()]),
            reason="",
            frame=frame,
            series=series,
            dropped=self._dropped,
            controls=self._controls,
            cached=reply.cached,
        )

    def price(self, request: ChainRequest, session: VendorSession) -> Decimal:
        def perform() -> bytes:
            if self._price is None:
                raise Unavailable("the price is not known")
            return self._price.encode()

        question = {"series": ",".join(s.key for s in request.series)}
        return Decimal(session.call("price", question, perform).body.decode())

    def _reply(self, request: ChainRequest) -> bytes:
        self.perform()
        self.answered += 1
        if self.underlying_classes != {"future"}:
            return orjson.dumps([NDXP.key])
        return orjson.dumps([s.key for s in request.series if self.has is None or s.key in self.has])

    def probe(self, session: VendorSession) -> Probe:
        self.perform()
        return Probe(True, True, True, "a vendor of the tests")


def failing(error: Exception) -> Callable[[], None]:
    """A `perform` that ends this way."""

    def perform() -> None:
        raise error

    return perform


def down(name: str, error: SourceError | None = None, *, metered: bool = False) -> Vendor:
    """A vendor from whom nothing comes."""
    return Vendor(name, perform=failing(error or Unavailable("nobody answers")), metered=metered)


class Desk:
    """Takes snapshots of these vendors; their order is the priority."""

    def __init__(self, data_dir: Path, *vendors: Vendor, **settings: object) -> None:
        self.vendors = {vendor.name: vendor for vendor in vendors}
        chosen = {
            "environment": "live",
            "data_dir": data_dir,
            "now": NOW,
            "horizon_days": 1,
            "far_expirations": False,
            "sources": tuple(self.vendors),
            **settings,
        }
        self.settings = build_settings(**chosen)

    def open(self, name: str, settings: Settings) -> Vendor:
        return self.vendors[name]

    def request(self, **more: object) -> ChainRequest:
        return build_request(self.settings, **more)  # type: ignore[arg-type]

    def snap(self, **more: object) -> Snapshot:
        request = self.request()
        return take_snapshot(self.settings, request, opener=self.open, **more)  # type: ignore[arg-type]

    def replay(self, run_id: str = "latest") -> Snapshot:
        return replay_snapshot(self.settings, run_id, opener=self.open)


def main() -> None:
    desk = Desk(Path(sys.argv[1]), Vendor("barchart"), Vendor("databento"), ask_metered="always")
    print("ready", flush=True)
    sys.stdin.readline()
    desk.snap()


if __name__ == "__main__":
    main()
