"""Tradovate's listed contracts and their quotes as rows of the chain schema, and each series' outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import polars as pl

from nq_pipeline.lake.tables import INSTANT
from nq_pipeline.market import sessions
from nq_pipeline.market.listing import underlying_future
from nq_pipeline.market.sessions import in_chicago
from nq_pipeline.market.symbology import contract_keys, globex_code, globex_symbols
from nq_pipeline.outcome import Outcome
from nq_pipeline.sources.base import ChainRequest, SeriesAnswer, chain_frame
from nq_pipeline.sources.failures import MAX_UNUSABLE_SHARE
from nq_pipeline.sources.rows import request_columns, series_columns
from nq_pipeline.sources.tradovate.library import ListedSeries
from nq_pipeline.sources.tradovate.transcript import Transcript
from nq_pipeline.transport.vendor_session import Reply

SOURCE = "tradovate"


def chain_rows(
    listings: Sequence[ListedSeries],
    transcript: Transcript,
    reply: Reply | None,
    futures: Mapping[str, int],
    request: ChainRequest,
) -> pl.DataFrame:
    """Listed contracts with their quotes, as rows of the chain schema.

    `quote_ts` is the time of the newest update of any kind, and `as_of` the newest of all of them.
    `last_ts` and `settlement_date` are null: the vendor states neither. Volume, open, high and low
    are null when the newest update is of an earlier session.

    `reply` is the transcript's, None when the time ran out before there was one; `futures` has the contract
    ids of the underlying futures by name.
    """
    replies = [*(r for listing in listings for r in listing.replies), *([reply] if reply else [])]
    snapshot_ts = pl.lit(max(r.snapshot_ts for r in replies)).cast(INSTANT)
    quotes = transcript.frame()
    rows = pl.concat(listing.contracts for listing in listings)
    series = pl.DataFrame([_series_facts(listing, transcript, futures) for listing in listings])
    rows = rows.join(series, on="series", how="left", maintain_order="left")
    rows = rows.join(quotes, on="contract_id", how="left", maintain_order="left")
    today = pl.col("quote_ts") >= sessions.current_session(request.moment).open
    is_quoted = pl.col("contract_id").is_in(quotes["contract_id"].implode())
    request_id, sha256 = (reply.request_id, reply.sha256) if reply else ("", "")
    return chain_frame(
        rows.with_columns(
            **request_columns(SOURCE, request),
            snapshot_ts=snapshot_ts,
            as_of=pl.coalesce(pl.col("quote_ts").max(), snapshot_ts),
            underlying_class=pl.lit("future"),
            raw_symbol=globex_symbols(pl.col("code"), pl.col("option_type"), pl.col("strike")),
            vendor_symbol="name",
            contract_key=contract_keys(pl.col("series"), pl.col("option_type"), pl.col("strike")),
            is_settlement=pl.col("last").is_null() & pl.col("settlement").is_not_null(),
            request_id=pl.when(is_quoted).then(pl.lit(request_id)).otherwise("request_id"),
            raw_sha256=pl.when(is_quoted).then(pl.lit(sha256)).otherwise("raw_sha256"),
            **{name: pl.when(today).then(name) for name in ("open", "high", "low", "volume")},
        ).drop("contract_id", "name", "code")
    )


def _series_facts(
    listing: ListedSeries, transcript: Transcript, futures: Mapping[str, int]
) -> dict[str, object]:
    future = underlying_future(listing.series)
    return {
        **series_columns(listing.series),
        "code": globex_code(listing.series),
        "underlying": future,
        "underlying_price": transcript.price(futures.get(future)),
    }


def judge_series(
    listing: ListedSeries, frame: pl.DataFrame, transcript: Transcript, request: ChainRequest
) -> SeriesAnswer:
    """The outcome of one series that has rows; see `Tradovate.ask`."""
    rows = frame.filter(pl.col("series") == listing.series.key)
    stamps = rows["quote_ts"] if rows["quote_ts"].count() else frame["quote_ts"]
    newest = stamps.max()
    if isinstance(newest, datetime) and newest < sessions.current_session(request.moment).open:
        reason = f"its newest quote is from {in_chicago(newest)}, before the requested session"
        return SeriesAnswer(Outcome.STALE, reason)
    fault = _series_fault(listing, rows, transcript)
    return SeriesAnswer(Outcome.PARTIAL, fault) if fault else SeriesAnswer(Outcome.OK)


def _series_fault(listing: ListedSeries, rows: pl.DataFrame, transcript: Transcript) -> str:
    """Why a series is `partial`; empty when it is not."""
    if transcript.error is not None:
        return f"quotes were cut short: {transcript.error}"
    ids = set(listing.contracts["contract_id"])
    subscribed = ids & set(transcript.subscribed.values())
    if subscribed < ids:
        return f"quotes of {len(subscribed)} of {len(ids)} contracts, as NQ_TRADOVATE_MAX_QUOTES allows"
    refused = [e for number, e in transcript.refused.items() if transcript.subscribed.get(number) in ids]
    if refused:
        return f"{len(refused)} of {len(ids)} subscriptions were refused: {refused[0]}"
    if not rows["quote_ts"].count():
        return "no quote arrived; raise NQ_TRADOVATE_QUOTE_WAIT_S to wait longer"
    unreadable = listing.dropped["malformed_row"] + listing.dropped["unknown_symbol"]
    if unreadable > MAX_UNUSABLE_SHARE * rows.height:
        return f"{unreadable} contracts of the listing could not be read"
    if transcript.unusable > MAX_UNUSABLE_SHARE * len(transcript.quotes):
        return f"{transcript.unusable} parts of the quotes were unusable"
    return ""
