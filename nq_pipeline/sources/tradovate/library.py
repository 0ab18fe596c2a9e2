"""Tradovate's contract library over REST: a product, its expirations, and the contracts of each.

The vendor documents the endpoints and their fields. Not confirmed by any recorded answer: that options are
contracts of this library, what their products are called, that contracts are named as on Globex. So names are
settings, or counted when they cannot be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from nq_pipeline.errors import BadPayload
from nq_pipeline.market.contracts import Series
from nq_pipeline.outcome import Outcome
from nq_pipeline.settings import Settings
from nq_pipeline.sources.failures import rejecting
from nq_pipeline.sources.rows import OTHER
from nq_pipeline.sources.tradovate.login import Parsed, TradovateLogin, parse_reply
from nq_pipeline.sources.tradovate.parse import (
    Unlisted,
    parse_contract_id,
    parse_contracts,
    parse_maturities,
    parse_product,
)
from nq_pipeline.sources.tradovate.spec import TradovateSettings
from nq_pipeline.transport.lifetime import Keep
from nq_pipeline.transport.vendor_session import Reply, VendorSession


@dataclass(frozen=True, slots=True)
class ListedSeries:
    """The contracts of one series.

    Columns: contract_id, name (as sent), series, option_type, strike, request_id, raw_sha256.
    """

    series: Series
    contracts: pl.DataFrame
    replies: tuple[Reply, ...]
    dropped: Counter[str]
    controls: dict[str, bool]


class ContractLibrary:
    """The contract library as one run requests it.

    `dropped` counts what could not be used of the series that have no usable contract at all.
    """

    def __init__(self, settings: Settings, session: VendorSession) -> None:
        self.login = TradovateLogin(settings, session)
        self.dropped: Counter[str] = Counter()
        self._session = session
        self._products = dict(
            pair.split("=", 1) for pair in settings.vendor(TradovateSettings).products if "=" in pair
        )

    def fetch_series(self, series: Series) -> ListedSeries:
        """The contracts of a series.

        Raises `Unlisted` when the library lists nothing for it, `BadPayload` when nothing of what it
        lists can be read.
        """
        name = self._products.get(series.root, series.root)
        product, product_reply = self._fetch("/product/find", parse_product, name=name)
        if product.kind != "Options":
            raise Unlisted(
                f"Tradovate's {name!r} is not an option product; NQ_TRADOVATE_PRODUCTS can name another"
            )
        (maturities, dropped), maturities_reply = self._fetch(
            "/contractMaturity/deps", parse_maturities, masterid=product.id
        )
        year, month = series.contract_month
        maturities = maturities.filter(pl.col("month") == year * 100 + month)
        parts, replies = [], [product_reply, maturities_reply]
        for maturity_id in maturities["maturity_id"]:
            (part, part_dropped), reply = self._fetch(
                "/contract/deps", lambda body: parse_contracts(body, series), masterid=maturity_id
            )
            provenance = {"request_id": pl.lit(reply.request_id), "raw_sha256": pl.lit(reply.sha256)}
            parts.append(part.with_columns(**provenance))
            replies.append(reply)
            dropped = dropped + part_dropped
        if not sum(part.height for part in parts):
            self.dropped += dropped
            unreadable = dropped.total() - dropped[OTHER]
            when = f"{series.expiration_date:%B %Y}"
            with rejecting(self._session, replies[-1]):  # in the cache it would hold all day
                if unreadable:
                    raise BadPayload(f"none of {unreadable} contracts of {name} for {when} can be read")
                raise Unlisted(f"Tradovate lists no contracts of {name} for {when}")
        contracts = pl.concat(parts).unique(["option_type", "strike"], keep="first", maintain_order=True)
        dropped["duplicate"] += sum(part.height for part in parts) - contracts.height
        controls = {
            "value_per_point_is_multiplier": product.value_per_point == series.root_info.product.multiplier,
            "maturity_is_expiration": any(series.expiration_date in days for days in maturities["days"]),
        }
        return ListedSeries(series, contracts, tuple(replies), dropped, controls)

    def fetch_contract_id(self, name: str) -> int:
        """The id of a contract by name; `Unlisted` when there is none."""
        return self._fetch("/contract/find", parse_contract_id, name=name)[0]

    def _fetch(
        self, path: str, parse: Callable[[bytes], Parsed], **params: str | int
    ) -> tuple[Parsed, Reply]:
        """One request to the library; sent again with a new token when that of an earlier run is no longer
        accepted.
        """
        reply = self._send(path, params)
        if reply.status == 401 and self.login.forget():
            self._session.reject(reply, Outcome.NOT_ENTITLED, "the token is no longer accepted")
            reply = self._send(path, params)
        return parse_reply(self._session, reply, parse), reply

    def _send(self, path: str, params: dict[str, str | int]) -> Reply:
        operation = path.removeprefix("/")
        cached = self._session.is_cached(operation, params, Keep.TRADE_DATE, path=path)
        return self._session.get(
            path,
            operation=operation,
            params=params,
            headers={} if cached else {"Authorization": f"Bearer {self.login.token().access}"},
            keep=Keep.TRADE_DATE,
        )
